import itertools
import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from xconv_fx.sketches.tile_rows import draw_rows, num_planes, num_rows
from xconv_fx.sketches.tiles import (
    draw_signs,
    grid_of,
    rows_of_words,
    tile,
    tile_with_rows,
    untile,
    untile_with_rows,
)

SEED = torch.tensor(2**61 + 424242)
# Whole tiles, partial tiles, and an extent below the side of a tile.
SHAPES = [
    (2, 3, 8),
    (2, 3, 7),
    (1, 2, 8, 4),
    (1, 2, 5, 7),
    (1, 2, 6, 3),
    (1, 2, 4, 4, 8),
    (1, 2, 5, 3, 2),
]


def orders(shape: tuple[int, ...]) -> list[list[int]]:
    return [list(range(len(shape))), [0, *range(2, len(shape)), 1]]


def laid_out(x: torch.Tensor, order: list[int]) -> torch.Tensor:
    return x.permute(order).contiguous().permute([order.index(d) for d in range(x.dim())])


def word_bits(num_spatial: int, num_levels: int) -> int:
    """The bits of a word that are read when every level is drawn from."""
    return sum(num_spatial * level + (0, 3, 4)[num_spatial - 1] for level in range(num_levels))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("side", "kept"), [(2, (1,)), (2, (2,)), (4, (1, 1)), (4, (2, 3)), (4, (1, 8))]
)
def test_unbiased_over_every_word(shape, side, kept):
    # All values of the bits that are read, each equally likely: the mean is E[untile(tile(x))].
    # Float64 sums of at most 2**11 terms: 1e-12 is far above rounding and far below any bias.
    x = torch.randn(shape, dtype=torch.float64)
    grid = grid_of(shape, side)
    order = list(range(len(shape)))
    num_words = 2 ** word_bits(len(shape) - 2, len(kept))
    total = torch.zeros_like(x)
    for word in range(num_words):
        words = torch.full([grid[0], 1, *grid[2:]], word, dtype=torch.int32)
        signs, divisors = rows_of_words(words, side, kept, order)
        planes = tile_with_rows(x, signs, divisors, side, kept, order)
        total += untile_with_rows(planes, signs, x.shape, x.dtype, side, kept, order)
    assert torch.allclose(total / num_words, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [2, 4])
def test_exact_when_every_row_is_kept(shape, side):
    levels = side.bit_length() - 1
    kept = [num_rows(len(shape) - 2, level) for level in range(1, levels + 1)]
    assert num_planes(len(shape) - 2, kept) == side ** (len(shape) - 2)
    for order in orders(shape):
        x = laid_out(torch.randn(shape, dtype=torch.float64), order)
        y = untile(tile(x, SEED, side, kept, order), SEED, shape, x.dtype, side, kept, order)
        assert torch.allclose(y, x, rtol=0, atol=1e-12)  # sums of 64 terms in float64
        assert y.stride() == x.stride()


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 6), (2, 3, 14), (2, 3, 10, 13), (2, 3, 7, 6), (1, 2, 6, 5, 9), (1, 2, 10, 8, 8)],
)
@pytest.mark.parametrize(("side", "levels"), [(4, 2), (8, 3)])
def test_what_sticks_out_does_not_change_what_stays(shape, side, levels):
    # The finest level has a row of each kind, so that rows go over cells.
    kept = [1] * (levels - 1) + [2 ** (len(shape) - 2) - 1]
    grid = grid_of(shape, side)
    whole = [*shape[:2], *(side * tiles for tiles in grid[2:])]
    for order in orders(shape):
        signs, divisors = draw_signs(SEED, grid, side, kept, order)
        x = laid_out(torch.randn(shape), order)
        planes = tile_with_rows(x, signs, divisors, side, kept, order)
        y, all_of_it = (
            untile_with_rows(planes, signs, size, torch.float32, side, kept, order)
            for size in (shape, whole)
        )
        assert y.stride() == x.stride()
        # The same sums in the same order.
        assert torch.equal(y, all_of_it[tuple(slice(extent) for extent in shape)])


@pytest.mark.parametrize("extents", [(26, 26), (26, 25), (25, 25), (25, 26)])
def test_no_step_of_decoding_makes_more_than_the_value(extents):
    size, side, kept, order = (2, 8, *extents), 8, (1, 2, 5), [0, 2, 3, 1]
    signs, divisors = draw_signs(SEED, grid_of(size, side), side, kept, order)
    planes = tile_with_rows(torch.ones(size), signs, divisors, side, kept, order)
    graph = make_fx(untile_with_rows)(planes, signs, size, torch.float32, side, kept, order).graph
    results = (n.meta.get("val") for n in graph.nodes if n.op == "call_function")
    made = [val.numel() for val in results if isinstance(val, torch.Tensor)]
    # What an interpreter runs one by one; the planes of all rows, spread, would be four values. A
    # plane is repeated over whole tiles along a dimension before it is cut, at once where elements
    # do not come in pairs.
    repeated = 1 if extents[0] % 2 == 0 else 32 / extents[1]
    assert max(made) == math.prod(size) * repeated


@pytest.mark.parametrize("cells", [False, True])
@pytest.mark.parametrize(("num_spatial", "side"), [(1, 8), (2, 2), (2, 8), (3, 4), (3, 8)])
def test_the_signs_are_those_of_walsh_and_hadamard(num_spatial, side, cells, numbers_of):
    levels = side.bit_length() - 1
    kept, order = [1] * levels, list(range(2 + num_spatial))
    if cells:  # as many draws as kinds, so that the finest level has each
        kept[-1] = 2**num_spatial - 1
    size = [1, 1] + [side] * num_spatial
    words = torch.full([1] * (2 + num_spatial), 0b101101110010110100111, dtype=torch.int32)
    signs, _ = rows_of_words(words, side, kept, order)
    rows = draw_rows(words, num_spatial, side, kept)
    numbers = numbers_of(rows, words, sum(kept))
    for plane, number in enumerate(numbers, 1):
        planes = torch.zeros([1 + len(numbers), 1, 1] + [1] * num_spatial)
        planes[plane] = 1
        y = untile_with_rows(planes, signs, size, torch.float32, side, kept, order)
        for place in itertools.product(range(side), repeat=num_spatial):
            element = sum(p << (axis * levels) for axis, p in enumerate(place))
            negative = (element & int(number)).bit_count() + int(rows.negated >> plane - 1 & 1)
            assert float(y[(0, 0, *place)]) == 1 - 2 * (negative % 2)


def test_a_smooth_tensor_costs_little_and_a_constant_one_nothing():
    x = torch.full((2, 3, 6, 9), 1.7)
    order = [0, 1, 2, 3]
    y = untile(tile(x, SEED, 4, (1, 1), order), SEED, x.shape, x.dtype, 4, (1, 1), order)
    assert torch.allclose(y, x, rtol=1e-6)  # a sum of 16 in float32
    ramp = torch.linspace(0, 1, 64).view(1, 1, 8, 8) + 5
    y = untile(tile(ramp, SEED, 4, (1, 1), order), SEED, ramp.shape, x.dtype, 4, (1, 1), order)
    assert float((y - ramp).square().sum() / ramp.square().sum()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_planes_are_wide_and_the_result_is_not(dtype):
    x = torch.randn(2, 3, 8, 8).to(dtype)
    planes = tile(x, SEED, 4, (1, 2), [0, 1, 2, 3])
    assert planes.shape == (4, 2, 3, 2, 2)
    assert planes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    y = untile(planes, SEED, x.shape, dtype, 4, (1, 2), [0, 1, 2, 3])
    assert (y.shape, y.dtype) == (x.shape, dtype)


def test_memory_order_changes_the_layout_and_no_number():
    x = torch.randn(2, 3, 7, 9)
    last = laid_out(x, [0, 2, 3, 1])
    plain_planes = tile(x, SEED, 4, (1, 2), [0, 1, 2, 3])
    last_planes = tile(last, SEED, 4, (1, 2), [0, 2, 3, 1])
    # Only the order of the 16 summands may differ.
    assert torch.allclose(plain_planes, last_planes, atol=1e-6)
    assert last_planes.permute(1, 3, 4, 0, 2).is_contiguous()
    y = untile(last_planes, SEED, x.shape, x.dtype, 4, (1, 2), [0, 2, 3, 1])
    assert y.stride() == last.stride()
