import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import frontier
from benchmarks.frontier import main, results_table, verdicts
from benchmarks.frontier_results import Figures, ModelResult, Row


def row(way: str, family: str, peak: int, time: float, noise: float, convolutions: int) -> Row:
    figures = Figures(
        peak * 10**6, peak * 10**5, time * 1e5, time, noise / 2, noise, noise, convolutions
    )
    return Row(way, family, "a way", family in ("stock", "budget"), figures)


@pytest.fixture
def result() -> ModelResult:
    rows = (
        row("inductor", "stock", 200, 1.0, 0.0, 8),
        row("budget-0.5", "budget", 150, 1.5, 0.0, 9),
        Row("fp8", "fp8", "a way", False, None, "RuntimeError: no such kernel"),
        row("probing-16", "paper", 100, 1.6, 0.5, 8),
        row("xconv", "xconv", 100, 1.2, 0.2, 8),
    )
    return ModelResult(
        "unet2d", (4, 3, 96, 96), 124 * 10**6, 0.5, 1e-3, {"torch": "2.13"}, {}, rows
    )


def test_the_table_gives_ratios_failures_and_who_dominates(result: ModelResult) -> None:
    console = Console(width=180)
    with console.capture() as captured:
        console.print(results_table(result))
    lines = [line for line in captured.get().splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]

    assert rows[1][:6] == ["budget-0.5", "150.0", "0.750", "0.750", "150", "1.50"]
    assert rows[1][7:10] == ["exact", "", "1"]
    assert rows[2][-1] == "failed: RuntimeError: no such kernel"
    assert rows[3][-1] == "xconv"
    assert rows[4][6:] == ["0.1", "0.200", "0.20", "", ""]


def test_verdicts_say_what_the_code_found(result: ModelResult) -> None:
    assert verdicts(result) == [
        "unet2d: nothing dominates xconv",
        "unet2d: budget-0.5 computes convolutions again: beaten by xconv",
    ]


def test_verdicts_own_up(result: ModelResult) -> None:
    better = row("rounding-4b", "rounding", 90, 1.1, 0.1, 8)
    slow = row("xconv", "xconv", 100, 1.6, 0.2, 8)
    worse = ModelResult(**{**vars(result), "rows": (*result.rows[:2], better, slow)})

    assert verdicts(worse) == [
        "unet2d: xconv is dominated by rounding-4b",
        "unet2d: budget-0.5 computes convolutions again: NOT beaten by any xconv",
    ]


def test_the_command_writes_what_it_measured(
    result: ModelResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def measured(net, data, ways, settings, announce) -> ModelResult:  # noqa: ARG001
        given.update(net=net, ways=[way.name for way in ways], settings=settings)
        return result

    monkeypatch.setattr(frontier, "measure_model", measured)
    path = tmp_path / "frontier.json"
    arguments = ["--model", "unet2d", "--way", "xconv", "--rounds", "3", "--batch-size", "2"]
    done = CliRunner().invoke(main, [*arguments, "--size", "32", "--json", str(path)])

    assert done.exit_code == 0, done.output
    assert (given["net"].batch_size, given["net"].size) == (2, (32, 32))
    assert given["ways"] == ["inductor", "xconv"]
    assert given["settings"].num_rounds == 3
    assert "nothing dominates xconv" in done.output
    assert json.loads(path.read_text())["models"]["unet2d"]["rows"][4]["way"] == "xconv"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "lenet"], "lenet"),
        (["--way", "magic"], "magic"),
        (["--model", "unet2d", "--size", "50"], "unet2d"),
        (["--model", "unet3d", "--size", "160"], "choose a smaller --size"),
        (["--batches", "1"], "--batches"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(
    arguments: list[str], text: str
) -> None:
    done = CliRunner().invoke(main, arguments)

    assert done.exit_code == 2
    assert text in done.output


def test_a_file_of_something_else_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    done = CliRunner().invoke(main, ["--json", str(path)])

    assert done.exit_code == 2
    assert "does not hold results" in done.output
    assert path.read_text() == "{}"
