"""Rows of a tile's Walsh-Hadamard basis, drawn from a word of random bits a tile.

In: words (or a seed). Out: the bits of the rows' numbers, those of all rows in a word, the inverse
of their probabilities, and signs for them. Levels, rows and the proof that drawing is unbiased: see
``sketches.tiles``.

A row of level l in d dimensions is d numbers of L bits. Their bits below the level's finest,
which is bit L - l, are 0. Those above, ``d (l - 1)`` together, are uniform and shared by the draws
of a level, the j-th of which flips the bits of j, so that the draws of a kind name different rows.

Which axes have the finest bit set is the *kind* of a row; a level has ``2^d - 1`` kinds of ``n_k =
2^(d (l - 1))`` rows. With as many draws as kinds each kind is *allotted* its own, ``m_k``, and what
it stands for is estimated by itself: ``1 / (m p)`` becomes ``n_k / m_k``, 1 for a kind that is kept
whole. They are shared out so that ``sum_k w_k^2 / m_k`` is least, with the weights ``w`` = 3 for
single axes, 2 for pairs, 1 for all three: the energy of activations falls by kinds as ``w^2``
does. With fewer draws the kind is drawn too, in proportion to w, from a table of 8 (16 in 3
dimensions) equally likely entries. In one dimension there is one kind.

Every row comes with a random sign, which sketching and rebuilding have both and so cancels: what
rounds a coefficient then errs to either side alike, and tiles that share the octonions of
``sketches.octonions`` do not share their errors. There are 31 signs a tile: of more rows the 32nd
has that of the first, and the last of the 31 depend on which rows were drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size
from xconv_fx.sketches.randomness import WORD_BITS, random_words

# In 2 and 3 dimensions: bits of the draw of a kind, and for each axis the entries of the table in
# which it has the finest bit set, as a bit mask.
_KIND_BITS = {2: 3, 3: 4}
_KIND_MASKS = {
    2: (0b11_000_111, 0b11_111_000),
    3: (0b1_11_11_00_000_000_111, 0b1_11_00_11_000_111_000, 0b1_00_11_11_111_000_000),
}
# Draws of one level step through the table by this much: the next entry names other axes. Of six,
# which is three dimensions' most, two may name the same.
_KIND_STEP = 3
_STREAM = 0

ROWS_OF_A_WORD = WORD_BITS
"""Rows whose bits a word holds."""


class Rows(NamedTuple):
    """Rows of the bases of tiles, R a tile, of which the kinds of D are drawn.

    Attributes:
        bits: for each bit of k, lowest first and axis by axis, ``ceil(R / 31)`` words: int32 of
            the shape of the drawn words, or an int where all tiles have the same. Bit ``r % 31`` of
            word ``r // 31`` is that of row r.
        divisors: with the factors of :class:`KeptRow`, ``1 / (m p(k)) = factor / divisor`` of
            rows whose kinds are drawn, int32 ``(D, *words)``; 1 of all others.
        negated: int32 of the shape of the drawn words; bit ``r % 31`` is set where row r has a
            negative sign.
    """

    bits: list[list[Tensor | int]]
    divisors: Tensor
    negated: Tensor


def num_rows(num_spatial: int, level: int) -> int:
    """Count the rows of a level.

    Args:
        num_spatial: 1, 2 or 3 spatial dimensions d.
        level: 1 for the coarsest.

    Returns:
        ``(2^d - 1) 2^(d (level - 1))``.
    """
    return ((1 << num_spatial) - 1) << (num_spatial * (level - 1))


@functools.cache
def allotment(num_spatial: int, level: int, count: int) -> tuple[int, ...] | None:
    """Share the draws of a level out among the kinds of its rows.

    Args:
        num_spatial: 1, 2 or 3.
        level: 1 for the coarsest.
        count: draws; more than the level has rows are as many as it has.

    Returns:
        For each kind, a bit mask of axes from 1 on, its number of draws, 1 at least; None with
        fewer draws than kinds.
    """
    weights = [_weight(kind) for kind in range(1, 1 << num_spatial)]
    if count < len(weights):
        return None
    shares, present = [1] * len(weights), 1 << (num_spatial * (level - 1))
    for _ in range(min(count, num_rows(num_spatial, level)) - len(weights)):
        pairs = zip(weights, shares, strict=True)
        gains = [w**2 / (m * (m + 1)) if m < present else 0.0 for w, m in pairs]
        shares[gains.index(max(gains))] += 1
    return tuple(shares)


class KeptRow(NamedTuple):
    """What is known of a row before any word is drawn.

    Attributes:
        level: its level, 1 for the coarsest.
        draw: its place among the draws of the level.
        kind: the axes that have the finest bit set, a bit mask; None where that is drawn.
        factor: with the divisor of :class:`Rows`, ``1 / (m p(k)) = factor / divisor``.
        moment: the second moment of ``c_k / (m p(k))`` for coefficients of variance 1: ``sum_k 1 /
            (m^2 p(k))`` over the rows of the level, or of the kind where kinds are allotted; 1 of
            what is kept whole.
    """

    level: int
    draw: int
    kind: int | None
    factor: float
    moment: float


def kept_rows(num_spatial: int, kept: Sequence[int]) -> list[KeptRow]:
    """List the rows that are kept, level by level, and kind by kind where kinds are allotted.

    Args:
        num_spatial: 1, 2 or 3.
        kept: m of each level, coarsest first.
    """
    rows: list[KeptRow] = []
    for level, count in enumerate(kept, 1):
        present = 1 << (num_spatial * (level - 1))
        shares = allotment(num_spatial, level, count)
        if shares is None:
            entries = 1 << _KIND_BITS[num_spatial]
            inverse = sum(entries / _weight(kind) for kind in range(1, 1 << num_spatial))
            factor, moment = entries * present / count, inverse * (present / count) ** 2
            rows += [KeptRow(level, draw, None, factor, moment) for draw in range(count)]
            continue
        kinds = [kind for kind, share in enumerate(shares, 1) for _ in range(share)]
        for draw, kind in enumerate(kinds):
            factor = present / shares[kind - 1]
            rows.append(KeptRow(level, draw, kind, factor, factor**2))
    return rows


def finest_kinds(num_spatial: int, kept: Sequence[int]) -> list[int] | None:
    """Return how each row that is kept changes between neighbouring elements.

    Args:
        num_spatial: 1, 2 or 3.
        kept: m of each level, coarsest first.

    Returns:
        For each row the axes, a bit mask, along which its sign changes within each pair of
        elements: its kind in the finest level, 0 in the others. None where kinds of the finest
        level are drawn.
    """
    if not has_cells(num_spatial, kept):
        return None
    finest = len(kept)
    rows = kept_rows(num_spatial, kept)
    return [row.kind or 0 if row.level == finest else 0 for row in rows]


def has_cells(num_spatial: int, kept: Sequence[int]) -> bool:
    """Say whether kinds of the finest level are allotted, so that rows go over cells.

    Args:
        num_spatial: 1, 2 or 3.
        kept: m of each level, coarsest first.
    """
    return allotment(num_spatial, len(kept), kept[-1]) is not None


def num_planes(num_spatial: int, kept: Sequence[int]) -> int:
    """Count the numbers kept of a tile.

    Args:
        num_spatial: 1, 2 or 3.
        kept: m of each level, coarsest first.

    Returns:
        P; a level counts at most its number of rows.
    """
    return 1 + sum(min(m, num_rows(num_spatial, level)) for level, m in enumerate(kept, 1))


def draw_words(grid: Size, seed: Tensor) -> Tensor:
    """Draw one random word for each tile of a sample, which its channels share.

    Args:
        grid: ``(N, C, *tile counts)``; the ints may be SymInts.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.

    Returns:
        int32 tensor ``(N, 1, *tile counts)``, each exactly uniform on 31 bits over a uniform seed.
    """
    return random_words([grid[0], 1, *grid[2:]], seed, stream=_STREAM)


def draw_rows(words: Tensor, num_spatial: int, side: int, kept: Sequence[int]) -> Rows:
    """Read the rows of every tile off its word.

    The draws of a level differ from each other in constants alone, unless kinds are drawn: one
    bit of the word is one bit of all of them, and no row needs a tensor of its own.

    Args:
        words: int32, one a tile, uniform on 31 bits.
        num_spatial: 1, 2 or 3.
        side: t, 2, 4 or 8.
        kept: m of each level, coarsest first.

    Returns:
        The rows, level by level; their numbers take at most 21 bits of a word, which are the last
        to be read as signs.
    """
    sources = _sources(num_spatial, side, tuple(kept))
    bits: list[list[Tensor | int]] = [list(words_of_place) for words_of_place in sources.constant]
    _flip_uniform(bits, sources, words)
    divisors = [words.new_empty([0, *words.shape])]
    lowest = len(sources.uniform)  # bit of the words that was not read yet
    for draws in sources.kinds:
        entries = torch.bitwise_right_shift(words, lowest) & 2 ** _KIND_BITS[num_spatial] - 1
        lowest += _KIND_BITS[num_spatial]
        kinds = [_drawn_kind(entries, draw, num_spatial) for draw in range(len(draws))]
        for kind, masks_of_axis in zip(kinds, draws, strict=True):
            for has_axis, (place, masks) in zip(kind, masks_of_axis, strict=True):
                _flip(bits[place], masks, has_axis)
        divisors.append(torch.stack([4 - sum(kind[1:], start=kind[0]) for kind in kinds]))
    negated = torch.bitwise_right_shift(words, lowest)
    if lowest:
        negated = negated | (words & 2**lowest - 1) * 2 ** (ROWS_OF_A_WORD - lowest)
    return Rows(bits, torch.cat(divisors), negated)


def num_row_words(num_spatial: int, kept: Sequence[int]) -> int:
    """Count the words that hold a bit of each row.

    Args:
        num_spatial: 1, 2 or 3.
        kept: m of each level, coarsest first.
    """
    return -(-(num_planes(num_spatial, kept) - 1) // ROWS_OF_A_WORD)


class _Sources(NamedTuple):
    """What each bit of the rows' numbers depends on; a mask has a bit a row, 31 rows each.

    Attributes:
        constant: for each bit of k the masks of the rows in which it is set by itself.
        uniform: for each random bit that is drawn, the bit of k that it flips, and in which rows.
        kinds: for each level whose kinds are drawn, and each draw, the same of each axis.
    """

    constant: list[list[int]]
    uniform: list[tuple[int, list[int]]]
    kinds: list[list[list[tuple[int, list[int]]]]]


@functools.cache
def _sources(num_spatial: int, side: int, kept: tuple[int, ...]) -> _Sources:
    num_levels, num_words = side.bit_length() - 1, num_row_words(num_spatial, kept)
    sources = _Sources([[0] * num_words for _ in range(num_spatial * num_levels)], [], [])

    def masks(rows: Iterable[int]) -> list[int]:
        result = [0] * num_words
        for row in rows:
            result[row // ROWS_OF_A_WORD] |= 1 << row % ROWS_OF_A_WORD
        return result

    def set_constant(place: int, rows: Iterable[int]) -> None:
        pairs = zip(sources.constant[place], masks(rows), strict=True)
        sources.constant[place] = [word ^ mask for word, mask in pairs]

    table = list(enumerate(kept_rows(num_spatial, kept)))
    for level in range(1, num_levels + 1):
        rows = [(number, row) for number, row in table if row.level == level]
        finest = [axis * num_levels + num_levels - level for axis in range(num_spatial)]
        for coarse in range(num_spatial * (level - 1)):
            axis, above = divmod(coarse, level - 1)
            place = finest[axis] + 1 + above
            sources.uniform.append((place, masks(number for number, _ in rows)))
            set_constant(place, (number for number, row in rows if row.draw >> coarse & 1))
        if any(row.kind is None for _, row in rows):
            sources.kinds.append([[(p, masks([number])) for p in finest] for number, _ in rows])
            continue
        for axis, place in enumerate(finest):
            set_constant(place, (number for number, row in rows if (row.kind or 0) >> axis & 1))
    return sources


def _flip_uniform(bits: list[list[Tensor | int]], sources: _Sources, words: Tensor) -> None:
    """Flip bits by the lowest bits of the drawn words."""
    places = torch.arange(len(sources.uniform), dtype=torch.int32, device=words.device)
    places = places.view([-1] + [1] * words.dim())
    drawn = torch.bitwise_right_shift(words, places).bitwise_and_(1).unbind()
    for bit, (place, masks) in zip(drawn, sources.uniform, strict=True):
        _flip(bits[place], masks, bit)


def _flip(words: list[Tensor | int], masks: Sequence[int], bit: Tensor) -> None:
    """Exclusive-or a bit into the bits of the masked rows."""
    for place, mask in enumerate(masks):
        if mask:
            flipped, before = bit * mask, words[place]
            words[place] = flipped if isinstance(before, int) and not before else flipped ^ before


def _weight(kind: int) -> int:
    """Return how likely a kind is drawn, in entries of the table."""
    return 4 - kind.bit_count()


def _drawn_kind(entries: Tensor, draw: int, num_spatial: int) -> list[Tensor]:
    """Return for each axis whether a draw has the finest bit set, by an entry of the table."""
    entry = (entries + _KIND_STEP * draw).bitwise_and_(2 ** _KIND_BITS[num_spatial] - 1)
    return [
        torch.bitwise_right_shift(torch.full_like(entry, mask), entry).bitwise_and_(1)
        for mask in _KIND_MASKS[num_spatial]
    ]
