"""Rounding thresholds: a lattice over the elements of a tensor, with a random start a sample.

In: a seed and sizes. Out: thresholds, each exactly uniform. The starts come with the key schedule
(``sketches.randomness``); what thresholds are for is in ``sketches.quantize``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div
from xconv_fx.sketches.randomness import NUM_KEYS, NUM_STARTS, schedule_of

_LATTICE_BITS = 12
_LOW_16 = 0xFFFF


def lattice_thresholds(
    size: Size, seed: Tensor, bits: int, *, dim: int = 0, start: int = 0, length: int | None = None
) -> Tensor:
    """Draw a threshold for each element of a tensor: a lattice with a random start a sample.

    ``T[i] = (start[i_0 mod 32] + (sum_d A_d i_d mod 2**12) 2**(bits - 12)) mod 2**bits`` with the
    start of a sample exactly uniform on ``[0, 2**bits)``: so is every T, whatever is added to it.
    The multipliers A_d approximate the powers of the inverse of the root g > 1 of
    ``g**(D + 1) = g + 1`` (M. Roberts' R sequence), so that the thresholds of neighbours in any
    direction are spread evenly: roundings of neighbours are anticorrelated rather than
    independent, and a threshold costs a handful of integer operations where a hash costs thirty.

    Args:
        size: logical sizes; the first counts samples; the ints may be SymInts.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of :func:`key_schedule`.
        bits: F, 12 to 24.
        dim: dimension of which a window is wanted.
        start: first index of the window.
        length: indices in the window, which may reach past ``size[dim]``; all of them if None.

    Returns:
        int32 tensor in [0, 2**bits) of the window's shape.
    """
    # Backwards, since Inductor would take an index n for a dimension to vectorise over.
    starts = torch.bitwise_right_shift(schedule_of(seed)[NUM_KEYS:].flip(0), 24 - bits)
    if not size:
        return starts.select(0, 0)
    turn: Tensor | None = None
    for d, extent in enumerate(size):
        first, count = (start, length) if d == dim and length is not None else (0, extent)
        along = [-1] + [1] * (len(size) - 1 - d)
        if d == 0:
            samples = _samples(starts, first, count).view(along)
        part = _multiples(_lattice_multiplier(d, len(size)), first, count, seed.device).view(along)
        turn = part if turn is None else turn + part
    assert turn is not None
    turned = (turn & (2**_LATTICE_BITS - 1)) * 2 ** (bits - _LATTICE_BITS)
    thresholds: Tensor = (samples + turned) & (2**bits - 1)
    return thresholds


def _samples(starts: Tensor, first: int, count: int) -> Tensor:
    """Give each sample its start; the ints may be SymInts."""
    if not (isinstance(first, int) and isinstance(count, int)):
        # A gather, since the views below would ask how often a dynamic size holds 32.
        index = torch.arange(first, first + count, dtype=torch.int32, device=starts.device)
        return starts.index_select(0, index & (NUM_STARTS - 1))
    copies = ceil_div(first + count, NUM_STARTS)
    return starts.expand([copies, NUM_STARTS]).reshape(-1).narrow(0, first, count)


def _multiples(multiplier: int, first: int, count: int, device: torch.device) -> Tensor:
    """Multiply the low 16 bits of the indices of a window; the ints may be SymInts."""
    end = first + count
    if isinstance(end, int) and end <= _LOW_16 + 1:
        # One operation of the loop's index, where Inductor would write three.
        return torch.arange(
            first * multiplier, end * multiplier, multiplier, dtype=torch.int32, device=device
        )
    index = torch.arange(first, end, dtype=torch.int32, device=device)
    return (index & _LOW_16) * multiplier


def _lattice_multiplier(dim: int, num_dims: int) -> int:
    """Return A_d of :func:`lattice_thresholds`, odd and below 2**12."""
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (num_dims + 1))
    return int(root ** -(dim + 1) * 2**_LATTICE_BITS) | 1
