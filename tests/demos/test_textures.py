import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from demos.textures import main

TINY = ["--ways", "eager", "--steps", "2", "--batch-size", "4", "--image-size", "16"]


def test_a_tiny_run_prints_a_table_and_writes_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = CliRunner().invoke(main, [*TINY, "--width", "2", "--json", str(path)])

    assert done.exit_code == 0, done.output
    assert "ratio to eager" in done.output
    assert "eager: the others are compared with it" in done.output
    assert json.loads(path.read_text())["settings"]["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ways", "eager,magic"], "unknown way magic; known: eager,"),
        (["--ways", ""], "expected one or more different ways, got ''"),
        (["--ways", "eager,eager"], "expected one or more different ways"),
        (["--steps", "0"], "0 is not in the range x>=1"),
        (["--image-size", "200"], "crops of 200x200 pixels do not fit"),
        (["--image-size", "4"], "resnet18"),
        (["--model", "resnet19"], "unknown model 'resnet19'"),
        (["--model", "mobilenet_v2", "--width", "8"], "no option 'width'"),
        (["--options", "bits"], "expected KEY=VALUE, got 'bits'"),
        (["--options", "bits=3"], "bits"),
        (["--options", "probs=4"], "did you mean 'probes'"),
    ],
)
def test_bad_input_is_refused_with_a_clear_text(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, [*TINY, *arguments])

    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output
