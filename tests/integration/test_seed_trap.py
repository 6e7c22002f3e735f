"""The seed is drawn once, in the forward, and kept: both graphs must see the same numbers.

A partitioner that recomputes the seed in the backward leaves every single gradient as plausible as
before, and their mean wrong for ever: only averaging over many steps, or a look at the graphs,
can tell. Probing is used, since a quantiser's decoding does not read the seed.
"""

import pytest
import torch
from torch import Tensor, nn

import passes
import xconv_fx
from passes.partition import random_nodes
from xconv_fx.codecs import Probe

SIZE = (2, 3, 11, 13)
PROBING = {"sketch": "independent", "probes": 32}
NUM_STEPS = 256
WEIGHTS = ("first.weight", "second.weight")


class Net(nn.Module):
    """Two convolutions with sketched inputs, and a mask between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture
def net_and_input() -> tuple[nn.Module, Tensor]:
    return Net(), torch.randn(SIZE, requires_grad=True)


def scaled_error(samples, exact):
    """Norm of the mean error over what is expected of that many independent samples."""
    errors = samples - exact.double().flatten()
    expected = (errors - errors.mean(0)).square().sum(1).mean().div(len(samples)).sqrt()
    return (errors.mean(0).norm() / expected).item()


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_the_mean_gradient_converges_like_one_over_the_root_of_the_steps(
    inner, net_and_input, compare, assert_unbiased
):
    model, x = net_and_input
    comparison = compare(model, x, num_steps=NUM_STEPS, inner=inner, **PROBING)

    assert comparison.report.exact is None
    assert comparison.report.num_sketched_convolutions == 2
    for name in WEIGHTS:
        samples, exact = comparison.samples[name], comparison.expected_grads[name]
        assert_unbiased(samples, exact)
        for count in (NUM_STEPS // 16, NUM_STEPS // 4, NUM_STEPS):
            # 1 in the root mean square. The errors have 20 effective dims or more: a chi-squared
            # variable of so many degrees of freedom, over their number, is outside of
            # [0.3^2, 2^2] with a probability below 1e-7.
            assert 0.3 < scaled_error(samples[:count], exact) < 2, (name, count)


# Quantisation groups consecutive elements in memory, so Inductor must keep aot_eager's layout.
SAME_LAYOUT = {"inductor": {"layout_optimization": False}}


@pytest.mark.parametrize("options", [PROBING, SAME_LAYOUT], ids=["probing", "default"])
def test_both_inner_compilers_agree_for_the_same_seed(
    options, net_and_input, compile_xconv, gradients
):
    model, x = net_and_input
    grad_output = torch.randn(2, 5, 11, 13)
    results = {}
    for inner in ("aot_eager", "inductor"):
        compiled = compile_xconv(model, inner=inner, **options)
        torch.manual_seed(7)
        results[inner] = [gradients(compiled, model, x, grad_output)[1] for _ in range(3)]

    for eager, inductor in zip(results["aot_eager"], results["inductor"], strict=True):
        for name, grad in eager.items():
            # Probes are made of logarithms and sines in float32, and multiplied twice by sums of
            # 143 products: a few hundred units in the last place.
            torch.testing.assert_close(
                inductor[name], grad, rtol=0, atol=3e-5 * grad.abs().max().item()
            )


@pytest.mark.parametrize("options", [PROBING, {}], ids=["probing", "default"])
def test_a_seed_repeats_a_run_bit_for_bit_and_steps_differ(
    options, net_and_input, compile_xconv, gradients
):
    model, x = net_and_input
    grad_output = torch.randn(2, 5, 11, 13)
    compiled = compile_xconv(model, **options)

    def run(seed: int) -> list[dict[str, Tensor]]:
        torch.manual_seed(seed)
        return [gradients(compiled, model, x, grad_output)[1] for _ in range(3)]

    first, again, other = run(1), run(1), run(2)
    for step, repeated in zip(first, again, strict=True):
        for name, grad in step.items():
            assert torch.equal(grad, repeated[name]), name
    for name in WEIGHTS:
        different = [step[name] for step in (*first, *other)]
        for i, grad in enumerate(different):
            assert not any(torch.equal(grad, later) for later in different[i + 1 :]), name


@pytest.fixture
def outcomes(monkeypatch) -> list[passes.Outcome]:
    """What `passes.run` returns from here on."""
    recorded: list[passes.Outcome] = []
    run = passes.run

    def recording(*args, **kwargs) -> passes.Outcome:
        recorded.append(run(*args, **kwargs))
        return recorded[-1]

    monkeypatch.setattr(passes, "run", recording)
    return recorded


@pytest.mark.parametrize("options", [PROBING, {}], ids=["probing", "default"])
def test_one_random_op_in_the_forward_and_none_in_the_backward(
    options, outcomes, net_and_input, compile_xconv
):
    model, x = net_and_input
    compile_xconv(model, **options)(x).sum().backward()

    (outcome,) = outcomes
    assert [node.target for node in random_nodes(outcome.split.forward.graph)] == [
        torch.ops.aten.randint.low
    ]
    assert random_nodes(outcome.split.backward.graph) == []


def test_the_seeds_are_kept_once(outcomes, net_and_input, compile_xconv):
    model, x = net_and_input
    compile_xconv(model, **PROBING)(x).sum().backward()

    (outcome,) = outcomes
    vals = [node.meta["val"] for node in outcome.split.kept_nodes()]
    tensors = [val for val in vals if isinstance(val, Tensor)]
    # Apart from seeds and packed masks, everything kept is floating point.
    seeds = [t for t in tensors if not t.is_floating_point() and t.dtype != torch.uint8]
    assert [seed.shape[0] for seed in seeds] == [2]


def test_a_mean_that_does_not_converge_would_be_noticed(
    monkeypatch, net_and_input, compare, assert_unbiased
):
    """Decodes with other numbers than were encoded with, as a redrawn seed would."""
    decode = Probe.decode

    def decode_with_another_seed(self, parts, seed, size, dtype, dim_order):
        return decode(self, parts, seed + 1, size, dtype, dim_order)

    monkeypatch.setattr(Probe, "decode", decode_with_another_seed)
    model, x = net_and_input
    comparison = compare(model, x, num_steps=100, **PROBING)

    for name in WEIGHTS:
        samples, exact = comparison.samples[name], comparison.expected_grads[name]
        with pytest.raises(AssertionError, match="the mean of 100 gradients is"):
            assert_unbiased(samples, exact)
        assert scaled_error(samples, exact) > 2


def test_a_partitioner_that_redraws_the_seed_is_refused(
    monkeypatch, net_and_input, compile_xconv, gradients, assert_to_rounding
):
    """Torch's own partitioner, told by the same tags but left to itself, falls into the trap."""
    monkeypatch.setattr("passes.pipeline.partition", passes.partition_exact)
    model, x = net_and_input
    grad_output = torch.randn(2, 5, 11, 13)
    _, expected = gradients(model, model, x, grad_output)
    _, grads = gradients(compile_xconv(model, **PROBING), model, x, grad_output)

    assert "VerifierError: after pass 'partition'" in str(xconv_fx.last_report().exact)
    for name, grad in expected.items():
        assert_to_rounding(grads[name], grad)


class Twins(nn.Module):
    """Two branches of equal weights: equal values are sketched at two sites."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(2)).requires_grad_(False)
        self.conv = nn.ModuleList(nn.Conv2d(4, 5, 3) for _ in range(2))
        self.before[1].load_state_dict(self.before[0].state_dict())
        self.conv[1].load_state_dict(self.conv[0].state_dict())

    def forward(self, x: Tensor) -> Tensor:
        left, right = (conv(before(x)) for before, conv in zip(self.before, self.conv, strict=True))
        return left + right


@pytest.mark.parametrize("options", [PROBING, {}], ids=["probing", "default"])
def test_sites_draw_different_numbers(options, compare):
    comparison = compare(Twins(), torch.randn(SIZE, requires_grad=True), **options)

    assert comparison.report.num_sketched_convolutions == 2
    exact = comparison.expected_grads["conv.0.weight"]
    torch.testing.assert_close(comparison.expected_grads["conv.1.weight"], exact)
    left, right = (
        comparison.samples[f"conv.{i}.weight"] - exact.double().flatten() for i in range(2)
    )
    correlation = (left * right).sum() / (left.norm() * right.norm())
    # 40 steps of 20 effective dims or more: a standard deviation below 0.04. Shared numbers
    # would give 1.
    assert abs(correlation) < 0.25
