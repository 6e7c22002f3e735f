"""Small integers packed to 1, 2 or 4 bits an element, exactly, and the planes they lie in.

In: a bool tensor, or an integer one whose values are known to be below ``2**bits``. Out: uint8,
and back. The codes of ``sketches.quantize`` lie in the same way.

Layout. One dimension is cut into ``P = 8 / bits`` planes of R consecutive indices each, and byte
r along it holds the elements r, r + R, r + 2R, ... in its low, next, ... bits. All other dimensions
stay as they are. So a byte's place is an affine function of the other indices: loops over them
vectorise without a gather, in whatever order a kernel runs through the tensor. (A layout that
packs consecutive elements made the kernels of a backward pass gather bytes, at five times the
time.) The cut dimension is one whose size P divides, the outermost such in memory, so that the
innermost runs stay long; if none is divided evenly, the one that wastes least.

All arithmetic is in int32: Inductor's vectorised shift of uint8 goes through memory and made a
mask cost 40 times as much to unpack (torch 2.13, CPU).

Tensors keep their logical dimensions throughout: Inductor lays every 4-D buffer out channels-last
by its dimensions' places, so a permuted one would be scattered (torch 2.13).

Shape legend: P planes, R = ceil(size / P) rows a plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div


def plane_dim(size: Size, num_planes: int, dim_order: Sequence[int]) -> int:
    """Choose the dimension to cut into planes.

    Args:
        size: logical sizes, at least one; the ints may be SymInts.
        num_planes: P.
        dim_order: dimensions from outermost to innermost in memory.

    Returns:
        A dimension: the outermost whose size P divides, else the one that wastes the smallest
        share; sizes unknown at compile time come last.
    """
    fixed = [d for d in dim_order if isinstance(size[d], int)]
    if num_planes == 1 or not fixed:
        return dim_order[0]
    return min(fixed, key=lambda d: _waste(size[d], num_planes))


def packed_size(size: Size, num_planes: int, dim_order: Sequence[int]) -> list[int]:
    """Return the sizes of the packed bytes.

    Args:
        size: logical sizes.
        num_planes: P.
        dim_order: dimensions from outermost to innermost in memory.

    Returns:
        ``size`` with the cut dimension divided by P, rounded up; ``[]`` for a scalar.
    """
    packed = list(size)
    if packed:
        dim = plane_dim(packed, num_planes, dim_order)
        packed[dim] = ceil_div(packed[dim], num_planes)
    return packed


def planes_of(x: Tensor, dim: int, num_planes: int) -> list[Tensor]:
    """Cut a tensor into planes, padded where they do not divide it.

    The padding is zeros, or where sizes are unknown at compile time the last element: a pad
    specialises the sizes of all dimensions (torch 2.13).

    Args:
        x: tensor.
        dim: the cut dimension.
        num_planes: P.

    Returns:
        P tensors with R rows along ``dim``.
    """
    extent = x.shape[dim]
    rows = ceil_div(extent, num_planes)
    is_even = isinstance(extent, int) and rows * num_planes == extent
    if not is_even and not all(isinstance(size, int) for size in x.shape):
        row = torch.arange(rows, device=x.device)
        places = [(row + plane * rows).clamp_max(extent - 1) for plane in range(num_planes)]
        return [x.index_select(dim, place) for place in places]
    if not is_even:
        x = torch.constant_pad_nd(x, [0, 0] * (x.dim() - 1 - dim) + [0, rows * num_planes - extent])
    # The op itself, since it takes half as long to trace as `narrow`, which calls it.
    cut = torch.ops.aten.slice.Tensor
    return [cut(x, dim, plane * rows, (plane + 1) * rows) for plane in range(num_planes)]


def pack_planes(planes: Sequence[Tensor], bits: int) -> Tensor:
    """Put the planes beside each other in the bits of bytes.

    Args:
        planes: ``8 / bits`` int32 tensors, values in [0, 2**bits).
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 tensor of the shape of a plane.
    """
    packed = planes[0]
    for plane, values in enumerate(planes[1:], 1):
        packed = packed | torch.bitwise_left_shift(values, bits * plane)
    return packed.to(torch.uint8)


def unpack_planes(packed: Tensor, size: Size, bits: int, dim_order: Sequence[int]) -> Tensor:
    """Undo :func:`pack_planes` and :func:`planes_of`.

    Args:
        packed: uint8 tensor of :func:`packed_size`.
        size: logical sizes of the result.
        bits: 1, 2, 4 or 8.
        dim_order: dimensions from outermost to innermost in memory.

    Returns:
        int32 tensor of shape ``size``, values in [0, 2**bits).
    """
    wide = packed.to(torch.int32)
    if bits == 8 or not len(size):
        return wide
    num_planes = 8 // bits
    dim = plane_dim(size, num_planes, dim_order)
    if not isinstance(size[dim], int):
        return _gather_codes(wide, size, bits, dim)
    shift = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)
    shift = shift.view([-1] + [1] * (packed.dim() - dim))
    values = torch.bitwise_right_shift(wide.unsqueeze(dim), shift) & (2**bits - 1)
    rows = packed.shape[dim]
    merged = values.reshape([*packed.shape[:dim], num_planes * rows, *packed.shape[dim + 1 :]])
    unpacked: Tensor = merged.narrow(dim, 0, size[dim])
    return unpacked


def pack(x: Tensor, bits: int, dim_order: Sequence[int]) -> Tensor:
    """Pack small non-negative integers.

    Args:
        x: bool or integer tensor of any shape, values in [0, 2**bits).
        bits: 1, 2 or 4.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        uint8 tensor of :func:`packed_size`.
    """
    if not x.dim():
        return x.to(torch.uint8)
    dim = plane_dim(x.shape, 8 // bits, dim_order)
    planes = planes_of(x, dim, 8 // bits)
    return pack_planes([plane.to(torch.int32) for plane in planes], bits)


def unpack(
    packed: Tensor, size: Size, dtype: torch.dtype, bits: int, dim_order: Sequence[int]
) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: what :func:`pack` returned.
        size: shape of the result.
        dtype: dtype of the result.
        bits: 1, 2 or 4.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        Tensor of that shape and dtype.
    """
    values = unpack_planes(packed, size, bits, dim_order)
    return values != 0 if dtype == torch.bool else values.to(dtype)


def _gather_codes(wide: Tensor, size: Size, bits: int, dim: int) -> Tensor:
    """Unpack along a dimension unknown at compile time: merging planes would ask for its size."""
    index = torch.arange(size[dim], device=wide.device)
    plane = index // ceil_div(size[dim], 8 // bits)
    taken = wide.index_select(dim, index - plane * ceil_div(size[dim], 8 // bits))
    shift = (plane * bits).to(torch.int32).view([-1] + [1] * (wide.dim() - 1 - dim))
    codes: Tensor = torch.bitwise_right_shift(taken, shift) & (2**bits - 1)
    return codes


def _waste(extent: int, num_planes: int) -> float:
    rows = -(-extent // num_planes)
    return rows * num_planes / extent - 1.0 if extent else 0.0
