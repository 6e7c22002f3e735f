"""Stochastic quantisation of a tensor with a range a group, by dither.

In: a floating tensor and thresholds (or a seed). Out: packed codes of 8, 4, 2 or 1 bits and the
offset and step of each group; and back. Source: design, section 4, family 2; dithering with the
threshold subtracted again: L. Schuchman, IEEE Trans. Comm. 12 (1964) 162.

Groups are blocks of the tensor (``sketches.blocks``). With ``step = (max - min) / (2**bits - 1)``
and ``v = (x - min) / step`` the code is ``floor(v + u)`` for a threshold u uniform in [0, 1), so
``E[min + code * step] = x``, with variance ``f (1 - f) step**2`` for the fraction f of v. At 4, 2
and 1 bits what comes back is ``min + (code - u + 1/2) * step``: its error is uniform on half a step
to either side whatever x is, unbiased, with variance ``step**2 / 12``, half of what f (1 - f) is in
the mean over f, and a third of what it is at the centre.

Fixed point: ``t = trunc(v * 2**F)``, ``code = (t + T) >> F`` with T uniform on the integers of
[0, 2**F), F = 24 (23 at 8 bits, where t fills 31 bits). ``E[code] = t / 2**F`` holds exactly, with
no rounding of a floating sum, and ``E[T] = (2**F - 1) / 2`` is taken off exactly.

Exactness. t is v but for its bits below 2**-F: in float32 a v >= 2 has none, and below, the mean
is low by less than 2**-F of a step. The rest is one rounding of v and one of the decoded value, of
the order of 2**-24 of the range. Float64 inputs keep float64 ranges; the bias of at most 2**-F
steps remains.

Edges. A constant group has step 0 and comes back exactly, and so, within its own range, does one
whose range is below 2**-98 (2**-994 in float64). A group with inf or nan has a non-finite range
and comes back with every element non-finite (so do finite float32 values whose range exceeds the
largest float32). Half types are computed in float32.

Shape legend: P = 8 / bits planes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.bitpack import pack_planes, plane_dim, planes_of, unpack_planes
from xconv_fx.sketches.blocks import choose_blocks, smallest_and_largest, spread
from xconv_fx.sketches.lattice import lattice_thresholds, window_thresholds
from xconv_fx.sketches.layout import Size, ceil_div


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Name the dtype in which a sketch of a dtype is computed.

    Args:
        dtype: a floating dtype.

    Returns:
        float64 for float64, else float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def fraction_bits(bits: int) -> int:
    """Return F, the bits of the fixed-point fraction that decides the rounding.

    Args:
        bits: 8, 4, 2 or 1.

    Returns:
        23 for 8 bits, so that ``(2**8 - 1) * 2**F`` plus a threshold stays below 2**31; else 24.
    """
    return 23 if bits == 8 else 24


def subtracts_dither(bits: int) -> bool:
    """Say whether the threshold is subtracted again in decoding.

    Args:
        bits: 8, 4, 2 or 1.

    Returns:
        True at 4, 2 and 1 bits. At 8 the noise is small either way, and a decode that draws no
        thresholds is the cheaper one to fuse into every kernel that reads it.
    """
    return bits <= 4


def quantize_with_thresholds(
    x: Tensor, thresholds: Sequence[Tensor], bits: int, group_size: int, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise with given thresholds.

    Args:
        x: floating tensor of any shape.
        thresholds: P int32 tensors that broadcast to a plane (``bitpack.planes_of``), in
            [0, 2**F); one for a scalar.
        bits: 8, 4, 2 or 1.
        group_size: elements a group should have.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        codes, uint8 of :func:`~.bitpack.packed_size`, and offsets and steps, float32 (float64 for
        float64 input) of :func:`~.blocks.grid_of`.
    """
    wide = x.to(compute_dtype(x.dtype))
    blocks = choose_blocks(x.shape, group_size)
    offset, largest = smallest_and_largest(wide, blocks, dim_order)
    top = 2.0**bits - 1.0
    step = (largest - offset) * (1.0 / top)
    smallest = torch.finfo(step.dtype).tiny * 2.0**26
    scale = torch.where(step >= smallest, 2.0 ** fraction_bits(bits) / step, 0.0)
    tensors = (wide, spread(offset, x.shape), spread(scale, x.shape))
    dim = plane_dim(x.shape, 8 // bits, dim_order) if x.dim() else 0
    planes = [planes_of(t, dim, 8 // bits) if x.dim() else [t] for t in tensors]
    codes: list[Tensor] = []
    # Each plane is computed from x on its own: a shared tensor of codes would be stored.
    for values, low, factor, threshold in zip(*planes, thresholds, strict=True):
        fixed = ((values - low) * factor).clamp_max(top * 2.0 ** fraction_bits(bits))
        codes.append(
            torch.bitwise_right_shift(fixed.to(torch.int32) + threshold, fraction_bits(bits))
        )
    return pack_planes(codes, bits), offset, step


def quantize(
    x: Tensor, seed: Tensor, bits: int, group_size: int, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise with thresholds drawn from a seed.

    Args:
        x: floating tensor of any shape.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        bits: 8, 4, 2 or 1.
        group_size: elements a group should have.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        codes, offsets and steps, see :func:`quantize_with_thresholds`.
    """
    depth = fraction_bits(bits)
    if not x.dim():
        thresholds = [lattice_thresholds(x.shape, seed, depth)]
    else:
        dim = plane_dim(x.shape, 8 // bits, dim_order)
        rows = ceil_div(x.shape[dim], 8 // bits)
        thresholds = window_thresholds(
            x.shape, seed, depth, dim=dim, length=rows, num_windows=8 // bits
        )
    return quantize_with_thresholds(x, thresholds, bits, group_size, dim_order)


def dequantize_with_thresholds(
    parts: Sequence[Tensor],
    thresholds: Tensor | None,
    size: Size,
    dtype: torch.dtype,
    bits: int,
    dim_order: Sequence[int],
) -> Tensor:
    """Rebuild the tensor whose expectation is the quantised one, given the thresholds.

    Args:
        parts: codes, offsets and steps from :func:`quantize_with_thresholds`.
        thresholds: the thresholds of the whole tensor, int32, where they are subtracted; else
            None.
        size: shape of the result.
        dtype: dtype of the result.
        bits: 8, 4, 2 or 1.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        Tensor of shape ``size``.
    """
    codes, offset, step = parts
    value = unpack_planes(codes, size, bits, dim_order).to(step.dtype)
    if thresholds is not None:
        unit = 2.0 ** -fraction_bits(bits)
        value = (value - thresholds.to(step.dtype) * unit) + (0.5 - 0.5 * unit)
    return (value * spread(step, size) + spread(offset, size)).to(dtype)


def dequantize(
    codes: Tensor,
    offset: Tensor,
    step: Tensor,
    seed: Tensor,
    size: Size,
    dtype: torch.dtype,
    bits: int,
    dim_order: Sequence[int],
) -> Tensor:
    """Rebuild the tensor whose expectation is the quantised one.

    Args:
        codes: uint8, see :func:`quantize_with_thresholds`.
        offset: float32 or float64.
        step: like ``offset``.
        seed: the seed that :func:`quantize` was given.
        size: shape of the result.
        dtype: dtype of the result.
        bits: 8, 4, 2 or 1.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        Tensor of shape ``size``.
    """
    thresholds = None
    if subtracts_dither(bits):
        thresholds = lattice_thresholds(size, seed, fraction_bits(bits))
    parts = (codes, offset, step)
    return dequantize_with_thresholds(parts, thresholds, size, dtype, bits, dim_order)
