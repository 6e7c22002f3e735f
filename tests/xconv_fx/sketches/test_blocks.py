import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from xconv_fx.sketches.blocks import choose_blocks, grid_of, smallest_and_largest, spread


@pytest.mark.parametrize(
    ("size", "group_size", "blocks"),
    [
        # Taken in from the last dimension; channels never; then the batch.
        ((4, 8, 16, 16), 256, (1, 1, 16, 16)),
        ((4, 8, 32, 32), 256, (1, 1, 8, 32)),
        ((4, 8, 8, 8), 256, (4, 1, 8, 8)),
        ((8, 8, 8, 8), 256, (4, 1, 8, 8)),
        ((16, 512, 1, 1), 256, (16, 1, 1, 1)),
        # The smallest divisor that is enough: 9 of 27 for the 5 wanted.
        ((2, 3, 27, 56), 256, (1, 1, 9, 56)),
        # 13 is prime, and enough.
        ((2, 3, 13, 7), 16, (1, 1, 13, 7)),
        # 1009 is far more than the 2 wanted: the batch is taken in instead.
        ((2, 3, 1009, 8), 16, (2, 1, 1, 8)),
        # Two dimensions: features, then the batch.
        ((64, 1024), 256, (1, 256)),
        ((64, 32), 256, (8, 32)),
        ((1000,), 256, (500,)),
        ((3,), 256, (3,)),
        ((2, 3, 4, 6, 8), 64, (1, 1, 2, 6, 8)),
        ((), 256, ()),
        ((0,), 256, (1,)),
        ((4, 3, 0, 5), 16, (4, 1, 1, 5)),
    ],
)
def test_blocks_of_known_sizes(size, group_size, blocks):
    chosen = choose_blocks(size, group_size)
    assert chosen == blocks
    for extent, block in zip(size, chosen, strict=True):
        assert extent % block == 0
    assert grid_of(size, chosen) == [e // b for e, b in zip(size, chosen, strict=True)]


def unknown_sizes(shape, dims):
    """The sizes of a fake tensor of which some are unknown."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    kinds = [DimDynamic.DYNAMIC if d in dims else DimDynamic.STATIC for d in range(len(shape))]
    context = StatelessSymbolicContext(dynamic_sizes=kinds)
    return mode.from_tensor(torch.empty(shape), symbolic_context=context).shape, mode.shape_env


@pytest.mark.parametrize(
    ("shape", "dims", "blocks"),
    [
        # An unknown batch is not taken in, however small the rest is.
        ((4, 8, 4, 4), (0,), (1, 1, 4, 4)),
        # Unknown positions are taken in whole; the batch is not taken in then.
        ((4, 8, 6, 10), (2, 3), (1, 1, "s", "s")),
        ((4, 8, 6, 10), (0, 1, 2, 3), (1, 1, "s", "s")),
        ((4, 8, 6, 10), (1,), (4, 1, 6, 10)),
        ((64, 32), (0,), (1, 32)),
        ((64, 32), (1,), (1, "s")),
        ((64,), (0,), ("s",)),
    ],
)
def test_blocks_of_unknown_sizes_ask_nothing(shape, dims, blocks):
    size, shape_env = unknown_sizes(shape, dims)
    chosen = choose_blocks(size, 256)
    for block, extent, expected in zip(chosen, size, blocks, strict=True):
        assert block is extent if expected == "s" else block == expected
    grid_of(size, chosen)
    assert shape_env.guards == []


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)])
def test_each_group_is_reduced_and_spread_over_its_elements(order):
    x = torch.randn(4, 3, 6, 10)
    blocks = (2, 1, 3, 5)
    low, high = smallest_and_largest(x, blocks, order)
    assert list(low.shape) == list(high.shape) == grid_of(x.shape, blocks) == [2, 3, 2, 2]
    wide_low, wide_high = spread(low, x.shape), spread(high, x.shape)
    assert wide_low.shape == x.shape
    for place in itertools.product(*map(range, low.shape)):
        inside = tuple(slice(i * b, (i + 1) * b) for i, b in zip(place, blocks, strict=True))
        assert float(low[place]) == float(x[inside].min())
        assert float(high[place]) == float(x[inside].max())
        assert bool((wide_low[inside] == low[place]).all())
        assert bool((wide_high[inside] == high[place]).all())


def test_results_are_dense_in_the_memory_order():
    x = torch.randn(4, 3, 6, 10).contiguous(memory_format=torch.channels_last)
    low, _ = smallest_and_largest(x, (1, 1, 3, 5), (0, 2, 3, 1))
    assert low.is_contiguous(memory_format=torch.channels_last)


def test_one_group_or_one_an_index_is_spread_as_a_view():
    values = torch.randn(4, 3, 1, 1)
    wide = spread(values, (4, 3, 6, 10))
    assert wide.data_ptr() == values.data_ptr()
    assert wide.stride() == (3, 1, 0, 0)


def test_empty_and_scalar_tensors():
    low, high = smallest_and_largest(torch.tensor(3.0), (), ())
    assert float(low) == float(high) == 3.0
    assert float(spread(low, ())) == 3.0
    empty = torch.empty(4, 0)
    low, _ = smallest_and_largest(empty, choose_blocks(empty.shape, 16), (0, 1))
    assert spread(low, empty.shape).shape == (4, 0)
