"""Boolean masks packed to eight per byte.

In: a bool tensor. Out: uint8, and back, exactly. Planar over the flat memory order: with the flat
mask padded to 8 * L elements, byte j holds elements j, j + L, ..., j + 7L in its bits 0 to 7, so
that all eight loads are contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div, flatten, known, numel_of, pad_flat, unflatten


def pack(mask: Tensor, dim_order: Sequence[int]) -> Tensor:
    """Pack a mask.

    Args:
        mask: bool tensor of any shape.
        dim_order: dimensions of ``mask`` from outermost to innermost in memory.

    Returns:
        uint8 tensor ``(ceil(mask.numel() / 8),)``.
    """
    flat = pad_flat(flatten(mask, dim_order), 8, False)
    planes = flat.view(8, ceil_div(flat.shape[0], 8))
    packed = planes[0].to(torch.uint8)
    for plane in range(1, 8):
        packed = packed | torch.bitwise_left_shift(planes[plane].to(torch.uint8), plane)
    return packed


def unpack(packed: Tensor, size: Size, dim_order: Sequence[int]) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: uint8 tensor ``(ceil(prod(size) / 8),)``.
        size: shape of the mask.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        bool tensor of shape ``size`` whose memory order is ``dim_order``.
    """
    plane = torch.arange(8, dtype=torch.uint8, device=packed.device).unsqueeze(1)
    flat = (torch.bitwise_right_shift(packed.unsqueeze(0), plane) & 1).to(torch.bool).reshape(-1)
    numel = numel_of(size)
    if not known(numel == flat.shape[0]):
        flat = flat[:numel]
    return unflatten(flat, size, dim_order)
