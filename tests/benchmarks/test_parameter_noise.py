import math

import pytest
import torch
from torch import nn

import models_zoo
from benchmarks.parameter_noise import (
    ParameterNoise,
    compare,
    parameter_kinds,
    summarise,
    vanishing_gradients,
)

PARAMETERS = (
    ParameterNoise("a.weight", "weight", 0.1, 0.5, 0.9, -0.5),
    ParameterNoise("b.weight", "weight", 0.7, 0.5, 1.2, 1.5),
    ParameterNoise("c.weight", "weight", 1e-6, 0.9, None, None),
    ParameterNoise("a.bias", "bias", 0.0, 0.4, None, None),
)


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


def test_the_summary_is_over_the_estimated() -> None:
    weights, biases = summarise(PARAMETERS)

    assert (weights.kind, weights.num_estimated, weights.num_exact) == ("weight", 2, 1)
    assert weights.error == pytest.approx(0.5)
    assert weights.noise == pytest.approx(0.5)
    assert weights.ratio == pytest.approx(1.0)
    assert (biases.kind, biases.num_estimated, biases.num_exact) == ("bias", 0, 1)
    assert biases.error is biases.noise is biases.ratio is None
