"""Tiles whose details are kept as signs and lengths.

In: a floating tensor ``(N, C, *spatial)`` and a seed. Out: a byte and a length for every eight rows
of a tile, and its mean; and back. Rows and planes are those of ``sketches.tiles``; signs, lengths
and the proof that they are unbiased those of ``sketches.octonions``. Rows and octonions are drawn
apart from each other, so that the expectation of one is that of both in turn.

Shape legend: P planes, Q vectors of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size
from xconv_fx.sketches.octonions import draw_octonions, from_signs, num_vectors, to_signs
from xconv_fx.sketches.tile_rows import num_planes
from xconv_fx.sketches.tiles import draw_signs, grid_of, tile_with_rows, untile_with_rows


def sign_tile(
    x: Tensor,
    seed: Tensor,
    side: int,
    kept: Sequence[int],
    dim_order: Sequence[int],
    draw_signs: Callable[..., tuple[Tensor, Tensor]] = draw_signs,
    draw_octonions: Callable[..., Tensor] = draw_octonions,
) -> tuple[Tensor, Tensor]:
    """Sketch a tensor.

    Args:
        x: floating tensor ``(N, C, *spatial)``.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.
        draw_signs: ``sketches.tiles.draw_signs``, or an operator that does the same.
        draw_octonions: ``sketches.octonions.draw_octonions``, or an operator that does the same.

    Returns:
        Signs, uint8 ``(Q, N, C, *tile counts)``, and means and lengths ``(N, (1 + Q) C, *tile
        counts)``, float64 for float64 input, else float32; see ``sketches.octonions.to_signs``.
    """
    grid = grid_of(x.shape, side)
    rows, divisors = draw_signs(seed, grid, side, kept, dim_order)
    octonions = draw_octonions(seed, grid, num_vectors(num_planes(x.dim() - 2, kept)))
    planes = tile_with_rows(x, rows, divisors, side, kept, dim_order)
    return to_signs(planes.unbind(), octonions, dim_order)


def sign_untile(
    signs: Tensor,
    scalars: Tensor,
    seed: Tensor,
    size: Size,
    dtype: torch.dtype,
    side: int,
    kept: Sequence[int],
    dim_order: Sequence[int],
    draw_signs: Callable[..., tuple[Tensor, Tensor]] = draw_signs,
    draw_octonions: Callable[..., Tensor] = draw_octonions,
) -> Tensor:
    """Rebuild the tensor whose expectation is the sketched one.

    Args:
        signs: from :func:`sign_tile`.
        scalars: means and lengths from :func:`sign_tile`, perhaps rounded.
        seed: the seed that :func:`sign_tile` was given.
        size: shape ``(N, C, *spatial)`` of the result.
        dtype: dtype of the result.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.
        dim_order: dimensions of the result from outermost to innermost in memory.
        draw_signs: see :func:`sign_tile`.
        draw_octonions: see :func:`sign_tile`.

    Returns:
        Tensor of shape ``size`` whose memory order is ``dim_order``.
    """
    grid, count = grid_of(size, side), num_planes(len(size) - 2, kept)
    octonions = draw_octonions(seed, grid, num_vectors(count))
    planes = from_signs(signs, scalars, octonions, count, dim_order)
    rows, _ = draw_signs(seed, grid, side, kept, dim_order)
    return untile_with_rows(planes, rows, size, dtype, side, kept, dim_order)
