"""Rounding thresholds: a lattice over the elements of a tensor, with a random start a sample.

In: a seed and sizes. Out: thresholds, each exactly uniform. The starts come with the key schedule
(``sketches.randomness``); what thresholds are for is in ``sketches.quantize``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div
from xconv_fx.sketches.randomness import NUM_KEYS, NUM_STARTS, schedule_of

_LATTICE_BITS = 12
_LOW_16 = 0xFFFF


def lattice_thresholds(size: Size, seed: Tensor, bits: int) -> Tensor:
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

    Returns:
        int32 tensor in [0, 2**bits) of shape ``size``.
    """
    if not size:
        return _starts(seed, bits).select(0, 0)
    return window_thresholds(size, seed, bits, dim=0, length=size[0], num_windows=1)[0]


def window_thresholds(
    size: Size, seed: Tensor, bits: int, *, dim: int, length: int, num_windows: int
) -> list[Tensor]:
    """Draw the thresholds of :func:`lattice_thresholds` in windows of equal length.

    What the windows share is formed once: it is most of a codec's graph.

    Args:
        size: logical sizes, at least one; the ints may be SymInts.
        seed: see :func:`lattice_thresholds`.
        bits: F, 12 to 24.
        dim: dimension that is cut, from its first index on.
        length: indices in a window; the last window may reach past ``size[dim]``.
        num_windows: how many.

    Returns:
        int32 tensors in [0, 2**bits) of a window's shape, in order.
    """
    starts = _starts(seed, bits)

    def multiples(d: int, first: int, count: int) -> Tensor:
        along = _multiples(_lattice_multiplier(d, len(size)), first, count, seed.device)
        return _broadcast(along, d, size)

    shared = {d: multiples(d, 0, extent) for d, extent in enumerate(size) if d != dim}
    samples = None if dim == 0 else _broadcast(_samples(starts, 0, size[0]), 0, size)
    thresholds: list[Tensor] = []
    for window in range(num_windows):
        first = window * length if window else 0  # no symbol where the length is one
        parts = {**shared, dim: multiples(dim, first, length)}
        turn = functools.reduce(torch.add, (parts[d] for d in range(len(size))))
        turned = (turn & (2**_LATTICE_BITS - 1)) * 2 ** (bits - _LATTICE_BITS)
        own = _broadcast(_samples(starts, first, length), 0, size) if samples is None else samples
        thresholds.append((own + turned) & (2**bits - 1))
    return thresholds


def _starts(seed: Tensor, bits: int) -> Tensor:
    # Backwards, since Inductor would take an index n for a dimension to vectorise over.
    return torch.bitwise_right_shift(schedule_of(seed)[NUM_KEYS:].flip(0), 24 - bits)


def _broadcast(along: Tensor, dim: int, size: Size) -> Tensor:
    """View a 1-D tensor along a dimension of a tensor of some size."""
    return along.view([-1] + [1] * (len(size) - 1 - dim))


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
