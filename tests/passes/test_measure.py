"""What a measurement says of a small graph, against the same worked out by hand."""

import math

import pytest
import torch

from passes.estimate import estimate_costs
from passes.measure import MeasureRequest, activation_statistics, measure_graph

aten = torch.ops.aten
ROWS = 12


def gradient_of_scale(grad, factor):
    return (grad * factor).sum(0)


@pytest.fixture
def joint(toy):
    """The gradient of w in out = w * f * 3 with f = bernoulli(x): one use on no path."""
    b = toy.Builder()
    x, w = b.input("primals_1", ROWS, 4), b.input("primals_2", 4)
    grad = b.input("tangents_1", ROWS, 4)
    factor = b.call(aten.bernoulli.default, x)
    out = b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, w, factor), 3.0)
    tripled = b.call(aten.mul.Tensor, grad, 3.0)
    product = b.call(aten.mul.Tensor, tripled, factor)
    return b.joint([out], [None, b.call(aten.sum.dim_IntList, product, [0])], static=(1,))


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    return {
        "bernoulli": torch.randn(ROWS, 4, generator=generator) + 1.0,
        "tangents_1": torch.randn(ROWS, 4, generator=generator),
    }


def request_for(toy, joint, num_draws=1, num_groups=4):
    rules = toy.rules(toy.Coin())
    return MeasureRequest(joint, estimate_costs(joint, rules), rules, num_draws, num_groups, 16.0)


def test_what_it_needs_is_named(toy, joint):
    assert request_for(toy, joint).kept() == ("bernoulli",)


def test_noise_of_a_mini_batch_is_that_of_the_groups_shares(toy, joint, given):
    measured, (nothing, gradient) = measure_graph(request_for(toy, joint), given)
    shares = 3 * given["bernoulli"] * given["tangents_1"]
    groups = torch.stack([shares[i::4].sum(0) for i in range(4)]).double()
    expected = 4 / 3 * (groups - groups.mean(0)).square().sum().item()

    assert nothing is None
    torch.testing.assert_close(gradient, shares.sum(0))
    (found,) = measured.gradients
    assert found.position == 1
    # Sums of float32 products.
    assert found.energy == pytest.approx(shares.sum(0).square().sum().item(), rel=1e-5)
    assert found.noise_energy == pytest.approx(expected, rel=1e-5)
    assert found.weight == pytest.approx(1 / expected, rel=1e-5)
    assert measured.num_groups == 4


def test_a_batch_of_one_has_the_gradient_itself_for_noise(toy, joint, given):
    measured, _ = measure_graph(request_for(toy, joint, num_groups=1), given)
    (found,) = measured.gradients
    assert measured.num_groups == 1
    assert found.noise_energy == found.energy


def test_harm_is_the_expected_error_beside_the_mini_batch_noise(toy, joint, given):
    torch.manual_seed(0)
    measured, _ = measure_graph(request_for(toy, joint, num_draws=4000), given)
    (value,) = measured.values
    (codec,) = value.codecs
    factor, grad = given["bernoulli"], given["tangents_1"]
    # Two sketches there are: even columns doubled, or odd ones; the error is +x, -x or the reverse.
    error = (3 * factor * grad).sum(0).square().sum().item()

    assert (value.node, value.is_read, value.on_path) == ("bernoulli", True, False)
    assert codec.noise == pytest.approx(1.0, rel=1e-5)
    assert codec.harm == pytest.approx(error * measured.gradients[0].weight, rel=1e-5)
    assert (codec.modelled_noise, codec.modelled_sensitivity) == (1.0, pytest.approx(8192 / ROWS))


def test_a_gradient_that_vanishes_counts_nothing(toy, joint, given):
    measured, _ = measure_graph(
        request_for(toy, joint), {**given, "tangents_1": torch.zeros(ROWS, 4)}
    )
    assert measured.gradients[0].weight == 0.0
    assert measured.values[0].codecs[0].harm == 0.0


def test_statistics_of_an_activation():
    zeros, range_to_rms, kurtosis = activation_statistics(torch.tensor([0.0, 0.0, 0.0, 2.0]))
    assert zeros == 0.75
    assert range_to_rms == pytest.approx(2.0)
    # Mean 0.5: deviations -0.5 three times and 1.5.
    assert kurtosis == pytest.approx((3 * 0.5**4 + 1.5**4) / 4 / 0.75**2)
    assert activation_statistics(torch.zeros(3)) == (1.0, 0.0, 0.0)
    assert activation_statistics(torch.ones(3)) == (0.0, 0.0, 0.0)
    assert math.isfinite(activation_statistics(torch.randn(5).to(torch.float16))[2])
