"""Linters, formatter, types and import directions as tests, and the script that CI runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
# The tools of the environment that runs the tests, whether or not it is activated.
TOOLS_DIR = Path(sys.executable).parent


def run(command: list[str], cwd: Path) -> tuple[int, str]:
    """Runs a command and returns its exit status and what it printed."""
    path = os.pathsep.join([str(TOOLS_DIR), os.environ.get("PATH", "")])
    # NO_COLOR: escape codes would be noise in the failure text.
    env = {**os.environ, "PATH": path, "NO_COLOR": "1"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff-check"),
        pytest.param(["ruff", "format", "--check", "."], id="ruff-format"),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["lint-imports"], id="lint-imports"),
    ],
)
def test_the_repository_passes(command: list[str]) -> None:
    if shutil.which(command[0], path=str(TOOLS_DIR)) is None:
        pytest.fail(
            f"{command[0]} is not installed beside {sys.executable}; "
            'install the test tools with: python -m pip install -c constraints.txt -e ".[test]"'
        )
    status, output = run(command, REPO)

    if status != 0:
        pytest.fail(f"`{' '.join(command)}` ended with status {status}:\n{output}", pytrace=False)


def run_ci(checkout: Path, readme: str | None) -> tuple[int, str]:
    (checkout / ".ci").mkdir()
    shutil.copy(REPO / ".ci" / "run", checkout / ".ci" / "run")
    if readme is not None:
        (checkout / "README.md").write_text(readme)
    return run(["bash", ".ci/run"], checkout)


def test_ci_runs_the_command_of_the_readme_without_an_old_environment(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    readme = (
        "# Title\n\n```sh\necho not this one\n```\n\n"
        "<!-- ci:test -->\n```sh\ntest ! -e .venv && \\\n  echo ran in $(basename $PWD)\n```\n\n"
        "```sh\necho nor this one\n```\n"
    )
    status, output = run_ci(tmp_path, readme)

    assert status == 0
    assert output.endswith(f"\nran in {tmp_path.name}\n")
    assert "this one" not in output


@pytest.mark.parametrize("block", ["exit 3", "false\ntrue"])
def test_ci_fails_when_the_command_fails(tmp_path: Path, block: str) -> None:
    status, _ = run_ci(tmp_path, f"<!-- ci:test -->\n```sh\n{block}\n```\n")

    assert status != 0


@pytest.mark.parametrize(
    "readme",
    [
        pytest.param("# Title\n\n```sh\necho hello\n```\n", id="no-comment"),
        pytest.param("<!-- ci:test -->\nText.\n```sh\necho hello\n```\n", id="text-between"),
        pytest.param("<!-- ci:test -->\n```sh\n\n```\n", id="empty-block"),
        pytest.param("<!-- ci:test -->\n```sh\necho hello\n", id="unclosed-block"),
    ],
)
def test_ci_names_what_is_missing_from_the_readme(tmp_path: Path, readme: str) -> None:
    status, output = run_ci(tmp_path, readme)

    assert status == 1
    assert "README.md has no test command: expected a line '<!-- ci:test -->'" in output


def test_ci_without_a_readme_says_so(tmp_path: Path) -> None:
    status, output = run_ci(tmp_path, None)

    assert status == 1
    assert "no README.md in" in output
