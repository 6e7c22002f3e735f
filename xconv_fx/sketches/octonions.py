"""Vectors of eight numbers kept as their length and eight signs, through a random octonion.

In: planes of a tile sketch (``sketches.tiles``) and a seed. Out: a byte and a length for every
eight planes behind the first; and back.

A vector y in R^8 is multiplied by a random octonion ``a`` of length 1, ``z = a y``, and the signs
of z are kept. With ``r_k`` the rows of that linear map, ``z_k = <r_k, y>``, the vector becomes

    y_hat = |y| / (8 kappa) sum_k sign(z_k) r_k,    kappa = E|u_1| = 32 / (35 pi)

for u uniform on the sphere S^7. **Unbiased:** each row is a, with signs and places changed in a
fixed way. So for a uniform on the sphere every row is, and then ``E[r_k sign <r_k, y>]`` points
along y, all directions across it being alike, with the length ``E|<r_k, y>| / |y| = kappa``. That
needs nothing of how the rows depend on each other. Rounding |y| without bias, with thresholds that
do not depend on a, leaves the expectation.

The rows are orthonormal, octonions being a composition algebra, hence ``|y_hat|^2`` is always
``|y|^2 / (8 kappa^2) = 1.476 |y|^2``: 8 bits and a length for a noise of 0.476. No rounding of the
numbers one by one comes near at one bit a number: a range that holds them all is several
deviations wide. There is no such product of 16 numbers (Hurwitz).

Why so: at equal bytes the error of the weight gradient fell to 0.5 to 0.65 of what 4 bits a
coefficient gave, on nets trained on photographs. 2 bits a coefficient, with thresholds crowded
around 0, gave a fifth more. Left out, as each needs more work or numbers: more draws for the tiles
with more detail (4 to 13 % less error, least with batch norm, where the samples of less contrast
have the larger gradients), a prediction of the details from neighbouring means, and cosines in
place of Walsh-Hadamard rows (some 5 % less noise each).

A uniform direction is that of 8 normal numbers (``randomness.gaussian``, whose grid of 2**-24 and
largest value of 5.9 move expectations by some 1e-7 at most). A length below 1e-19 in float32
comes back as 0 and one above 1e19 as inf, their squares being so.

Shape legend: Q = ceil((P - 1) / 8) vectors a tile, the last one filled up with zeros.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, inverse, known, numel_of
from xconv_fx.sketches.randomness import gaussian

DIM = 8
"""Numbers in an octonion."""

MEAN_ABS_COORDINATE = 32.0 / (35.0 * math.pi)
"""kappa: the mean of |u_1| over the unit sphere of R^8."""

_STREAM = 21
# Basis octonions multiply to e_i e_j = +-e_(i xor j), by the Cayley-Dickson construction; bit
# 8 k + j is set where e_(k xor j) e_j = -e_k.
_NEGATIVE = 0x4C_26_8A_E0_52_38_94_FE


def num_vectors(num_planes: int) -> int:
    """Count the vectors that hold all planes but the first.

    Args:
        num_planes: P, at least 1.

    Returns:
        Q.
    """
    return -(-(num_planes - 1) // DIM)


def draw_maps(seed: Tensor, grid: Size, count: int) -> Tensor:
    """Draw the maps ``y -> a y`` of each tile of a sample, which its channels share.

    Args:
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        grid: ``(N, C, *tile counts)``; the ints may be SymInts.
        count: Q.

    Returns:
        float32 tensor ``(Q, 8, 8, N, 1, *tile counts)``, see :func:`maps_of`.
    """
    shape = [grid[0], 1, *grid[2:]]
    numel = numel_of(shape)
    row = torch.arange(numel, device=seed.device)
    column = torch.arange(DIM * count, device=seed.device).unsqueeze(1)
    row_bits = 16 if known(numel <= 2**16) else 48
    normal = gaussian(row, column, seed, stream=_STREAM, row_bits=row_bits, column_bits=16)
    return maps_of(normal.view([count, DIM, *shape]))


def maps_of(octonions: Tensor) -> Tensor:
    """Write octonions as the matrices of ``y -> a y``.

    Args:
        octonions: floating tensor ``(Q, 8, ...)``, of any length but 0, which is divided out.

    Returns:
        Tensor ``(Q, 8, 8, ...)``: orthogonal matrices, row by row.
    """
    unit = octonions / octonions.square().sum(1, keepdim=True).sqrt()
    place = torch.arange(DIM * DIM, device=unit.device)
    taken = unit.index_select(1, torch.bitwise_right_shift(place, 3) ^ (place & (DIM - 1)))
    negative = torch.bitwise_right_shift(torch.full_like(place, _NEGATIVE), place) & 1
    signs = (1 - 2 * negative).to(unit.dtype).view([-1] + [1] * (unit.dim() - 2))
    return (taken * signs).view([unit.shape[0], DIM, DIM, *unit.shape[2:]])


def to_signs(planes: Tensor, maps: Tensor, dim_order: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Turn the planes behind the first into signs and lengths.

    Args:
        planes: floating tensor ``(P, N, C, *tile counts)``, P >= 2.
        maps: from :func:`draw_maps`, of the same grid and Q.
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        Signs, uint8 ``(Q, N, C, *tile counts)``, bit k set where z_k >= 0, in memory order plane
        by plane; and the first plane with the lengths behind it as further channels, ``(N,
        (1 + Q) C, *tile counts)`` in memory order, which rounds as an activation does.
    """
    order = _planes_order(dim_order)
    ordered = planes.permute(order)
    count = num_vectors(ordered.shape[0])
    numbers, missing = ordered[1:], DIM * count + 1 - ordered.shape[0]
    if missing:
        zeros = torch.zeros_like(ordered[:1]).expand([missing, *ordered.shape[1:]])
        numbers = torch.cat([numbers, zeros])
    y = numbers.reshape([count, DIM, *ordered.shape[1:]])
    turning = _ordered_maps(maps, planes.dtype, dim_order)
    # Written out: a reduction over eight would be a loop that Inductor (2.13) does not unroll.
    z = _sum([turning[:, :, j] * y[:, j].unsqueeze(1) for j in range(DIM)])
    codes = _sum([(z[:, k] >= 0).to(torch.int32) * (1 << k) for k in range(DIM)]).to(torch.uint8)
    lengths = _sum([y[:, j].square() for j in range(DIM)]).sqrt()
    kept = torch.cat([ordered[0], *lengths], dim_order.index(1))
    return codes.permute(inverse(order)), kept.permute(inverse(dim_order))


def from_signs(
    signs: Tensor, kept: Tensor, maps: Tensor, num_planes: int, dim_order: Sequence[int]
) -> Tensor:
    """Rebuild planes whose expectation is the given ones.

    Args:
        signs: uint8 ``(Q, N, C, *tile counts)`` from :func:`to_signs`.
        kept: first plane and lengths ``(N, (1 + Q) C, *tile counts)``, perhaps rounded.
        maps: those that :func:`to_signs` was given.
        num_planes: P.
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        Planes ``(P, N, C, *tile counts)`` of the dtype of ``kept``, in memory order plane by
        plane.
    """
    order = _planes_order(dim_order)
    codes = signs.permute(order).to(torch.int32)
    # A view of itself: Inductor (2.13) stores what as_strided reads. It would else round back a
    # length for each of its eight numbers.
    kept = kept.as_strided(kept.shape, kept.stride()).permute(list(dim_order))
    place = dim_order.index(1)
    split = [*kept.shape[:place], 1 + codes.shape[0], signs.shape[2], *kept.shape[place + 1 :]]
    scalars = kept.reshape(split).movedim(place, 0)
    turning = _ordered_maps(maps, kept.dtype, dim_order)
    # A mask in place of a shift, which is slow where it is vectorised (Inductor 2.13); written
    # out, see to_signs.
    positive = [(codes & 1 << k).unsqueeze(1) != 0 for k in range(DIM)]
    turned = _sum([torch.where(positive[k], turning[:, k], -turning[:, k]) for k in range(DIM)])
    lengths = scalars[1:] * (1.0 / (DIM * MEAN_ABS_COORDINATE))
    y = (turned * lengths.unsqueeze(1)).reshape([DIM * codes.shape[0], *scalars.shape[1:]])
    return torch.cat([scalars[:1], y[: num_planes - 1]]).permute(inverse(order))


def encode_planes(
    planes: Tensor,
    seed: Tensor,
    dim_order: Sequence[int],
    draw: Callable[..., Tensor] = draw_maps,
) -> tuple[Tensor, Tensor]:
    """Turn the planes behind the first into signs and lengths, by octonions drawn from a seed.

    Args:
        planes: floating tensor ``(P, N, C, *tile counts)``, P >= 2.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        dim_order: dimensions of a plane from outermost to innermost in memory.
        draw: :func:`draw_maps`, or an operator that does the same.

    Returns:
        Signs, and first plane and lengths, see :func:`to_signs`.
    """
    maps = draw(seed, planes.shape[1:], num_vectors(planes.shape[0]))
    return to_signs(planes, maps, dim_order)


def decode_planes(
    signs: Tensor,
    kept: Tensor,
    seed: Tensor,
    num_planes: int,
    dim_order: Sequence[int],
    draw: Callable[..., Tensor] = draw_maps,
) -> Tensor:
    """Rebuild planes, by the octonions of a seed.

    Args:
        signs: see :func:`from_signs`.
        kept: see :func:`from_signs`.
        seed: the seed that :func:`encode_planes` was given.
        num_planes: P.
        dim_order: dimensions of a plane from outermost to innermost in memory.
        draw: see :func:`encode_planes`.

    Returns:
        Planes ``(P, N, C, *tile counts)``, see :func:`from_signs`.
    """
    maps = draw(seed, signs.shape[1:], num_vectors(num_planes))
    return from_signs(signs, kept, maps, num_planes, dim_order)


def _planes_order(dim_order: Sequence[int]) -> list[int]:
    return [0, *(1 + dim for dim in dim_order)]


def _ordered_maps(maps: Tensor, dtype: torch.dtype, dim_order: Sequence[int]) -> Tensor:
    """Bring the dimensions of the tiles into memory order."""
    return maps.to(dtype).permute([0, 1, 2, *(3 + dim for dim in dim_order)])


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)
