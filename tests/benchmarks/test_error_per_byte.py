import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import error_per_byte
from benchmarks.codec_results import CodecResult, Layer, LayerError, NetResult
from benchmarks.error_per_byte import main, measure_net, plot, results_table
from benchmarks.trained_nets import find_net
from demos.texture_data import load_photographs, split
from xconv_fx.rules import LADDER


def one_layer(name: str, nbytes: int, error: float, rung: str | None = None) -> CodecResult:
    return CodecResult(name, rung or name, (LayerError(name, nbytes, error),))


@pytest.fixture
def result() -> NetResult:
    return NetResult(
        "net",
        (Layer("conv", (1, 10, 5, 5), 1000, 0.5),),
        (one_layer("fine", 100, 0.01), one_layer("poor", 200, 0.02)),
        tuple(
            one_layer(mode, nbytes, error, rung)
            for mode in error_per_byte.PROBINGS
            for rung, nbytes, error in (("fine", 100, 0.1), ("poor", 200, 0.05))
        ),
    )


def rows_of(result: NetResult) -> list[list[str]]:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(results_table(result))
    lines = captured.get().splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]


def test_the_table_gives_errors_and_what_they_are_compared_with(result: NetResult) -> None:
    rows = rows_of(result)

    assert rows[0][0] == "mini-batch noise"
    assert rows[0][3] == "0.5"
    assert rows[1] == ["fine", "10.0x", "0.01", "0.01", "0.02", "0.1", ""]
    assert rows[2] == ["independent", "10.0x", "0.1", "0.1", "0.2", "", ""]
    # Marked: it keeps more and errs more.
    assert rows[5] == ["poor", "5.0x", "0.02", "0.02", "0.04", "0.4", "fine"]


def test_the_plot_is_written(result: NetResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "errors.svg"
    plot([result, result], path)

    assert path.read_text().count("<svg") == 1


@pytest.mark.usefixtures("no_matplotlib")
def test_a_plot_without_matplotlib_says_what_to_install(result: NetResult, tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"--plot needs matplotlib.*\[benchmark\]"):
        plot([result], tmp_path / "errors.svg")


def test_a_net_is_measured_from_end_to_end() -> None:
    result = measure_net(
        find_net("cifar_net"),
        split(load_photographs()),
        num_steps=1,
        num_seeds=1,
        num_batches=2,
        ladder=LADDER[:1],
        channels_last=True,
    )

    # The first of the four convolutions reads the batch.
    names = [layer.name for layer in result.layers]
    assert names == ["features.2", "features.5", "features.7"]
    assert all(0 < layer.noise < 2 for layer in result.layers)
    (rung,) = result.rungs
    for ours, *theirs in zip(rung.layers, *(p.layers for p in result.probings), strict=True):
        assert 0 < ours.error < min(probing.error for probing in theirs)


def test_the_command_writes_what_it_measured(
    result: NetResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_per_byte, "measure_net", lambda *_, **__: result)
    path = tmp_path / "errors.json"
    done = CliRunner().invoke(main, ["--net", "unet3d", "--steps", "3", "--json", str(path)])

    assert done.exit_code == 0, done.output
    assert "relative error of the weight gradients" in done.output
    assert "CPU, fp32, options {'steps': 3," in done.output
    figures = json.loads(path.read_text())
    assert figures["nets"][0]["rungs"][1]["layers"][0]["error"] == 0.02
