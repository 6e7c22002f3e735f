import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from xconv_fx.ops.pooling import (
    max_pool_input_grad,
    offset_dtype,
    window_indices,
    window_offsets,
)

xconv = torch.ops.xconv

# input size, window starts a dimension, window, dilation; every place of a window lies inside
GEOMETRIES = {
    "1d": ([9], [[0, 2, 4]], [3], [1]),
    "2d dilated": ([7, 8], [[0, 2], [1, 3]], [3, 2], [2, 3]),
    "3d": ([4, 5, 6], [[0, 2], [0, 3], [1, 4]], [2, 2, 2], [1, 1, 1]),
    "unequal": ([7, 5], [[0, 2, 4], [0, 1]], [3, 4], [1, 1]),
}


def every_offset(name):
    """Returns offsets that run through the whole window at each output, and the geometry."""
    size, starts, window, dilation = GEOMETRIES[name]
    levels = math.prod(window)
    out = [len(places) for places in starts]
    offsets = torch.arange(levels).view([levels] + [1] * len(out)).expand(levels, *out)
    return offsets, [torch.tensor(places) for places in starts], size, window, dilation


def plane_position(place, offset, size, window, dilation):
    """The position in the plane, one dimension at a time, in Python's integers."""
    coordinates = []
    for extent in reversed(window):
        offset, increment = divmod(offset, extent)
        coordinates.append(increment)
    position = 0
    for d, increment in enumerate(reversed(coordinates)):
        position = position * size[d] + place[d] + increment * dilation[d]
    return position


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_offset_there_and_back(name):
    offsets, starts, *geometry = every_offset(name)
    indices = window_indices(offsets, starts, *geometry)
    expected = [
        plane_position([int(s[i]) for s, i in zip(starts, out, strict=True)], level, *geometry)
        for level in range(len(offsets))
        for out in torch.ones(offsets.shape[1:]).nonzero().tolist()
    ]
    assert indices.flatten().tolist() == expected
    back = window_offsets(indices, starts, *geometry)
    assert back.dtype == torch.uint8
    assert torch.equal(back.long(), offsets)


def test_a_window_that_begins_in_the_padding():
    indices = torch.tensor([0, 1])
    starts = [torch.tensor([-1, 1])]
    assert window_offsets(indices, starts, [4], [3], [1]).tolist() == [1, 0]
    assert window_indices(torch.tensor([1, 0]), starts, [4], [3], [1]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("window", "dtype"),
    [
        ([16, 16], torch.uint8),
        ([257], torch.int16),
        ([2**15], torch.int16),
        ([2**15 + 1], torch.int32),
        ([2**20, 2**11], torch.int32),
        ([2**20, 2**12], torch.int64),
    ],
)
def test_offsets_have_the_smallest_dtype_that_holds_them(window, dtype):
    assert offset_dtype(window) == dtype
    assert torch.iinfo(dtype).max >= math.prod(window) - 1


@pytest.mark.parametrize("name", GEOMETRIES)
def test_opcheck(name):
    offsets, starts, *geometry = every_offset(name)
    indices = window_indices(offsets, starts, *geometry)
    opcheck(xconv.window_offsets.default, (indices, starts, *geometry))


def test_a_geometry_of_other_dimensions_is_an_error():
    meta = torch.empty(2, 3, dtype=torch.int64, device="meta")
    start = torch.empty(3, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="as many starts, input sizes.*got 1, 1, 2 and 1"):
        xconv.window_offsets(meta, [start], [5], [2, 2], [1])


# input size, window, stride, padding, whether outputs may hang over the edge
POOLS = {
    "2d": ((8, 6), (2, 2), (2, 2), (0, 0), False),
    "2d with a rest": ((9, 7), (2, 2), (2, 2), (0, 0), False),
    "2d overlapping": ((9, 8), (3, 3), (2, 2), (1, 1), False),
    "2d over the edge": ((9, 8), (3, 2), (2, 2), (1, 1), True),
    "2d with gaps": ((11, 7), (2, 2), (3, 3), (0, 0), False),
    "2d unequal": ((8, 9), (5, 3), (1, 2), (2, 1), True),
    "3d": ((4, 4, 6), (2, 2, 2), (2, 2, 2), (0, 0, 0), False),
    "3d overlapping": ((6, 7, 5), (3, 3, 3), (2, 1, 2), (1, 1, 0), False),
}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def pooled(name, batch, dtype=torch.float64):
    """Returns the arguments of the input gradient and autograd's answer, in whole numbers."""
    size, window, stride, padding, ceil_mode = POOLS[name]
    pool = F.max_pool2d if len(size) == 2 else F.max_pool3d
    x = torch.randn(*batch, *size, dtype=dtype, requires_grad=True)
    y, indices = pool(x, window, stride, padding, ceil_mode=ceil_mode, return_indices=True)
    grad = torch.randint(-5, 6, y.shape).to(dtype)
    (expected,) = torch.autograd.grad(y, x, grad)
    out = y.shape[-len(size) :]
    starts = [torch.arange(n) * stride[d] - padding[d] for d, n in enumerate(out)]
    ones = [1] * len(size)
    offsets = window_offsets(indices, starts, list(size), list(window), ones)
    return (grad, offsets, list(size), list(window), list(stride), list(padding)), expected


@pytest.mark.parametrize("batch", [(2, 3), (3,)])
@pytest.mark.parametrize("name", POOLS)
def test_the_input_gradient_of_a_max_pool(name, batch):
    args, expected = pooled(name, batch)
    assert torch.equal(max_pool_input_grad(*args), expected)  # sums of whole numbers are exact


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["2d", "2d overlapping"])
def test_the_gradient_keeps_the_layout(name, layout):
    (grad, *rest), expected = pooled(name, (2, 3))
    found = max_pool_input_grad(grad.contiguous(memory_format=layout), *rest)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", ["2d overlapping", "3d"])
def test_opcheck_of_the_input_gradient(name):
    args, _ = pooled(name, (2, 3))
    opcheck(xconv.max_pool_input_grad.default, args)


def test_offsets_of_another_shape_are_an_error():
    grad = torch.empty(2, 3, device="meta")
    with pytest.raises(ValueError, match=r"offsets of the shape of grad_output, \(2, 3\), got \(3"):
        xconv.max_pool_input_grad(grad, torch.empty(3, device="meta"), [6], [2], [2], [0])
