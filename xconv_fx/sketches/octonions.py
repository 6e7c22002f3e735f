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

Why so: at equal bytes the error of the weight gradient fell to 0.5 to 0.8 of what 4 bits a
coefficient gave, and below that of 2 bits a coefficient with thresholds crowded around 0.

A uniform direction is that of 8 normal numbers (``randomness.gaussian``, whose grid of 2**-24 and
largest value of 5.9 move expectations by some 1e-7 at most). A length below 1e-19 in float32
comes back as 0 and one above 1e19 as inf, their squares being so.

Shape legend: Q = ceil((P - 1) / 8) vectors a tile, the last one filled up with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div, inverse, known, numel_of
from xconv_fx.sketches.randomness import gaussian

DIM = 8
"""Numbers in an octonion."""

MEAN_ABS_COORDINATE = 32.0 / (35.0 * math.pi)
"""kappa: the mean of |u_1| over the unit sphere of R^8."""

_STREAM = 21
# Basis octonions multiply to e_i e_j = +-e_(i xor j), by the Cayley-Dickson construction; bit j of
# entry k is set where e_(k xor j) e_j = -e_k.
_NEGATIVE = (0xFE, 0x94, 0x38, 0x52, 0xE0, 0x8A, 0x26, 0x4C)


def num_vectors(num_planes: int) -> int:
    """Count the vectors that hold all planes but the first.

    Args:
        num_planes: P, at least 1.

    Returns:
        Q.
    """
    return -(-(num_planes - 1) // DIM)


def times(a: Sequence[Tensor], y: Sequence[Tensor | None]) -> list[Tensor]:
    """Multiply octonions.

    Args:
        a: 8 tensors.
        y: 8 tensors that broadcast with them, None for zero; not all are.

    Returns:
        The 8 numbers of ``a y``.
    """
    return [_combine([(a[k ^ j], _sign(k, j)) for j in range(DIM)], y) for k in range(DIM)]


def transposed_times(a: Sequence[Tensor], z: Sequence[Tensor]) -> list[Tensor]:
    """Apply the transpose of the map ``y -> a y``, its inverse for ``|a| = 1``.

    Args:
        a: 8 tensors.
        z: 8 tensors that broadcast with them.

    Returns:
        8 numbers.
    """
    return [_combine([(a[k ^ j], _sign(k, j)) for k in range(DIM)], z) for j in range(DIM)]


def draw_octonions(grid: Size, count: int, seed: Tensor) -> Tensor:
    """Draw unit octonions for each tile of a sample, which its channels share.

    Args:
        grid: ``(N, C, *tile counts)``; the ints may be SymInts.
        count: Q.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.

    Returns:
        float32 tensor ``(Q, 8, N, 1, *tile counts)``, uniform on the sphere along the second
        dimension, up to the precision of the normal numbers.
    """
    shape = [grid[0], 1, *grid[2:]]
    numel = numel_of(shape)
    row = torch.arange(numel, device=seed.device)
    column = torch.arange(DIM * count, device=seed.device).unsqueeze(1)
    row_bits = 16 if known(numel <= 2**16) else 48
    normal = gaussian(row, column, seed, stream=_STREAM, row_bits=row_bits, column_bits=16)
    normal = normal.view([count, DIM, *shape])
    drawn = normal / normal.square().sum(1, keepdim=True).sqrt()
    # A view of itself, which Inductor (2.13) stores: it would else draw them for every channel.
    return drawn.as_strided(drawn.shape, drawn.stride())


def to_signs(
    planes: Tensor, octonions: Tensor, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Turn the planes behind the first into signs and lengths.

    Args:
        planes: floating tensor ``(P, N, C, *tile counts)``, P >= 2.
        octonions: from :func:`draw_octonions`, of the same grid and Q.
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        Signs, uint8 ``(Q, N, C, *tile counts)``, bit k set where z_k >= 0; and the first plane
        with the lengths behind it, ``(1 + Q, N, C, *tile counts)``. Both in memory order plane by
        plane.
    """
    ordered = planes.permute(_planes_order(dim_order))
    turned = octonions.to(planes.dtype).permute([0, 1, *(2 + dim for dim in dim_order)])
    signs, kept = [], [ordered[0]]
    for vector in range(num_vectors(len(planes))):
        y = _vector(ordered, vector)
        squares = [number.square() for number in y if number is not None]
        kept.append(sum(squares[1:], squares[0]).sqrt())
        code = torch.zeros_like(ordered[0], dtype=torch.int32)
        for k, z in enumerate(times(turned[vector].unbind(), y)):
            code = code | torch.where(z >= 0, 1 << k, 0).to(torch.int32)
        signs.append(code.to(torch.uint8))
    back = inverse(_planes_order(dim_order))
    return torch.stack(signs).permute(back), torch.stack(kept).permute(back)


def from_signs(
    signs: Tensor, kept: Tensor, octonions: Tensor, num_planes: int, dim_order: Sequence[int]
) -> Tensor:
    """Rebuild planes whose expectation are the given ones.

    Args:
        signs: uint8 ``(Q, N, C, *tile counts)`` from :func:`to_signs`.
        kept: first plane and lengths ``(1 + Q, N, C, *tile counts)``, perhaps rounded.
        octonions: those that :func:`to_signs` was given.
        num_planes: P.
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        Planes ``(P, N, C, *tile counts)`` of the dtype of ``kept``, in memory order plane by
        plane.
    """
    order = _planes_order(dim_order)
    codes, scalars = signs.permute(order).to(torch.int32), kept.permute(order)
    turned = octonions.to(kept.dtype).permute([0, 1, *(2 + dim for dim in dim_order)])
    planes = [scalars[0]]
    for vector in range(num_vectors(num_planes)):
        length = scalars[1 + vector] * (1.0 / (DIM * MEAN_ABS_COORDINATE))
        bits = [torch.bitwise_right_shift(codes[vector], k) & 1 for k in range(DIM)]
        z = [(2 * bit - 1).to(kept.dtype) for bit in bits]
        y = transposed_times(turned[vector].unbind(), z)
        planes += [number * length for number in y]
    return torch.stack(planes[:num_planes]).permute(inverse(order))


def encode_planes(
    planes: Tensor, seed: Tensor, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Turn the planes behind the first into signs and lengths, by octonions drawn from a seed.

    Args:
        planes: floating tensor ``(P, N, C, *tile counts)``, P >= 2.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        Signs, and first plane and lengths, see :func:`to_signs`.
    """
    octonions = draw_octonions(planes.shape[1:], num_vectors(planes.shape[0]), seed)
    return to_signs(planes, octonions, dim_order)


def decode_planes(
    signs: Tensor, kept: Tensor, seed: Tensor, num_planes: int, dim_order: Sequence[int]
) -> Tensor:
    """Rebuild planes, by the octonions of a seed.

    Args:
        signs: see :func:`from_signs`.
        kept: see :func:`from_signs`.
        seed: the seed that :func:`encode_planes` was given.
        num_planes: P.
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        Planes ``(P, N, C, *tile counts)``, see :func:`from_signs`.
    """
    octonions = draw_octonions(signs.shape[1:], num_vectors(num_planes), seed)
    return from_signs(signs, kept, octonions, num_planes, dim_order)


def _planes_order(dim_order: Sequence[int]) -> list[int]:
    return [0, *(1 + dim for dim in dim_order)]


def _vector(ordered: Tensor, vector: int) -> list[Tensor | None]:
    """Take the planes of a vector, None where it is filled up."""
    first = 1 + DIM * vector
    present = [ordered[i] for i in range(first, min(first + DIM, len(ordered)))]
    return [*present, *[None] * (DIM - len(present))]


def _sign(k: int, j: int) -> bool:
    """Say whether a's number k xor j enters number k of ``a y`` with a minus before y's j."""
    return bool(_NEGATIVE[k] >> j & 1)


def _combine(
    factors: Sequence[tuple[Tensor, bool]], numbers: Sequence[Tensor | None]
) -> Tensor:
    """Sum products with signs, skipping the numbers that are None."""
    total: Tensor | None = None
    for (factor, negative), number in zip(factors, numbers, strict=True):
        if number is None:
            continue
        term = factor * number
        if total is None:
            total = -term if negative else term
        else:
            total = total - term if negative else total + term
    assert total is not None
    return total
