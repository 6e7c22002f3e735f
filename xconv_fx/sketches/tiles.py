"""Tiles: the mean of each, and its residual along a few randomly drawn Walsh-Hadamard rows.

In: a floating tensor ``(N, C, *spatial)`` with 1, 2 or 3 spatial dimensions, and one random word a
tile (or a seed). Out: planes, a few numbers a tile, which the caller quantises; and back. Which
rows a tile has is for ``sketches.tile_rows`` to say. Source: design, section 4, family 3.

A tile of T = t^d elements has the orthonormal rows ``h_k[i] = (-1)^parity(k & i) / sqrt(T)``, k
and i read as d numbers of L = log2(t) bits. Row 0 is the mean, the control variate. A row belongs
to the *level* of the finest bit set in it: level 1 tells the halves of a tile apart, level L
neighbours. From the ``n = (2^d - 1) 2^(d (level - 1))`` rows of a level m are drawn, and the tile
becomes, with ``c_k = <h_k, x>``,

    x_hat = mean + sum over levels of (1 / m) sum_j c_(k_j) / p(k_j) h_(k_j),

where p(k) > 0 is the probability of row k in one draw. **Unbiased:** for each draw
``E[c_k / p(k) h_k] = sum_k c_k h_k`` over the level; the mean of m draws has that expectation
whatever their dependence; and mean and levels add up to x, the rows being a basis. The same holds
of the parts of a level that have draws of their own (``sketches.tile_rows``). A level with
m >= n is kept whole: with all of them the tile is exact. Quantising the planes without bias, by
thresholds that do not depend on the rows, leaves the expectation. Tiles that stick out are filled
by repeating the last element and cut back when decoded: the expectation of an element does not
depend on what else its tile holds. The channels of a sample share their rows: the expected error
is a sum over channels and the same, but signs are then found once for all channels.

Why so: at equal bytes this gave the least error of the weight gradient among what a few fused
operations an element can do, on layers of a BN net trained on photographs. Worse were rows drawn
evenly from the whole tile, random signs, and single elements (most of the residual's energy lies
in the coarse levels, and a draw stands for all the others); a mean of 2 bits, whose
error is the same over the whole tile; coefficients of 2 bits, as the few large ones set the range.
Better by an eighth, at many times the work: rows drawn in proportion to the tile's own
coefficients, whose numbers must be kept and found by a running sum over all T rows.

Cells: 2^d neighbouring elements. Rows of all levels but the finest are constant on them, and one of
the finest changes its sign in them as its kind says. Where those kinds are known beforehand, sums
and differences of each cell are formed once, and rows go over cells: a quarter of the work in two
dimensions, and of the signs.

Shape legend: P = 1 + sum of m planes; "ordered" is a shape in memory order; "tiled" has each
spatial dimension split into (tile count, t), or with cells into (tile count, t / 2).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div, inverse, known, planes_order
from xconv_fx.sketches.quantize import compute_dtype
from xconv_fx.sketches.tile_rows import (
    ROWS_OF_A_WORD,
    Rows,
    draw_rows,
    draw_words,
    finest_kinds,
    has_cells,
    kept_rows,
    num_row_words,
)


def tile_with_rows(
    x: Tensor,
    signs: Tensor,
    divisors: Tensor,
    side: int,
    kept: Sequence[int],
    dim_order: Sequence[int],
) -> Tensor:
    """Sketch with given rows.

    Args:
        x: floating tensor ``(N, C, *spatial)``.
        signs: from :func:`draw_signs`.
        divisors: from :func:`draw_signs`.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        Planes ``(P, N, C, *tile counts)``, float64 for float64 input, else float32, in the memory
        order of ``layout.planes_order``.
    """
    num_spatial = x.dim() - 2
    tiled = _split(_fill(x.permute(list(dim_order)), side, dim_order), side, dim_order)
    tiled = tiled.to(compute_dtype(x.dtype))
    inner = _inner_dims(dim_order)
    share = 1.0 / side**num_spatial
    rows = kept_rows(num_spatial, kept)
    factors = [row.factor * share for row in rows]
    kinds = finest_kinds(num_spatial, kept)
    if kinds is None:
        parts, kinds = [tiled], [0] * len(factors)
    else:
        parts = _to_cells(tiled, dim_order)
    planes = [parts[0].sum(inner) * share]
    rest = iter(divisors)
    for row, sign, kind in zip(rows, _signs(signs, factors, tiled), kinds, strict=True):
        plane = (parts[kind] * sign).sum(inner)
        planes.append(plane / next(rest) if row.kind is None else plane)
    return torch.stack(planes, -2).permute(inverse(planes_order(dim_order)))


def untile_with_rows(
    planes: Tensor,
    signs: Tensor,
    size: Size,
    dtype: torch.dtype,
    side: int,
    kept: Sequence[int],
    dim_order: Sequence[int],
) -> Tensor:
    """Rebuild from given rows.

    Args:
        planes: tensor ``(P, N, C, *tile counts)``.
        signs: from :func:`draw_signs`.
        size: shape ``(N, C, *spatial)`` of the result.
        dtype: dtype of the result.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        Tensor of shape ``size`` whose memory order is ``dim_order``.
    """
    # A view of itself: Inductor (2.13) stores what as_strided reads. It would else write the
    # decoding of the planes into the loop over elements, T times the work.
    planes = planes.as_strided(planes.shape, planes.stride())
    ordered = planes.permute(planes_order(dim_order)).movedim(-2, 0)
    kinds = finest_kinds(len(size) - 2, kept)
    if kinds is not None and _is_cut_first(size, side, dim_order):
        value = _from_places(ordered, signs, kinds, size, side, dim_order)
        return value.to(dtype).permute(inverse(dim_order))
    rows = _signs(signs, [1.0] * (planes.shape[0] - 1), planes)
    if kinds is not None:
        value = _from_cells(ordered, rows, kinds, dim_order)
    else:
        mean, *drawn = (_spread(plane, dim_order) for plane in ordered)
        value = functools.reduce(torch.add, map(torch.mul, drawn, rows), mean)
    return _merge(value.to(dtype), size, side, dim_order)


def draw_signs(
    seed: Tensor, grid: Size, side: int, kept: Sequence[int], dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Draw the rows of all tiles of a sample, which its channels share.

    Args:
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        grid: ``(N, C, *tile counts)``; the ints may be SymInts.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
        dim_order: dimensions of the tensor from outermost to innermost in memory.

    Returns:
        Words, int32 ``(ceil(R / 31), *tiled)`` with R = P - 1, a bit a row that is set where the
        row, with its own sign, is negative; and the divisors of ``sketches.tile_rows``, int32
        ``(D, *ordered tile counts)``. Both with one channel.
    """
    return rows_of_words(draw_words(grid, seed), side, kept, dim_order)


def rows_of_words(
    words: Tensor, side: int, kept: Sequence[int], dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Read rows off words: what :func:`draw_signs` returns.

    Args:
        words: int32 tensor ``(N, 1, *tile counts)``, one a tile, uniform on 31 bits.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
        dim_order: dimensions of the tensor from outermost to innermost in memory.
    """
    ordered = words.permute(list(dim_order))
    rows = draw_rows(ordered, words.dim() - 2, side, kept)
    cells = has_cells(words.dim() - 2, kept)
    return _sign_words(rows, cells, dim_order), rows.divisors


def rows_sizes(
    grid: Size, side: int, kept: Sequence[int], dim_order: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the sizes of what :func:`draw_signs` returns."""
    num_spatial = len(grid) - 2
    ordered = [1 if dim == 1 else grid[dim] for dim in dim_order]
    inside = side_of_signs(num_spatial, side, kept)
    tiled: list[int] = []
    for extent, dim in zip(ordered, dim_order, strict=True):
        tiled += [extent, inside] if dim >= 2 else [extent]
    num_drawn = sum(row.kind is None for row in kept_rows(num_spatial, kept))
    return [num_row_words(num_spatial, kept), *tiled], [num_drawn, *ordered]


def side_of_signs(num_spatial: int, side: int, kept: Sequence[int]) -> int:
    """Return how many signs a row has along each spatial dimension: of cells, or of elements.

    Args:
        num_spatial: 1, 2 or 3.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
    """
    return side // 2 if has_cells(num_spatial, kept) else side


def tile(
    x: Tensor,
    seed: Tensor,
    side: int,
    kept: Sequence[int],
    dim_order: Sequence[int],
    draw: Callable[..., tuple[Tensor, Tensor]] = draw_signs,
) -> Tensor:
    """Sketch with words drawn from a seed.

    Args:
        x: floating tensor ``(N, C, *spatial)``.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.
        draw: :func:`draw_signs`, or an operator that does the same.

    Returns:
        Planes ``(P, N, C, *tile counts)``, see :func:`tile_with_rows`.
    """
    signs, divisors = draw(seed, grid_of(x.shape, side), side, kept, dim_order)
    return tile_with_rows(x, signs, divisors, side, kept, dim_order)


def untile(
    planes: Tensor,
    seed: Tensor,
    size: Size,
    dtype: torch.dtype,
    side: int,
    kept: Sequence[int],
    dim_order: Sequence[int],
    draw: Callable[..., tuple[Tensor, Tensor]] = draw_signs,
) -> Tensor:
    """Rebuild the tensor whose expectation is the sketched one.

    Args:
        planes: tensor ``(P, N, C, *tile counts)``.
        seed: the seed that :func:`tile` was given.
        size: shape ``(N, C, *spatial)`` of the result.
        dtype: dtype of the result.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
        dim_order: dimensions of the result from outermost to innermost in memory.
        draw: see :func:`tile`.

    Returns:
        Tensor of shape ``size`` whose memory order is ``dim_order``.
    """
    signs, _ = draw(seed, grid_of(size, side), side, kept, dim_order)
    return untile_with_rows(planes, signs, size, dtype, side, kept, dim_order)


def grid_of(size: Size, side: int) -> list[int]:
    """Return batch, channels and the number of tiles along each spatial dimension.

    Args:
        size: shape ``(N, C, *spatial)``; the ints may be SymInts.
        side: t.

    Returns:
        ``[N, C, *tile counts]``.
    """
    return [*size[:2], *(ceil_div(extent, side) for extent in size[2:])]


def _sign_words(rows: Rows, cells: bool, dim_order: Sequence[int]) -> Tensor:
    """Find the signs of ``sqrt(T) h_k`` at the elements of the tiles, 31 rows a word.

    Reading a bit of it costs less than finding the sign again for every channel. The parity of
    ``k & i`` is linear in i: the word of an element is the exclusive or of those of the elements
    ``2^b`` whose bits it has. With cells those of their first elements, whose lowest bits are 0.
    """
    num_spatial, first = len(dim_order) - 2, rows.negated.unsqueeze(-1)
    bits_of_axis = len(rows.bits) // num_spatial
    used = [bit for place, bit in enumerate(rows.bits) if not cells or place % bits_of_axis]
    side = 2 ** (len(used) // num_spatial)
    # The bits of a number are those of the first spatial dimension first: it varies the fastest.
    inside = {dim: len(dim_order) + num_spatial - 1 - (dim - 2) for dim in dim_order if dim >= 2}
    order: list[int] = []
    for place, dim in enumerate(dim_order):
        order += [place, inside[dim]] if dim >= 2 else [place]
    signs = []
    for word in range(len(rows.bits[0])):
        tiled = first
        for bit in used:
            flip = bit[word]
            flip = flip.unsqueeze(-1) if isinstance(flip, Tensor) else flip
            tiled = torch.cat([tiled, tiled ^ flip], -1)
        signs.append(tiled.view([*rows.negated.shape, *[side] * num_spatial]).permute(order))
    return torch.stack(signs).contiguous()  # a stack may take up the strides of its parts


def _signs(words: Tensor, factors: Sequence[float], like: Tensor) -> list[Tensor]:
    """Return the factor of every row at the elements, negated where the row is negative."""
    # A mask in place of a shift, which is slow where it is vectorised (Inductor 2.13).
    signs = []
    for i, factor in enumerate(factors):
        negative = (words[i // ROWS_OF_A_WORD] & 2 ** (i % ROWS_OF_A_WORD)) != 0
        signs.append(torch.where(negative, like.new_full((), -factor), like.new_full((), factor)))
    return signs


def _to_cells(tiled: Tensor, dim_order: Sequence[int]) -> list[Tensor]:
    """Form sums and differences over cells, by the axes along which the signs change."""
    parts = _unbind_cells(tiled, dim_order)
    for bit in (1 << axis for axis in _axes(dim_order)):
        parts = [
            parts[place ^ bit] - part if place & bit else part + parts[place | bit]
            for place, part in enumerate(parts)
        ]
    return parts


def _from_cells(
    ordered: Tensor, signs: Sequence[Tensor], kinds: Sequence[int], dim_order: Sequence[int]
) -> Tensor:
    """Add up rows over the cells of whole tiles."""
    inner, (first, *others) = _inner_dims(dim_order), _axes(dim_order)
    places = [place + earlier for earlier, place in enumerate(inner)][1:]

    def spread(plane: Tensor) -> Tensor:
        return _unsqueeze(_spread(plane, dim_order), places)

    like = spread(ordered[0])
    changes = {
        axis: _alternating(2, like, place) for axis, place in zip(others, places, strict=True)
    }
    signs = [_unsqueeze(sign, places) for sign in signs]
    halves = _halves(*_sums(ordered.unbind(), spread, signs, kinds, first, changes))
    return torch.stack(halves, inner[0] + 1)


def _is_cut_first(size: Size, side: int, dim_order: Sequence[int]) -> bool:
    """Whether to decode only what is not cut off: if that is fast.

    In three dimensions it takes twice as long as to decode whole tiles and to copy, unless channels
    lie innermost (Inductor 2.13).
    """
    spatial = [size[dim] for dim in dim_order if dim >= 2]
    is_static = all(isinstance(extent, int) for extent in spatial)
    is_cut = is_static and any(extent % side for extent in spatial)
    is_fast = len(spatial) < 3 or dim_order[-1] == 1
    return is_cut and is_fast


def _from_places(
    ordered: Tensor,
    words: Tensor,
    kinds: Sequence[int],
    size: Size,
    side: int,
    dim_order: Sequence[int],
) -> Tensor:
    """Add up rows over cells, at those places alone that are not cut off; return what is ordered.

    What is stacked and then cut, Inductor (2.13) stores twice: with what sticks out, and without.
    """
    axes = _axes(dim_order)
    first = axes[0]
    # Two by two along the first spatial dimension, unless a pair would be taken apart.
    paired = size[first + 2] % 2 == 0
    # Of each spatial dimension the places in a tile, and those to a sign; of the first one pairs.
    in_tile = {axis + 2: side for axis in axes}
    in_cell = {axis + 2: 2 for axis in axes}
    made = list(size)
    if paired:
        in_tile[first + 2], in_cell[first + 2], made[first + 2] = side // 2, 1, made[first + 2] // 2
    spread = functools.partial(_at_places, counts=in_tile, size=made, dim_order=dim_order)
    for place, dim in enumerate(dim_order, start=1):
        words = words.flatten(place, place + 1) if dim >= 2 else words
    signs = _signs(_at_places(words, in_cell, made, dim_order), [1.0] * len(kinds), ordered)
    place_of = {axis: dim_order.index(axis + 2) for axis in axes}
    changes = {
        axis: _alternating(size[axis + 2], ordered[0], place_of[axis])
        for axis in axes[1 if paired else 0 :]
    }
    level, change, last = _sums(ordered.unbind(), spread, signs, kinds, first, changes)
    if not paired:
        return level + change + last
    halves = _halves(level, change, last)
    return torch.stack(halves, place_of[first] + 1).flatten(place_of[first], place_of[first] + 1)


def _at_places(
    x: Tensor, counts: Mapping[int, int], size: Size, dim_order: Sequence[int]
) -> Tensor:
    """Repeat what is told of tiles or cells for each of their places, but those that stick out.

    Args:
        x: tensor ``(*ordered)`` or ``(rows, *ordered)``.
        counts: by spatial dimension how many places there are to each element of ``x``.
        size: how many places there are to be.
        dim_order: dimensions from outermost to innermost in memory.
    """
    for place, dim in enumerate(dim_order, start=x.dim() - len(dim_order)):
        if dim in counts:
            x = x.repeat_interleave(counts[dim], place).narrow(place, 0, size[dim])
    return x


def _alternating(count: int, like: Tensor, place: int) -> Tensor:
    """Return 1, -1, 1, ... along a dimension of a tensor, which it can be multiplied by."""
    signs = 1 - 2 * (torch.arange(count, device=like.device) % 2)
    return signs.to(like.dtype).view([-1] + [1] * (like.dim() - 1 - place))


def _sums(
    planes: Sequence[Tensor],
    spread: Callable[[Tensor], Tensor],
    signs: Sequence[Tensor],
    kinds: Sequence[int],
    first: int,
    changes: Mapping[int, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return three summands of the elements, by :func:`_halves` or as they are.

    The second is of the rows that change their sign along an axis, so that elements two by two are
    the sum and the difference of it and the others. Along further axes rows are multiplied by signs
    that are the same everywhere: what is stacked more than once, Inductor (2.13) would copy. The
    third is one row, with the mean: what reads sums alone gets a loop of another shape, before
    which they would be stored.

    Args:
        planes: the mean, and what was drawn of each row.
        spread: makes a plane broadcast over the elements.
        signs: of each row.
        kinds: of each row the axes along which its sign changes in a cell, a bit each.
        first: the axis, the first spatial one in memory.
        changes: for each of the other axes signs that alternate along it; for this one too where
            elements do not come two by two.
    """
    mean, *drawn = planes

    def times_sign(plane: Tensor, sign: Tensor, kind: int) -> Tensor:
        changing = (change for axis, change in changes.items() if kind >> axis & 1)
        return spread(plane) * functools.reduce(torch.mul, changing, sign)

    rows = list(zip(drawn, signs, kinds, strict=True))
    alike = [row for row in rows if not row[-1] >> first & 1]
    last = spread(mean) + times_sign(*alike.pop()) if alike else spread(mean)
    # A plane is spread, multiplied and added before the next: an interpreter has few in memory.
    changing = (times_sign(*row) for row in rows if row[-1] >> first & 1)
    change = functools.reduce(torch.add, changing)
    products = itertools.starmap(times_sign, alike)
    level = functools.reduce(torch.add, products) if alike else torch.zeros_like(change)
    return level, change, last


def _halves(level: Tensor, change: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the elements at even and those at odd places along the axis of :func:`_sums`."""
    return level + change + last, level - change + last


def _unbind_cells(tiled: Tensor, dim_order: Sequence[int]) -> list[Tensor]:
    """Return the elements of cells, the first spatial dimension's place as the lowest bit."""
    inner = _inner_dims(dim_order)
    shape = list(tiled.shape)
    for place in reversed(inner):
        shape[place : place + 1] = [shape[place] // 2, 2]
    parts = {0: tiled.reshape(shape)}
    places = [place + earlier + 1 for earlier, place in enumerate(inner)]
    for place, axis in reversed(list(zip(places, _axes(dim_order), strict=True))):
        parts = {
            key | index << axis: part.select(place, index)
            for key, part in parts.items()
            for index in (0, 1)
        }
    return [parts[key] for key in range(len(parts))]


def _axes(dim_order: Sequence[int]) -> list[int]:
    """Return the spatial dimensions, from 0 on, in memory order."""
    return [dim - 2 for dim in dim_order if dim >= 2]


def _inner_dims(dim_order: Sequence[int]) -> list[int]:
    """Return where the dimensions inside the tiles lie once the spatial ones are split."""
    inner: list[int] = []
    for place, dim in enumerate(dim_order):
        if dim >= 2:
            inner.append(place + len(inner) + 1)
    return inner


def _fill(ordered: Tensor, side: int, dim_order: Sequence[int]) -> Tensor:
    """Repeat the last elements where tiles stick out."""
    for place, dim in enumerate(dim_order):
        extent = ordered.shape[place]
        if dim >= 2 and not known(extent % side == 0):
            reach = torch.arange(ceil_div(extent, side) * side, device=ordered.device)
            ordered = ordered.index_select(place, reach.clamp_max(extent - 1))
    return ordered


def _split(ordered: Tensor, side: int, dim_order: Sequence[int]) -> Tensor:
    shape: list[int] = []
    for extent, dim in zip(ordered.shape, dim_order, strict=True):
        shape += [extent // side, side] if dim >= 2 else [extent]
    return ordered.reshape(shape)


def _spread(ordered: Tensor, dim_order: Sequence[int]) -> Tensor:
    """Make one number a tile broadcast over the elements of the tile."""
    return _unsqueeze(ordered, _inner_dims(dim_order))


def _unsqueeze(x: Tensor, places: Sequence[int]) -> Tensor:
    """Insert dimensions of size 1, places in rising order."""
    for place in places:
        x = x.unsqueeze(place)
    return x


def _merge(tiled: Tensor, size: Size, side: int, dim_order: Sequence[int]) -> Tensor:
    """Undo the split and cut off what stuck out."""
    grid = grid_of(size, side)
    ordered = tiled.reshape([grid[dim] * (side if dim >= 2 else 1) for dim in dim_order])
    cut = False
    for place, dim in enumerate(dim_order):
        if dim < 2 or known(size[dim] % side == 0):
            continue
        if isinstance(size[dim], int):
            ordered = ordered.narrow(place, 0, size[dim])
            cut = True
        else:
            # A gather, since narrowing would ask whether a dynamic size was cut at all.
            kept = torch.arange(size[dim], device=ordered.device)
            ordered = ordered.index_select(place, kept)
    # A clone, since contiguous() would ask for the sizes and so fix dynamic ones.
    dense = ordered.clone(memory_format=torch.contiguous_format) if cut else ordered
    return dense.permute(inverse(dim_order))
