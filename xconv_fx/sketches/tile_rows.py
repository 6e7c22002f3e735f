"""Rows of a tile's Walsh-Hadamard basis, drawn from a word of random bits a tile.

In: words (or a seed). Out: the numbers of the rows and the inverse of their probabilities. Levels,
rows and the proof that drawing is unbiased: see ``sketches.tiles``.

A row of level l in d dimensions is d numbers of L bits. Their bits below the level's finest,
which is bit L - l, are 0. Those above, ``d (l - 1)`` together, are uniform and shared by the draws
of a level, the j-th of which flips the bits of j, so that draws name different rows. Which axes
have the finest bit set comes from a table of 8 (16 in 3 dimensions) equally likely entries that
holds each single axis 3 times, each pair twice, all three once: the energy of activations falls
so, and probabilities are ratios of small integers. In one dimension there is no choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, known, numel_of
from xconv_fx.sketches.randomness import random_bits

# For each number of spatial dimensions: bits of a draw, and for each axis the entries of the table
# in which it has the finest bit set, as a bit mask.
_TYPE_BITS = (0, 3, 4)
_TYPE_MASKS = (
    (0b1,),
    (0b11_000_111, 0b11_111_000),
    (0b1_11_11_00_000_000_111, 0b1_11_00_11_000_111_000, 0b1_00_11_11_111_000_000),
)
# Draws of one level step through the table by this much: the next entry names other axes.
_TYPE_STEP = 3
_ROUND_STEP = 4
_STREAM = 11


class Rows(NamedTuple):
    """Rows of the bases of tiles, R a tile.

    Attributes:
        number: k, its bits axis by axis; int32 ``(R, *words)``.
        divisor: with the factors of :func:`row_factors`, ``1 / (m p(k)) = factor / divisor``; int32
            like ``number``, 1 in a level kept whole.
    """

    number: Tensor
    divisor: Tensor


def num_rows(num_spatial: int, level: int) -> int:
    """Count the rows of a level.

    Args:
        num_spatial: 1, 2 or 3 spatial dimensions d.
        level: 1 for the coarsest.

    Returns:
        ``(2^d - 1) 2^(d (level - 1))``.
    """
    return ((1 << num_spatial) - 1) << (num_spatial * (level - 1))


def sum_inverse_probabilities(num_spatial: int, level: int) -> float:
    """Sum ``1 / p(k)`` over the rows of a level, p(k) their probabilities in one draw.

    Args:
        num_spatial: 1, 2 or 3.
        level: 1 for the coarsest.

    Returns:
        The sum: ``n**2`` if the n rows were drawn evenly.
    """
    num_entries = _num_entries(num_spatial)
    kinds = sum(num_entries / (4 - code.bit_count()) for code in range(1, 1 << num_spatial))
    return kinds * (1 << 2 * num_spatial * (level - 1))


def num_planes(num_spatial: int, kept: Sequence[int]) -> int:
    """Count the numbers kept of a tile.

    Args:
        num_spatial: 1, 2 or 3.
        kept: m of each level, coarsest first.

    Returns:
        P; a level counts at most its number of rows.
    """
    return 1 + sum(min(m, num_rows(num_spatial, level)) for level, m in enumerate(kept, 1))


def row_factors(num_spatial: int, kept: Sequence[int]) -> list[float]:
    """Return the factor of each row that is kept, see :class:`Rows`.

    Args:
        num_spatial: 1, 2 or 3.
        kept: m of each level, coarsest first.
    """
    factors: list[float] = []
    for level, count in enumerate(kept, 1):
        present = num_rows(num_spatial, level)
        drawn = _num_entries(num_spatial) * 2.0 ** (num_spatial * (level - 1)) / count
        factors += [1.0] * present if count >= present else [drawn] * count
    return factors


def draw_words(grid: Size, seed: Tensor) -> Tensor:
    """Draw one random word for each tile of a sample, which its channels share.

    Args:
        grid: ``(N, C, *tile counts)``; the ints may be SymInts.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.

    Returns:
        int32 tensor ``(N, 1, *tile counts)``, each exactly uniform on 24 bits over a uniform seed.
    """
    shape = [grid[0], 1, *grid[2:]]
    numel = numel_of(shape)
    row = torch.arange(numel, device=seed.device)
    column = torch.zeros((), dtype=torch.int32, device=seed.device)
    row_bits = 16 if known(numel <= 2**16) else 48
    high, low = random_bits(row, column, seed, stream=_STREAM, row_bits=row_bits, column_bits=16)
    return (high * 2**8 + torch.bitwise_right_shift(low, 8)).view(shape)


def draw_rows(words: Tensor, num_spatial: int, side: int, kept: Sequence[int]) -> Rows:
    """Read the rows of every tile off its word.

    Args:
        words: int32, one a tile, uniform on 24 bits.
        num_spatial: 1, 2 or 3.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.

    Returns:
        The rows, level by level; at most 21 bits of a word are read.
    """
    numbers, divisors = [], []
    for level, count in enumerate(kept, 1):
        present = num_rows(num_spatial, level)
        index = torch.arange(min(count, present), dtype=torch.int32, device=words.device)
        index = index.view([-1] + [1] * words.dim())
        if count >= present:
            number = _number(*_all_rows(index, num_spatial), level, side)
            numbers.append(number.expand([present, *words.shape]))
            divisors.append(torch.ones_like(numbers[-1]))
            continue
        coarse, finest = _draw_level(words, index, num_spatial, level)
        numbers.append(_number(coarse, finest, level, side))
        divisors.append(4 - sum(finest[1:], start=finest[0]))
        words = torch.bitwise_right_shift(
            words, _num_coarse(num_spatial, level) + _TYPE_BITS[num_spatial - 1]
        )
    return Rows(torch.cat(numbers), torch.cat(divisors))


def _num_coarse(num_spatial: int, level: int) -> int:
    return num_spatial * (level - 1)


def _all_rows(index: Tensor, num_spatial: int) -> tuple[Tensor, list[Tensor]]:
    """Number the rows of a level kept whole: bits above the finest, and the finest of each axis."""
    kinds = 2**num_spatial - 1
    coarse = torch.div(index, kinds, rounding_mode="floor")
    kind = index - coarse * kinds + 1
    return coarse, [torch.bitwise_right_shift(kind, axis) & 1 for axis in range(num_spatial)]


def _draw_level(
    words: Tensor, draw: Tensor, num_spatial: int, level: int
) -> tuple[Tensor, list[Tensor]]:
    """Read the draws of a level off the lowest bits of the words, as :func:`_all_rows` does."""
    num_coarse = _num_coarse(num_spatial, level)
    type_bits, masks = _TYPE_BITS[num_spatial - 1], _TYPE_MASKS[num_spatial - 1]
    coarse = (words ^ draw) & (2**num_coarse - 1)
    # The steps come round after so many draws; another one keeps the next ones apart.
    rounds = torch.bitwise_right_shift(draw, max(num_coarse, type_bits))
    step = _TYPE_STEP * draw + _ROUND_STEP * rounds
    entry = (torch.bitwise_right_shift(words, num_coarse) + step) & (2**type_bits - 1)
    finest = [torch.bitwise_right_shift(torch.full_like(entry, mask), entry) & 1 for mask in masks]
    return coarse, finest


def _number(coarse: Tensor, finest: Sequence[Tensor], level: int, side: int) -> Tensor:
    """Write rows as numbers, from their bits above the finest and the finest of each axis."""
    num_bits = side.bit_length() - 1
    number = torch.zeros_like(finest[0])
    for axis, bit in enumerate(finest):
        high = torch.bitwise_right_shift(coarse, axis * (level - 1)) & (2 ** (level - 1) - 1)
        number = number + (high * 2 + bit) * 2 ** (num_bits - level + axis * num_bits)
    return number


def _num_entries(num_spatial: int) -> int:
    """Return the size of the table in which a kind of row has 4 - (axes of it) entries."""
    return 3 if num_spatial == 1 else 2 ** _TYPE_BITS[num_spatial - 1]
