"""Counter-based random numbers in plain integer arithmetic.

Owns every random number of the sketches. In: a seed and a (row, column) counter. Out: bits,
uniforms, signs and normals that depend on nothing else, so that forward and backward graphs
redraw the same numbers and nothing random is stored (design, section 4). It leaves to others
where the seed comes from and how elements are numbered.

The generator is a balanced Feistel network on two 16-bit halves held in int32. Its round function
is ``F(h, key) = (((h ^ key) * C) >> 8) & 0xFFFF`` with a 15-bit constant C, so that no product
reaches 2**31: signed overflow is undefined behaviour in the C++ that Inductor generates.

The seed is a 0-dim int64 tensor in [0, 2**62). Its low 32 bits whiten the state, the upper 30
bits give the round keys. A Feistel network is a bijection of its 32-bit state whatever F is; so
**for a fixed counter and fixed upper seed bits the output is a bijection of the low 32 seed bits,
and over a uniform seed each output word is exactly uniform on 2**32 values.** Each threshold and
sign is therefore exactly uniform; independence between counters is statistical and tested.

Six rounds: with four or five, neighbouring columns or seeds that differ in one bit show
correlations above 5 standard errors in 131,072 draws; with six none does. The first round reads the
row alone, so compilers hoist it out of the loop over columns.

What is drawn by single operators, outside of compiled loops, comes from :func:`random_words`: a
third of the operations, in int64, by the same argument exactly uniform on 31 bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, numel_of

SEED_BOUND = 2**62
"""Seeds are drawn from [0, SEED_BOUND)."""

NUM_STARTS = 32
"""Samples that start a lattice of thresholds each; sample n + 32 starts where sample n does."""

_NUM_ROUNDS = 6
NUM_KEYS = _NUM_ROUNDS + 2
SCHEDULE_LENGTH = NUM_KEYS + NUM_STARTS
"""Numbers in a row of a key schedule."""

_START_STREAM = 13
WORD_BITS = 31
"""Random bits in a number of :func:`random_words`, whose sign is left alone."""

_LOW_31 = 2**WORD_BITS - 1
# Shifts and multipliers of "triple32" (C. Wellons, hash-prospector), and the last shift.
_WORD_MIXING = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
_LAST_SHIFT = 14
_ROUND_MULTIPLIER = 0x6B2D
_LOW_16 = 0xFFFF
_LOW_30 = 0x3FFFFFFF
_KEY_MULTIPLIERS = (0x5851F42D, 0x4C957F2D, 0x2545F491, 0x6C62272F, 0x7FEB352D, 0x68E31DA5)
_KEY_CONSTANTS = (0x1B3D, 0x9E37, 0x79B9, 0xC2B2, 0x5A27, 0xD4EB)
_HIGH_ROW_MULTIPLIERS = (0x6D2B, 0x5A35, 0x4F1B, 0x71C9, 0x65A7, 0x5C4D)
_HIGH_COLUMN_MULTIPLIERS = (0x7A6D, 0x58B5, 0x69D3, 0x4E2F, 0x53C7, 0x76B1)


def key_schedule(seeds: Tensor) -> Tensor:
    """Derive what every draw needs from its seed, for all the seeds of a graph at once.

    Args:
        seeds: int64 tensor of any shape in [0, 2**62).

    Returns:
        int32 tensor ``(*seeds.shape, 40)``: six round keys and the halves that whiten rows and
        columns, in [0, 2**16); then the starts of ``sketches.lattice``, in [0, 2**24),
        each exactly uniform over a uniform seed.
    """
    # Products stay below 2**61: 30-bit material times 31-bit multipliers.
    material = torch.bitwise_right_shift(seeds, 32) ^ 0x2A5F3C71
    keys = [
        (torch.bitwise_right_shift(material * multiplier, 22) & _LOW_16) ^ constant
        for multiplier, constant in zip(_KEY_MULTIPLIERS, _KEY_CONSTANTS, strict=True)
    ]
    whitening = [torch.bitwise_right_shift(seeds, 16) & _LOW_16, seeds & _LOW_16]
    schedule = torch.stack([*keys, *whitening], -1).to(torch.int32)
    counter = torch.arange(NUM_STARTS, dtype=torch.int32, device=seeds.device)
    state = start_rows(counter, schedule.unsqueeze(-2), stream=_START_STREAM, row_bits=16)
    (starts,) = integer_windows(state, torch.zeros_like(counter), bits=24, count=1, column_bits=16)
    return torch.cat([schedule, starts], -1)


def schedule_of(seed: Tensor) -> Tensor:
    """Return the schedule behind a seed: a row of :func:`key_schedule`, or its own.

    Args:
        seed: int64 tensor in [0, 2**62), or int32 tensor ``(40,)`` from a key schedule.

    Returns:
        int32 tensor ``(40,)``; with a leading dimension for each of int64 ``seed``.
    """
    return seed if seed.dtype == torch.int32 else key_schedule(seed)


def round_keys(schedule: Tensor, stream: int = 0) -> tuple[Tensor, ...]:
    """Take the round keys of one stream from a schedule.

    Args:
        schedule: int32 tensor ``(..., 8)`` or longer.
        stream: tells independent draws of one site apart; any non-negative int below 2**15.

    Returns:
        One 0-dim int32 tensor in [0, 2**16) a round.
    """
    keys = [schedule[..., i] for i in range(_NUM_ROUNDS)]
    if stream == 0:
        return tuple(keys)
    turns = [(stream * multiplier >> 7) & _LOW_16 for multiplier in _KEY_MULTIPLIERS]
    return tuple(key ^ turn for key, turn in zip(keys, turns, strict=True))


def feistel(high: Tensor, low: Tensor, keys: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Permute 32-bit words, held as two 16-bit halves, by a balanced Feistel network.

    Args:
        high: int32 tensor in [0, 2**16); read by the first round.
        low: int32 tensor in [0, 2**16), broadcastable with ``high``.
        keys: one int32 tensor in [0, 2**16) a round, broadcastable with the halves.

    Returns:
        The permuted (high, low) halves, int32 in [0, 2**16).
    """
    for key in keys:
        mixed = torch.bitwise_right_shift((high ^ key) * _ROUND_MULTIPLIER, 8) & _LOW_16
        high, low = low ^ mixed, high
    return high, low


class RowState(NamedTuple):
    """What the counters of one row share, so that several columns can be drawn from it.

    Attributes:
        keys: round keys, int32, 0-dim or shaped like the rows.
        high: the whitened row halves, int32.
        whitening: what the column halves are whitened with, 0-dim int32.
    """

    keys: tuple[Tensor, ...]
    high: Tensor
    whitening: Tensor


def start_rows(row: Tensor, seed: Tensor, *, stream: int = 0, row_bits: int = 48) -> RowState:
    """Prepare draws for rows of counters.

    Args:
        row: non-negative int32 or int64 tensor below 2**48.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of :func:`key_schedule`.
        stream: tells independent draws of one site apart; a non-negative int below 2**15.
        row_bits: a static bound: rows are below ``2**row_bits``. At most 16 skips the work for
            the high words.

    Returns:
        The state to give to :func:`bits_at`.
    """
    schedule = schedule_of(seed)
    keys = round_keys(schedule, stream)
    keys = _mix_high_words(keys, row, row_bits, _HIGH_ROW_MULTIPLIERS)
    return RowState(
        keys, _low_word(row, row_bits) ^ schedule[..., _NUM_ROUNDS], schedule[..., _NUM_ROUNDS + 1]
    )


def bits_at(state: RowState, column: Tensor, *, column_bits: int = 48) -> tuple[Tensor, Tensor]:
    """Draw 32 random bits for the counters of prepared rows at some columns.

    Args:
        state: from :func:`start_rows`.
        column: non-negative int32 or int64 tensor below 2**48, broadcastable with the rows.
        column_bits: a static bound: columns are below ``2**column_bits``. At most 16 skips the
            work for the high words.

    Returns:
        The (high, low) 16-bit halves as int32 tensors of the broadcast shape. For a fixed
        counter the 32 bits are exactly uniform over a uniform seed (see the module docstring).
    """
    keys = _mix_high_words(state.keys, column, column_bits, _HIGH_COLUMN_MULTIPLIERS)
    return feistel(state.high, _low_word(column, column_bits) ^ state.whitening, keys)


def random_bits(
    row: Tensor,
    column: Tensor,
    seed: Tensor,
    *,
    stream: int = 0,
    row_bits: int = 48,
    column_bits: int = 48,
) -> tuple[Tensor, Tensor]:
    """Draw 32 random bits for each (row, column) counter.

    Args:
        row: see :func:`start_rows`.
        column: see :func:`bits_at`.
        seed: see :func:`start_rows`.
        stream: see :func:`start_rows`.
        row_bits: see :func:`start_rows`.
        column_bits: see :func:`bits_at`.

    Returns:
        The (high, low) 16-bit halves, see :func:`bits_at`.
    """
    state = start_rows(row, seed, stream=stream, row_bits=row_bits)
    return bits_at(state, column, column_bits=column_bits)


def integer_windows(
    state: RowState, column: Tensor, *, bits: int, count: int, column_bits: int = 48
) -> tuple[Tensor, ...]:
    """Draw up to four integers from one hash for each counter.

    Window q is the leading ``bits`` of the 32-bit word turned left by 8 q. Each is exactly
    uniform; the leading bytes of the four are jointly exactly uniform, and window q + 1 repeats
    the trailing bits of window q, a correlation of 2**-8. For stochastic rounding only the
    single distributions matter to the mean.

    Args:
        state: from :func:`start_rows`.
        column: see :func:`bits_at`.
        bits: bits an integer, 17 to 24.
        count: how many windows, 1 to 4.
        column_bits: see :func:`bits_at`.

    Returns:
        ``count`` int32 tensors in [0, 2**bits) of the broadcast shape.
    """
    high, low = bits_at(state, column, column_bits=column_bits)
    taken: list[Tensor] = []
    for first, second, turned in ((high, low, 0), (high, low, 8), (low, high, 0), (low, high, 8)):
        if len(taken) == count:
            break
        leading = first if turned == 0 else first & 0xFF
        if turned == 0:
            taken.append(leading * 2 ** (bits - 16) + torch.bitwise_right_shift(second, 32 - bits))
        else:
            word = leading * 2**16 + second
            taken.append(word if bits == 24 else torch.bitwise_right_shift(word, 24 - bits))
    return tuple(taken)


def uniform(
    row: Tensor,
    column: Tensor,
    seed: Tensor,
    *,
    stream: int = 0,
    row_bits: int = 48,
    column_bits: int = 48,
) -> Tensor:
    """Draw a uniform float32 in [0, 1), a multiple of 2**-24, for each counter.

    Args:
        row: see :func:`random_bits`.
        column: see :func:`random_bits`.
        seed: see :func:`random_bits`.
        stream: see :func:`random_bits`.
        row_bits: see :func:`random_bits`.
        column_bits: see :func:`random_bits`.

    Returns:
        A float32 tensor of the broadcast shape.
    """
    high, low = random_bits(
        row, column, seed, stream=stream, row_bits=row_bits, column_bits=column_bits
    )
    return _to_unit(high, low)


def rademacher(
    row: Tensor,
    column: Tensor,
    seed: Tensor,
    *,
    stream: int = 0,
    row_bits: int = 48,
    column_bits: int = 48,
) -> Tensor:
    """Draw a random sign for each counter.

    Args:
        row: see :func:`random_bits`.
        column: see :func:`random_bits`.
        seed: see :func:`random_bits`.
        stream: see :func:`random_bits`.
        row_bits: see :func:`random_bits`.
        column_bits: see :func:`random_bits`.

    Returns:
        A float32 tensor of -1 and +1 of the broadcast shape; over a uniform seed each sign has
        probability exactly one half.
    """
    high, _ = random_bits(
        row, column, seed, stream=stream, row_bits=row_bits, column_bits=column_bits
    )
    return (1 - (torch.bitwise_right_shift(high, 14) & 2)).to(torch.float32)


def gaussian(
    row: Tensor,
    column: Tensor,
    seed: Tensor,
    *,
    stream: int = 0,
    row_bits: int = 48,
    column_bits: int = 48,
) -> Tensor:
    """Draw a standard normal for each counter, by Box and Muller from two hashes.

    ``sqrt(-2 ln u) cos(2 pi v)`` with u on the midpoints of 2**24 cells and v on multiples of
    2**-24. In exact arithmetic the mean over the grid is 0 (the cosines cancel in pairs) and the
    variance is ``1 - ln(2) * 2**-25``, low by 2e-8, less than one float32 rounding. Values stay
    within 5.9.

    Args:
        row: see :func:`random_bits`.
        column: see :func:`random_bits`.
        seed: see :func:`random_bits`.
        stream: see :func:`random_bits`; the streams ``2 * stream`` and ``2 * stream + 1`` of the
            underlying bits are used.
        row_bits: see :func:`random_bits`.
        column_bits: see :func:`random_bits`.

    Returns:
        A float32 tensor of the broadcast shape.
    """
    bounds = {"row_bits": row_bits, "column_bits": column_bits}
    radius_bits = random_bits(row, column, seed, stream=2 * stream, **bounds)
    angle = uniform(row, column, seed, stream=2 * stream + 1, **bounds)
    return _radius(_mantissa(*radius_bits)) * torch.cos((2.0 * math.pi) * angle)


def random_words(size: Size, seed: Tensor, *, stream: int) -> Tensor:
    """Draw random words in some twenty operations on whole tensors.

    The low 31 bits of the seed and the counter of an element are added up, modulo 2**31, and
    whitened with the upper bits of the seed; four shifts with exclusive or and three
    multiplications by odd numbers mix them. All of these are bijections of 31 bits: for a fixed
    counter and fixed upper seed bits the word is exactly uniform over a uniform seed.

    With two multiplications words whose counters differ in the leading bits alone are correlated.

    Args:
        size: shape of the result; the ints may be SymInts.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of :func:`key_schedule`.
        stream: tells independent draws of one site apart, 0 to 2.

    Returns:
        int32 tensor in [0, 2**31).
    """
    *keys, high, low = schedule_of(seed)[:NUM_KEYS].to(torch.int64).unbind()
    first, second = keys[2 * stream : 2 * stream + 2]
    start = (high * 2**16 + low) & _LOW_31
    state = (torch.arange(numel_of(size), device=seed.device) + start) & _LOW_31
    state = state ^ (first * 2**15 ^ second)
    for shift, multiplier in _WORD_MIXING:
        state = (state ^ torch.bitwise_right_shift(state, shift)) * multiplier & _LOW_31
    result: Tensor = state ^ torch.bitwise_right_shift(state, _LAST_SHIFT)
    return result.to(torch.int32).view(size)


def gaussians(size: Size, seed: Tensor, *, stream: int) -> Tensor:
    """Draw independent standard normals, two from each pair of :func:`random_words`.

    As :func:`gaussian` does, with the sine beside the cosine.

    Args:
        size: shape of the result, the first even; the ints may be SymInts.
        seed: see :func:`random_words`.
        stream: see :func:`random_words`.

    Returns:
        A float32 tensor.
    """
    mantissa = torch.bitwise_right_shift(random_words(size, seed, stream=stream), WORD_BITS - 24)
    first, second = mantissa.to(torch.float32).chunk(2)
    radius, angle = _radius(first), (2.0 * math.pi * 2.0**-24) * second
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])


def _radius(mantissa: Tensor) -> Tensor:
    """Return ``sqrt(-2 ln u)`` of u on the midpoints of 2**24 cells."""
    # The half step keeps the logarithm finite; above 2**23 it rounds to even, u <= 1 holds.
    return torch.sqrt(-2.0 * torch.log((mantissa + 0.5) * 2.0**-24))


def _low_word(counter: Tensor, bits: int) -> Tensor:
    low = counter if bits <= 16 else counter & _LOW_16
    return low.to(torch.int32)


def _mix_high_words(
    keys: tuple[Tensor, ...], counter: Tensor, bits: int, multipliers: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Fold the bits of a counter above the lowest 16 into every round key.

    Into every key, since a word that entered one key alone could be undone by a change of the
    other counter: whole rows would then repeat.
    """
    for shift in range(16, bits, 16):
        word = (torch.bitwise_right_shift(counter, shift) & _LOW_16).to(torch.int32)
        turned = multipliers[shift // 16 - 1 :] + multipliers[: shift // 16 - 1]
        keys = tuple(
            key ^ (torch.bitwise_right_shift(word * multiplier, 8) & _LOW_16) ^ word
            for key, multiplier in zip(keys, turned, strict=True)
        )
    return keys


def _to_unit(high: Tensor, low: Tensor) -> Tensor:
    return _mantissa(high, low) * 2.0**-24


def _mantissa(high: Tensor, low: Tensor) -> Tensor:
    """Return the leading 24 bits of words in float32, which holds them exactly."""
    return (high * 256 + torch.bitwise_right_shift(low, 8)).to(torch.float32)
