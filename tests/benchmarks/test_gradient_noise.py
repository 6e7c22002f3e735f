import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from benchmarks import gradient_noise
from benchmarks.gradient_noise import NetNoise, main, measure_net, results_table
from benchmarks.parameter_noise import ParameterNoise
from benchmarks.trained_nets import find_net
from demos.texture_data import TextureData, split

PARAMETERS = (
    ParameterNoise("a.weight", "weight", 0.1, 0.5, 0.9, -0.5),
    ParameterNoise("b.weight", "weight", 0.7, 0.5, 1.2, 1.5),
    ParameterNoise("c.weight", "weight", 1e-6, 0.9, None, None),
    ParameterNoise("a.bias", "bias", 0.0, 0.4, None, None),
)


@pytest.fixture
def data() -> TextureData:
    return split({"noise": torch.rand(64, 160), "ramp": torch.linspace(0, 1, 160).expand(64, 160)})


@pytest.fixture
def result() -> NetNoise:
    return NetNoise("net", PARAMETERS, ("b.bias",), 0.125)


def test_the_table_has_the_layers_and_their_root_mean_squares(result: NetNoise) -> None:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(results_table(result))
    text = captured.get()
    lines = [line for line in text.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]

    assert rows[0] == ["a.weight", "weight", "0.1", "0.500", "0.200", "0.90", "-0.50"]
    assert rows[2] == ["c.weight", "weight", "1e-06", "0.900", "0.000", "exact", ""]
    assert rows[4] == ["rms of 2 (1 exact)", "weight", "0.5", "0.500", "1.000", "", ""]
    assert rows[5] == ["rms of 0 (1 exact)", "bias", "", "", "", "", ""]
    assert rows[6] == ["largest", "", "", "", "", "1.20", "1.50"]
    assert "Zero but for rounding: b.bias." in text


def test_a_compiled_net_is_measured_from_end_to_end(data: TextureData) -> None:
    result = measure_net(
        find_net("cifar_net"), data, num_steps=0, num_samples=2, options={"inner": "aot_eager"}
    )
    by_name = {parameter.name: parameter for parameter in result.parameters}

    # The first convolution reads the batch, and no bias gradient is estimated without a norm.
    estimated = [name for name, parameter in by_name.items() if parameter.estimated]
    assert estimated == [
        "features.2.weight",
        "features.5.weight",
        "features.7.weight",
        "head.weight",
    ]
    assert 0 < result.share_of_bytes < 0.5


def test_a_net_that_was_compiled_exactly_is_an_error(
    data: TextureData, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
    monkeypatch.setattr(gradient_noise, "build_net", lambda net, seed: linear)  # noqa: ARG005

    with pytest.raises(RuntimeError, match=r"cifar_net: expected sketches .* compiled exactly: "):
        measure_net(
            find_net("cifar_net"), data, num_steps=0, num_samples=2, options={"inner": "aot_eager"}
        )


def test_the_command_writes_what_it_measured(
    result: NetNoise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def measured(*_: object, **settings: object) -> NetNoise:
        given.append(settings["options"])
        return result

    monkeypatch.setattr(gradient_noise, "measure_net", measured)
    path = tmp_path / "noise.json"
    arguments = ["--net", "unet3d", "--noise-price", "0.1", "--json", str(path)]
    done = CliRunner().invoke(main, arguments)

    assert done.exit_code == 0, done.output
    assert given == [{"inner": "aot_eager", "noise_price": 0.1}]
    assert "CPU, fp32, options {'inner': 'aot_eager', 'noise_price': 0.1}" in done.output
    figures = json.loads(path.read_text())
    assert figures["nets"][0]["parameters"][1]["error"] == 0.7
    assert figures["nets"][0]["summaries"][0]["ratio"] == pytest.approx(1.0)


def test_a_bad_option_is_refused_before_training() -> None:
    done = CliRunner().invoke(main, ["--bits", "3"])

    assert done.exit_code == 2
    assert "bits" in done.output
