import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from xconv_fx.ops import DECOMPOSITIONS
from xconv_fx.ops.gradients import (
    computing_format,
    conv_input_grad,
    conv_weight_grad,
    is_channels_last,
)

# (input size, weight size, stride, padding, dilation, transposed, output padding, groups)
CASES = {
    "1d": ((2, 3, 9), (4, 3, 3), [1], [1], [1], False, [0], 1),
    "1d strided, rest cut off": ((2, 3, 10), (4, 3, 4), [3], [0], [1], False, [0], 1),
    "2d": ((2, 3, 8, 7), (4, 3, 3, 3), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    "2d strided": ((2, 3, 8, 7), (4, 3, 3, 2), [2, 3], [1, 0], [1, 1], False, [0, 0], 1),
    "2d 1x1 strided": ((2, 3, 7, 8), (4, 3, 1, 1), [2, 2], [0, 0], [1, 1], False, [0, 0], 1),
    "2d even kernel": ((2, 3, 9, 6), (4, 3, 4, 2), [2, 1], [3, 1], [1, 1], False, [0, 0], 1),
    "2d dilated": ((2, 3, 11, 9), (4, 3, 3, 2), [2, 1], [2, 0], [2, 3], False, [0, 0], 1),
    "2d grouped": ((2, 6, 8, 7), (4, 3, 3, 3), [2, 2], [1, 1], [1, 1], False, [0, 0], 2),
    "2d depthwise": ((2, 4, 9, 9), (8, 1, 3, 3), [2, 1], [1, 1], [1, 2], False, [0, 0], 4),
    "2d wide padding": ((2, 3, 3, 2), (4, 3, 1, 2), [1, 2], [2, 3], [1, 1], False, [0, 0], 1),
    "3d": ((2, 3, 5, 6, 4), (4, 3, 3, 2, 1), [2, 1, 1], [1, 0, 0], [1, 2, 1], False, [0] * 3, 1),
    "transposed 1d": ((2, 3, 5), (3, 4, 3), [2], [1], [1], True, [1], 1),
    "transposed 2d": ((2, 3, 5, 4), (3, 4, 3, 2), [2, 1], [1, 0], [1, 1], True, [1, 0], 1),
    "transposed 2d grouped": ((2, 4, 5, 4), (4, 3, 2, 3), [3, 2], [0, 1], [1, 1], True, [2, 1], 2),
    "transposed, output padding above stride": (
        (2, 3, 5, 4),
        (3, 4, 2, 2),
        [1, 2],
        [0, 1],
        [3, 4],
        True,
        [2, 3],
        1,
    ),
    "transposed 3d": (
        (2, 3, 3, 4, 2),
        (3, 2, 2, 3, 2),
        [2] * 3,
        [0, 1, 0],
        [1] * 3,
        True,
        [1] * 3,
        1,
    ),
    "empty batch": ((0, 3, 8, 7), (4, 3, 3, 3), [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
}

# Sums of at most 100 products of standard normals; one rounding of the result for half types.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-4,
    torch.bfloat16: 6e-2,
    torch.float16: 1e-2,
}


def build(name: str, dtype: torch.dtype, channels_last: bool = False):
    size, weight_size, *geometry = CASES[name]
    x, weight = torch.randn(size).to(dtype), torch.randn(weight_size).to(dtype)
    if channels_last:
        memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        x = x.contiguous(memory_format=memory_format)
    y = torch.ops.aten.convolution(x, weight, None, *geometry)
    return torch.randn_like(y), x, weight, geometry


def strides_that_matter(x: torch.Tensor) -> list[int]:
    return [stride for extent, stride in zip(x.shape, x.stride(), strict=True) if extent > 1]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_equal_those_of_aten(name, dtype, channels_last):
    if channels_last and len(CASES[name][0]) == 3:
        pytest.skip("channels-last needs two or three spatial dimensions")
    grad_y, x, weight, geometry = build(name, dtype, channels_last)
    expected = torch.ops.aten.convolution_backward(
        grad_y, x, weight, None, *geometry, [True, True, False]
    )
    grad_x = conv_input_grad(grad_y, weight, list(x.shape), *geometry)
    grad_weight = conv_weight_grad(grad_y, x, weight, *geometry)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(grad_x, expected[0], rtol=tolerance, atol=4 * tolerance)
    torch.testing.assert_close(grad_weight, expected[1], rtol=tolerance, atol=4 * tolerance)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (grad_y, x, weight)]
        fake_x = conv_input_grad(fakes[0], fakes[2], list(x.shape), *geometry)
        fake_weight = conv_weight_grad(*fakes, *geometry)
    for fake, real in ((fake_x, grad_x), (fake_weight, grad_weight)):
        assert fake.shape == real.shape
        assert fake.dtype == real.dtype
        assert strides_that_matter(fake) == strides_that_matter(real)


def test_input_grad_of_every_small_geometry():
    # Every combination of sizes 4 to 6 with kernel, stride, padding, dilation up to 3: float64.
    for extent, k, s, p, d in itertools.product((4, 5, 6), (1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2)):
        if extent + 2 * p < d * (k - 1) + 1:
            continue
        x = torch.randn(1, 2, extent, dtype=torch.float64)
        weight = torch.randn(2, 2, k, dtype=torch.float64)
        for transposed in (False, True):
            geometry = ([s], [p], [d], transposed, [0], 1)
            if transposed and (extent - 1) * s - 2 * p + d * (k - 1) + 1 <= 0:
                continue
            y = torch.ops.aten.convolution(x, weight, None, *geometry)
            expected, _, _ = torch.ops.aten.convolution_backward(
                y, x, weight, None, *geometry, [True, False, False]
            )
            torch.testing.assert_close(
                conv_input_grad(y, weight, list(x.shape), *geometry),
                expected,
                rtol=1e-12,
                atol=1e-12,
            )


def test_a_gradient_of_nothing_is_zero():
    # oneDNN lets a transposed convolution have no output positions; aten.convolution then
    # refuses that output as an input.
    weight = torch.randn(1, 2, 4)
    grad = conv_input_grad(torch.empty(2, 2, 0), weight, [2, 1, 3], [1], [3], [1], True, [0], 1)
    assert torch.equal(grad, torch.zeros(2, 1, 3))


def test_expanded_gradients():
    _, x, weight, geometry = build("2d strided", torch.float32)
    y = torch.ops.aten.convolution(x, weight, None, *geometry)
    expanded = torch.ones(()).expand(y.shape)
    torch.testing.assert_close(
        conv_input_grad(expanded, weight, list(x.shape), *geometry),
        conv_input_grad(torch.ones_like(y), weight, list(x.shape), *geometry),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "name", ["2d strided", "2d depthwise", "transposed, output padding above stride"]
)
def test_opcheck(name, dtype, channels_last):
    grad_y, x, weight, geometry = build(name, dtype, channels_last)
    opcheck(conv_input_grad, (grad_y, weight, list(x.shape), *geometry))
    opcheck(conv_weight_grad, (grad_y, x, weight, *geometry))


def test_neither_gradient_is_lowered():
    assert conv_weight_grad not in DECOMPOSITIONS
    assert conv_input_grad not in DECOMPOSITIONS


@pytest.mark.parametrize(
    ("size", "expected"), [(8, torch.channels_last), (2, torch.contiguous_format)]
)
def test_a_weight_that_outweighs_its_activations_is_not_laid_out_channels_last(size, expected):
    weight = torch.empty(32, 16, 3, 3)  # 4608 numbers; the activations have 48 a position
    grad = torch.empty(2, 32, size, size).contiguous(memory_format=torch.channels_last)
    assert computing_format(weight, grad, [2, 16, size, size]) == expected


def test_channels_last_is_told_by_meaningful_strides():
    x = torch.randn(2, 3, 4, 5)
    assert not is_channels_last(x)
    assert is_channels_last(x.contiguous(memory_format=torch.channels_last))
    assert not is_channels_last(x[:, :1].contiguous(memory_format=torch.channels_last))
    assert not is_channels_last(
        torch.randn(2, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    )
    assert not is_channels_last(torch.ones(2, 3, 1, 1).expand(2, 3, 4, 5))
    assert not is_channels_last(torch.randn(2, 3, 4))
    padded = torch.empty_strided((2, 3, 4, 5), (100, 1, 25, 4))
    assert is_channels_last(padded)
