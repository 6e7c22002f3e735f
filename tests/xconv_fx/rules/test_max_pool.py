"""Pool backwards keep aten's numbers without the input's values; offsets are recognised."""

import math
import operator

import pytest
import torch
from torch import fx

from xconv_fx.rules.max_pool import EXPOSURES, num_offsets

aten = torch.ops.aten
xconv = torch.ops.xconv

# op without "_backward": input, arguments of the forward, arguments of the backward before indices
POOLS = {
    "2d": (aten.max_pool2d_with_indices, (2, 3, 9, 8), ([3], [2], [1], [1], True)),
    "2d large": (aten.max_pool2d_with_indices, (2, 3, 9, 8), ([6, 5], [2, 1], [3, 2], [1], True)),
    "2d large dilated": (aten.max_pool2d_with_indices, (1, 2, 15, 13), ([6, 5], [2], [1], [2], 0)),
    "2d without batch": (aten.max_pool2d_with_indices, (3, 9, 8), ([6], [1], [0], [1], False)),
    "3d": (aten.max_pool3d_with_indices, (2, 3, 5, 6, 7), ([2], [2], [0], [1], False)),
    "3d overlapping": (aten.max_pool3d_with_indices, (2, 3, 5, 6, 7), ([3], [2], [1], [1], True)),
    "3d no stride": (aten.max_pool3d_with_indices, (1, 2, 6, 6, 7), ([3, 4, 3], [], [0], [1], 0)),
    "3d dilated": (aten.max_pool3d_with_indices, (1, 2, 7, 8, 9), ([3], [1, 2, 1], [1], [2], 0)),
    "adaptive 2d": (aten.adaptive_max_pool2d, (2, 3, 7, 9), ([3, 4],)),
    "adaptive 2d enlarged": (aten.adaptive_max_pool2d, (2, 3, 3, 2), ([5, 4],)),
    "adaptive 2d wide": (aten.adaptive_max_pool2d, (2, 3, 64, 64), ([3, 2],)),
    "adaptive 3d": (aten.adaptive_max_pool3d, (2, 3, 5, 6, 7), ([2, 4, 3],)),
    "fractional 2d": (aten.fractional_max_pool2d, (2, 3, 9, 8), ([2, 3], [4, 5])),
    "fractional 3d": (aten.fractional_max_pool3d, (2, 3, 9, 8, 7), ([2, 3, 2], [4, 5, 3])),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pools_backward_keeps_its_numbers_without_the_values(name):
    forward, size, args = POOLS[name]
    x = torch.randn(size)
    samples = [torch.rand(*size[:2], len(size) - 2)] if "fractional" in name else []
    values, indices = forward(x, *args, *samples)
    # Whole numbers: their sums are exact, in whatever order they are taken.
    grad = torch.randint(-9, 9, values.shape).float()
    backward = getattr(aten, forward.__name__ + "_backward").default
    args = () if "adaptive" in name else args
    expected = backward(grad, x, *args, indices)
    assert expected.abs().sum() > 0
    got = EXPOSURES[backward](grad, x * float("nan"), *args, indices)
    assert torch.equal(got, expected)


def pool_with_offsets(window):
    graph = fx.Graph()
    target = torch.ops.prims._low_memory_max_pool_with_offsets.default
    pool = graph.call_function(target, (None, window))
    return [graph.call_function(operator.getitem, (pool, i)) for i in range(2)]


@pytest.mark.parametrize("window", [[2, 2], [3, 3], [2, 2, 2], [1, 3]])
def test_offsets_that_torch_forms_are_recognised(window):
    values, offsets = pool_with_offsets(window)
    assert num_offsets(values) is None
    assert num_offsets(offsets) == math.prod(window)


def test_offsets_that_an_exposure_forms_are_recognised():
    graph = fx.Graph()
    args = (None, [None] * 3, [9, 9, 9], [3, 3, 3], [1, 1, 1])
    made = graph.call_function(xconv.window_offsets.default, args)
    assert num_offsets(made) == 27
    assert num_offsets(graph.call_function(aten.argmax.default, (made,))) is None


def test_a_window_of_unknown_size_has_no_number_of_offsets():
    graph = fx.Graph()
    _, offsets = pool_with_offsets([graph.placeholder("size"), 2])
    assert num_offsets(offsets) is None
