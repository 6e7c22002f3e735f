import math

import pytest
import torch
from torch.library import opcheck

from xconv_fx.ops.pooling import offset_dtype, window_indices, window_offsets

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
