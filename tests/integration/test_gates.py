"""Products of activations: each factor's gradient reads the other, from a sketch.

The gate of a squeeze-and-excitation is made of what it multiplies, so that the gradients of both
meet again upstream: no sketch may serve a use that another of its uses feeds.
"""

import pytest
import torch
from torch import Tensor, nn

# A price of noise at which sketches have 8 bits, on the path of the gradient too: a wrong formula
# shows soon.
SHARP = {"noise_price": 3.0}


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


class GatedHalves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, 1)
        return torch.cat([value * torch.sigmoid(gate), value * gate], 1)


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


MIDDLES = {
    "squeeze-excite": SqueezeExcite,
    "gated halves": GatedHalves,
    "layer scale": LayerScale,
    "square": Square,
    # No norm between them: gradients in front of one all but cancel, and rounding would show.
    "two in a row": lambda: nn.Sequential(
        LayerScale(), SqueezeExcite(), nn.ReLU(), SqueezeExcite()
    ),
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        MIDDLES[name](),
        nn.Conv2d(4, 5, 3, padding=1),
    )
    return net, torch.randn(4, 3, 12, 12, requires_grad=True)


@pytest.mark.parametrize("name", MIDDLES)
def test_gradients_are_unbiased_through_gates(name, compare, assert_to_rounding, assert_unbiased):
    comparison = compare(*make(name), **SHARP)
    assert comparison.report.exact is None
    assert any(row.decision == "sketch" for row in comparison.report.values)
    assert_to_rounding(comparison.output, comparison.expected)
    for key, expected in comparison.expected_grads.items():
        # A norm's own term of order 1/n, as in test_derived_inputs.py.
        bound = 1e-5 * expected.norm() * torch.ones_like(expected)
        assert_unbiased(comparison.samples[key], expected, bound)


def test_no_factor_as_large_as_the_product_is_kept_whole(compare):
    report = compare(*make("squeeze-excite"), num_steps=2, **SHARP).report
    whole = [row for row in report.values if row.shape == (4, 4, 12, 12)]
    assert whole
    assert {row.decision for row in whole} <= {"sketch", "derive"}
