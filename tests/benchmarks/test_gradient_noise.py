import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

import models_zoo
from benchmarks import gradient_noise
from benchmarks.gradient_noise import (
    NetNoise,
    ParameterNoise,
    compare,
    main,
    measure_net,
    parameter_kinds,
    results_table,
    summarise,
    vanishing_gradients,
)
from benchmarks.trained_nets import find_net
from demos.texture_data import TextureData, split


@pytest.fixture
def data() -> TextureData:
    return split({"noise": torch.rand(64, 160), "ramp": torch.linspace(0, 1, 160).expand(64, 160)})


@pytest.fixture
def result() -> NetNoise:
    parameters = (
        ParameterNoise("a.weight", "weight", 0.1, 0.5, 0.9, -0.5),
        ParameterNoise("b.weight", "weight", 0.7, 0.5, 1.2, 1.5),
        ParameterNoise("c.weight", "weight", 1e-6, 0.9, None, None),
        ParameterNoise("a.bias", "bias", 0.0, 0.4, None, None),
    )
    return NetNoise("net", parameters, ("b.bias",), 0.125)


def gradients(generator: torch.Generator, mean: float, scale: float) -> dict[str, torch.Tensor]:
    return {
        "noisy": mean + scale * torch.randn(100, generator=generator),
        "exact": torch.full((4,), mean),
        "none": torch.full((3,), 1e-8),
    }


def test_noise_of_known_variance_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = gradients(generator, 1.0, 0.0)
    estimates = [gradients(generator, 1.0, 0.1) for _ in range(200)]
    of_batches = [gradients(generator, 1.0, 0.5) for _ in range(200)]
    kinds = dict.fromkeys(exact, "weight")
    (noisy, unchanged), vanishing = compare(exact, estimates, of_batches, kinds)

    # 20,000 normal numbers: their mean square deviates by 1 %, its root by half of that.
    assert noisy.error == pytest.approx(0.1, rel=0.03)
    assert noisy.noise == pytest.approx(math.sqrt(0.25 / 1.25), rel=0.03)
    # 0.07 and 1 standard deviations.
    assert noisy.bias_ratio == pytest.approx(1.0, abs=0.35)
    assert abs(noisy.bias_score) < 5
    assert not unchanged.estimated
    assert unchanged.error == 0.0
    assert vanishing == ("none",)


def test_a_biased_estimate_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = gradients(generator, 1.0, 0.0)
    estimates = [gradients(generator, 1.05, 0.1) for _ in range(100)]
    (noisy, _), _ = compare(exact, estimates, estimates, dict.fromkeys(exact, "weight"))

    assert noisy.bias_ratio > 3
    assert noisy.bias_score > 10


def test_a_gradient_vanishes_beside_those_of_the_others() -> None:
    exact = {"large": torch.full((10,), 3.0), "small": torch.tensor([2e-4]), "none": torch.zeros(2)}

    assert vanishing_gradients(exact) == ("none",)
    assert vanishing_gradients({**exact, "small": torch.tensor([2e-6])}) == ("small", "none")


def test_parameters_are_sorted_by_what_they_do() -> None:
    kinds = parameter_kinds(models_zoo.build("unet2d", width=4, num_stages=2, norm="group"))
    names = nn.ModuleDict({"fc": nn.Linear(2, 2), "act": nn.PReLU(), "bn": nn.BatchNorm1d(2)})

    assert kinds["encoder.0.0.0.weight"] == kinds["upsamplers.0.weight"] == "weight"
    assert kinds["encoder.0.0.1.weight"] == "norm weight"
    assert kinds["encoder.0.0.1.bias"] == kinds["upsamplers.0.bias"] == "bias"
    assert parameter_kinds(names) == {
        "fc.weight": "weight",
        "fc.bias": "bias",
        "act.weight": "other",
        "bn.weight": "norm weight",
        "bn.bias": "bias",
    }


def test_the_summary_is_over_the_estimated(result: NetNoise) -> None:
    weights, biases = summarise(result.parameters)

    assert (weights.kind, weights.num_estimated, weights.num_exact) == ("weight", 2, 1)
    assert weights.error == pytest.approx(0.5)
    assert weights.noise == pytest.approx(0.5)
    assert weights.ratio == pytest.approx(1.0)
    assert (biases.kind, biases.num_estimated, biases.num_exact) == ("bias", 0, 1)
    assert math.isnan(biases.error)


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
