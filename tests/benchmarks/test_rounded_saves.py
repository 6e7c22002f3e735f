import pytest
import torch
from torch import Tensor, nn

from benchmarks.gradient_statistics import relative_rms_error
from benchmarks.rounded_saves import RoundedSaves, restore_tensor, round_tensor

NUM_SEEDS = 256


def weight_gradient(run, layer: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.grad(run(x).square().sum(), layer.weight)[0]


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


@pytest.mark.parametrize("bits", [4, 2])
def test_a_rounded_tensor_comes_back_in_the_mean(bits: int) -> None:
    x = torch.randn(3, 4, 8, 8)
    restored = [restore_tensor(round_tensor(x, bits)) for _ in range(NUM_SEEDS)]
    mean = torch.stack(restored).mean(0)
    # A step is at most 7 deviations over 2**bits - 1; six standard errors of a mean of that.
    step = 7 / (2**bits - 1)

    assert restored[0].shape == x.shape
    assert (mean - x).abs().max() < 6 * 0.5 * step / NUM_SEEDS**0.5


def test_zeros_that_are_the_least_of_their_group_stay_zeros() -> None:
    x = torch.randn(2, 4, 8, 8).relu()
    restored = restore_tensor(round_tensor(x, 2))

    assert (restored[x == 0] == 0).all()


def test_the_forward_is_exact_and_the_error_grows_as_bits_fall(net: nn.Sequential) -> None:
    x = torch.randn(4, 3, 12, 12)
    exact = weight_gradient(net, net[2], x)
    error = {}
    for bits in (8, 4, 2):
        run = RoundedSaves(net, bits)
        assert torch.equal(run(x), net(x))
        samples = [weight_gradient(run, net[2], x) for _ in range(4)]
        error[bits] = relative_rms_error(samples, exact)

    assert 0 < error[8] < error[4] < error[2]


def test_parameters_the_batch_and_statistics_are_saved_as_they_are() -> None:
    x = torch.randn(4, 3, 12, 12)
    first = nn.Conv2d(3, 8, 3)
    exact = weight_gradient(first, first, x)

    # Its weight gradient reads the batch and the incoming gradient alone.
    assert torch.equal(weight_gradient(RoundedSaves(first, 2), first, x), exact)


def test_a_tensor_that_two_operations_save_is_rounded_once(
    net: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def counted(x: Tensor, bits: int):
        shapes.append(tuple(x.shape))
        return round_tensor(x, bits)

    monkeypatch.setattr("benchmarks.rounded_saves.round_tensor", counted)
    RoundedSaves(net, 4)(torch.randn(2, 3, 12, 12))

    # The relu's result, which the second convolution saves too.
    assert shapes == [(2, 8, 10, 10)]
