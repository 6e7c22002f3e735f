"""Booleans and small integers packed to 1, 2 or 4 bits an element, exactly.

In: a bool tensor, or an integer one whose values are known to be below ``2**bits``. Out: uint8,
and back. Layout as in ``sketches.quantize``, so that a mask and the codes of the value beside it
are written in one loop: groups of 256 elements that are consecutive in memory order, padded with
zeros, planar inside a group.

Shape legend: G number of groups, P = 8 / bits planes, W = 32 * bits bytes a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div, flatten, known, numel_of, pad_flat, unflatten

GROUP_SIZE = 256


def pack(x: Tensor, bits: int, dim_order: Sequence[int]) -> Tensor:
    """Pack small non-negative integers.

    Args:
        x: bool or integer tensor of any shape, values in [0, 2**bits).
        bits: 1, 2 or 4.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        uint8 tensor ``(G, W)`` with ``G = ceil(x.numel() / 256)``.
    """
    num_planes = 8 // bits
    flat = pad_flat(flatten(x, dim_order), GROUP_SIZE, 0)
    num_groups = ceil_div(flat.shape[0], GROUP_SIZE)
    planes = flat.view(num_groups, num_planes, GROUP_SIZE // num_planes)
    packed = planes[:, 0].to(torch.uint8)
    for plane in range(1, num_planes):
        shifted = torch.bitwise_left_shift(planes[:, plane].to(torch.uint8), bits * plane)
        packed = packed | shifted
    return packed


def unpack(
    packed: Tensor, size: Size, dtype: torch.dtype, bits: int, dim_order: Sequence[int]
) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: uint8 tensor ``(G, W)``.
        size: shape of the result.
        dtype: dtype of the result.
        bits: 1, 2 or 4.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        Tensor of that shape and dtype whose memory order is ``dim_order``.
    """
    shift = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device).view(1, -1, 1)
    wide = torch.bitwise_right_shift(packed.unsqueeze(1), shift) & (2**bits - 1)
    flat = wide.to(dtype).reshape(-1)
    numel = numel_of(size)
    if not known(numel == flat.shape[0]):
        flat = flat[:numel]
    return unflatten(flat, size, dim_order)
