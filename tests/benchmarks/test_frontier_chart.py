from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.frontier_chart import draw_charts, main
from benchmarks.frontier_results import Figures, ModelResult, Row, save_results
from benchmarks.frontier_ways import WAYS


@pytest.fixture
def result() -> ModelResult:
    rows = [
        Row(
            way.name,
            way.family,
            way.note,
            way.exact,
            Figures(100 - i, 50, 1e3, 1 + i, 0, 0, 0, 4),
        )
        for i, way in enumerate(WAYS)
    ]
    rows[0] = Row("eager", "stock", "", True, None, "RuntimeError: no memory")
    return ModelResult("net", (2, 3, 8, 8), 40, 0.5, 1e-3, {}, {}, tuple(rows))


def test_a_model_becomes_a_picture_in_a_new_folder(result: ModelResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (path,) = draw_charts([result], tmp_path / "charts")

    assert path == tmp_path / "charts" / "frontier_net.png"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_it_says_what_to_install(result: ModelResult, tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"a chart needs matplotlib.*\[benchmark\]"):
        draw_charts([result], tmp_path)


def test_the_command_draws_what_was_saved(result: ModelResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "frontier.json"
    save_results([result], path)
    done = CliRunner().invoke(main, [str(path), str(tmp_path)])

    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(tmp_path / "frontier_net.png")


def test_the_command_refuses_another_file(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    done = CliRunner().invoke(main, [str(path), str(tmp_path)])

    assert done.exit_code == 2
    assert "does not hold results" in done.output
