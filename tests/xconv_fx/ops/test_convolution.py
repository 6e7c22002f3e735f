import math

import pytest
import torch
from torch.library import opcheck

from xconv_fx.ops.convolution import convolution, memory_order

SKETCHES = ["independent", "multichannel", "orthogonal", "quantize"]
SEED = torch.tensor(2**60 + 97)
CASES = {
    "2d": ((2, 4, 8, 6), (6, 2, 3, 2), ([2, 1], [1, 0], [1, 2], False, [0, 0], 2)),
    "transposed 2d": ((2, 4, 5, 4), (4, 3, 3, 2), ([2, 1], [1, 0], [1, 1], True, [1, 0], 1)),
    "1d": ((2, 3, 9), (4, 3, 3), ([1], [1], [1], False, [0], 1)),
    "3d": ((2, 2, 4, 3, 4), (2, 2, 2, 2, 2), ([1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1)),
}


def leaves(name: str, dtype: torch.dtype, channels_last: bool = False):
    size, weight_size, geometry = CASES[name]
    x, weight = torch.randn(size).to(dtype), torch.randn(weight_size).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    channels = weight.shape[1] * geometry[-1] if geometry[3] else weight.shape[0]
    bias = torch.randn(channels).to(dtype)
    return [t.requires_grad_() for t in (x, weight, bias)], geometry


def gradients(name: str, sketch: str, seed: torch.Tensor, probes: int = 4):
    torch.manual_seed(3)
    (x, weight, bias), geometry = leaves(name, torch.float64)
    y, _ = convolution(x, weight, bias, *geometry, seed, sketch, probes, 2, "gaussian")
    expected = torch.ops.aten.convolution(x, weight, bias, *geometry)
    assert torch.allclose(y, expected)
    cotangent = torch.randn_like(y)
    exact = torch.autograd.grad(expected, (x, weight, bias), cotangent)
    return torch.autograd.grad(y, (x, weight, bias), cotangent), exact


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_all_but_the_weight_gradient_is_exact_and_that_is_unbiased(name, sketch):
    # 80 seeds; the squared distance of the mean from the exact gradient, over its expectation
    # (mean square error / 80), is 1 on average. 4 is far beyond chance for >= 32 entries.
    generator = torch.Generator().manual_seed(6)
    seeds = torch.randint(0, 2**62, (80,), generator=generator)
    errors = []
    for seed in seeds:
        got, exact = gradients(name, sketch, seed)
        assert torch.allclose(got[0], exact[0])
        assert torch.allclose(got[2], exact[2])
        errors.append(got[1] - exact[1])
    stacked = torch.stack(errors)
    spread = stacked.square().mean(0).sum()
    assert float(spread) > 0
    assert float(80 * stacked.mean(0).square().sum() / spread) < 4


def test_all_orthogonal_columns_give_the_exact_weight_gradient():
    got, exact = gradients("2d", "orthogonal", SEED, probes=64)
    assert torch.allclose(got[1], exact[1])


def test_only_weight_seed_and_sketch_are_saved():
    (x, weight, bias), geometry = leaves("2d", torch.float32)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        convolution(x, weight, bias, *geometry, SEED, "independent", 4, 2, "gaussian")
    assert sorted(tuple(t.shape) for t in saved) == sorted([tuple(weight.shape), (), (2, 4, 4)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sketch", SKETCHES)
def test_opcheck(dtype, channels_last, sketch):
    (x, weight, bias), geometry = leaves("2d", dtype, channels_last)
    opcheck(convolution, (x, weight, bias, *geometry, SEED, sketch, 4, 2, "gaussian"))


@pytest.mark.parametrize("name", CASES)
def test_opcheck_of_shapes_in_other_dimensions(name):
    (x, weight, _), geometry = leaves(name, torch.float32)
    arguments = (x, weight, None, *geometry, SEED, "quantize", 4, 2, "gaussian")
    opcheck(convolution, arguments, test_utils=("test_schema", "test_faketensor"))


def test_memory_order():
    x = torch.randn(2, 3, 4, 5)
    assert memory_order(x) == [0, 1, 2, 3]
    assert memory_order(x.contiguous(memory_format=torch.channels_last)) == [0, 2, 3, 1]
    assert math.prod(x.shape) == 120
