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

Tiles along the last spatial dimension share their octonion: each is sketched without bias all the
same. What they have in common then is, given a, the mean over the random signs of their rows
(``sketches.tile_rows``): y, but for 0.02 to 0.25 of its length (numbers all alike, and very uneven
ones) where the whole error is 0.69 of it. The error of the weight gradient stayed the same within
4 % (on single nets and rungs 0.97 to 1.04), with a tenth of the numbers to draw.

A uniform direction is that of 8 normal numbers (``randomness.gaussians``, whose grid of 2**-24 and
largest value of 5.9 move expectations by some 1e-7 at most). A length below 1e-19 in float32
comes back as 0 and one above 1e19 as nan, their squares being 0 and inf.

Shape legend: Q = ceil((P - 1) / 8) vectors a tile, the last one filled up with zeros.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, inverse, planes_order, stack_order
from xconv_fx.sketches.randomness import gaussians

DIM = 8
"""Numbers in an octonion."""

MEAN_ABS_COORDINATE = 32.0 / (35.0 * math.pi)
"""kappa: the mean of |u_1| over the unit sphere of R^8."""

_STREAM = 1
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


def draw_octonions(seed: Tensor, grid: Size, count: int) -> Tensor:
    """Draw the octonions of the tiles of a sample, which its channels share.

    Args:
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        grid: ``(N, C, *tile counts)``; the ints may be SymInts.
        count: Q.

    Returns:
        float32 tensor ``(Q, 8, *sizes)`` of length 1 along dimension 1, with the sizes of
        :func:`octonions_grid`.
    """
    sizes = octonions_grid(grid)
    normal = gaussians([count * DIM, *sizes], seed, stream=_STREAM).view([count, DIM, *sizes])
    return normal / normal.square().sum(1, keepdim=True).sqrt()


def octonions_grid(grid: Size) -> list[int]:
    """Return how many octonions a vector has along each dimension; its channels share one.

    So do tiles along the last of two or three spatial dimensions.

    Args:
        grid: ``(N, C, *tile counts)``; the ints may be SymInts.
    """
    batch, _, *spatial = grid
    return [batch, 1, *spatial] if len(spatial) == 1 else [batch, 1, *spatial[:-1], 1]


def to_signs(
    planes: Sequence[Tensor], octonions: Tensor, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Turn the planes behind the first into signs and lengths.

    Args:
        planes: P >= 2 floating tensors ``(N, C, *tile counts)``.
        octonions: from :func:`draw_octonions`, of the same grid and Q.
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        Signs, uint8 ``(Q, N, C, *tile counts)``, bit k set where z_k >= 0, in memory order vector
        by vector; and the first plane with the lengths behind it as further channels, ``(N,
        (1 + Q) C, *tile counts)`` in memory order, which rounds as an activation does.
    """
    mean, *numbers = (plane.permute(list(dim_order)) for plane in planes)
    codes, lengths = [], []
    # Written out: a reduction over eight would be a loop that Inductor (2.13) does not unroll.
    for vector, a in enumerate(_ordered(octonions, mean.dtype, dim_order)):
        y = dict(enumerate(numbers[DIM * vector : DIM * (vector + 1)]))
        z = [_signed_sum({j: a[k ^ j] * y[j] for j in y}, _negative_columns(k)) for k in range(DIM)]
        bits = [(number >= 0).to(torch.int32) * (1 << k) for k, number in enumerate(z)]
        codes.append(_sum(bits).to(torch.uint8))
        lengths.append(_sum([number.square() for number in y.values()]).sqrt())
    signs = torch.stack(codes).permute(inverse(stack_order(dim_order)))
    kept = torch.cat([mean, *lengths], dim_order.index(1))
    return signs, kept.permute(inverse(dim_order))


def from_signs(
    signs: Tensor, kept: Tensor, octonions: Tensor, num_planes: int, dim_order: Sequence[int]
) -> Tensor:
    """Rebuild planes whose expectation is the given ones.

    Args:
        signs: uint8 ``(Q, N, C, *tile counts)`` from :func:`to_signs`.
        kept: first plane and lengths ``(N, (1 + Q) C, *tile counts)``, perhaps rounded.
        octonions: those that :func:`to_signs` was given.
        num_planes: P.
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        Planes ``(P, N, C, *tile counts)`` of the dtype of ``kept``, in the memory order of
        ``layout.planes_order``.
    """
    # A view of itself: Inductor (2.13) stores what as_strided reads. It would else round back a
    # length for each of its eight numbers.
    kept = kept.as_strided(kept.shape, kept.stride()).permute(list(dim_order))
    mean, *lengths = kept.chunk(1 + signs.shape[0], dim_order.index(1))
    codes = signs.permute(stack_order(dim_order)).to(torch.int32)
    rebuilt = []
    for vector, a in enumerate(_ordered(octonions, kept.dtype, dim_order)):
        length = lengths[vector] * (1.0 / (DIM * MEAN_ABS_COORDINATE))
        # A mask in place of a shift, which is slow where it is vectorised (Inductor 2.13).
        positive = [codes[vector] & 1 << k != 0 for k in range(DIM)]
        z = [torch.where(positive[k], length, -length) for k in range(DIM)]
        for j in range(min(DIM, num_planes - 1 - DIM * vector)):
            terms = {k: a[k ^ j] * z[k] for k in range(DIM)}
            rebuilt.append(_signed_sum(terms, {k for k in terms if j in _negative_columns(k)}))
    return torch.stack([mean, *rebuilt], -2).permute(inverse(planes_order(dim_order)))


def _ordered(octonions: Tensor, dtype: torch.dtype, dim_order: Sequence[int]) -> list[list[Tensor]]:
    """Return the eight numbers of each octonion, with the dimensions of tiles in memory order."""
    order = [0, 1, *(2 + dim for dim in dim_order)]
    return [list(octonion.unbind()) for octonion in octonions.to(dtype).permute(order).unbind()]


def _negative_columns(k: int) -> set[int]:
    """Return j where row k of the map ``y -> a y`` has ``-a_(k xor j)``."""
    return {j for j in range(DIM) if _NEGATIVE >> (DIM * k + j) & 1}


def _signed_sum(terms: Mapping[int, Tensor], negative: Container[int]) -> Tensor:
    """Add up the terms, those with negative keys subtracted."""
    added = [term for key, term in terms.items() if key not in negative]
    taken = [term for key, term in terms.items() if key in negative]
    if not added:
        return -_sum(taken)
    return functools.reduce(torch.sub, taken, _sum(added))


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)
