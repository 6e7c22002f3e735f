"""Stochastic quantisation of a tensor in groups of consecutive elements.

In: a floating tensor and thresholds (or a seed). Out: packed codes of 8, 4, 2 or 1 bits and the
range of each group; and back. Source: design, section 4, family 2.

A group holds ``group_size`` elements that are consecutive in memory order. With
``step = (max - min) / (2**bits - 1)`` and ``v = (x - min) / step`` the code is
``floor(v + u)`` for a threshold u uniform in [0, 1), so ``E[min + code * step] = x``. It is taken
in fixed point: ``t = trunc(v * 2**F)``, ``code = (t + T) >> F`` with T uniform on the integers of
[0, 2**F), F = 24 (23 at 8 bits, where t fills 31 bits), so ``E[code] = t / 2**F`` holds exactly,
with no rounding of a floating sum.

Exactness. t is v but for its bits below 2**-F: in float32 a v >= 2 has none, and below, the mean
is low by less than 2**-F of a step. The rest is one rounding of v and of the decoded value.
Float64 inputs keep float64 ranges; the bias of at most 2**-F steps remains.

Edges. A constant group has step 0 and comes back exactly, and so, within its own range, does one
whose range is below 2**-98 (2**-994 in float64). A group with inf or nan has a non-finite range
and comes back with every element non-finite (so do finite float32 values whose range exceeds the
largest float32). Half types are computed in float32.

Shape legend: G number of groups, P = 8 / bits planes, W = group_size * bits / 8 bytes a group.
Code bits are planar: byte w of a group holds the codes of elements w, w + W, w + 2W, ... in its
low, next, ... bits. Loads of one plane are then contiguous, which is what vectorises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div, flatten, known, numel_of, pad_flat, unflatten
from xconv_fx.sketches.randomness import integer_windows, start_rows


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


def draw_thresholds(
    num_groups: int, seed: Tensor, bits: int, group_size: int
) -> tuple[Tensor, ...]:
    """Draw the rounding thresholds of :func:`quantize`.

    Args:
        num_groups: G, may be a SymInt.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        bits: 8, 4, 2 or 1.
        group_size: elements a group.

    Returns:
        P int32 tensors ``(G, W)`` in [0, 2**F). Each threshold is exactly uniform over a uniform
        seed; four planes share a hash (:func:`~.randomness.integer_windows`).
    """
    num_planes = 8 // bits
    width = group_size // num_planes
    row = torch.arange(num_groups, device=seed.device).unsqueeze(1)
    row_bits = 16 if known(num_groups <= 2**16) else 48
    state = start_rows(row, seed, row_bits=row_bits)
    thresholds: list[Tensor] = []
    for first_plane in range(0, num_planes, 4):
        start = first_plane // 4 * width
        column = torch.arange(start, start + width, dtype=torch.int32, device=seed.device)
        thresholds += integer_windows(
            state,
            column.unsqueeze(0),
            bits=fraction_bits(bits),
            count=min(4, num_planes),
            column_bits=16,
        )
    return tuple(thresholds)


def quantize_with_thresholds(
    x: Tensor,
    thresholds: Sequence[Tensor],
    bits: int,
    group_size: int,
    dim_order: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Quantise with given thresholds.

    Args:
        x: floating tensor of any shape.
        thresholds: P int32 tensors ``(G, W)`` in [0, 2**F), plane by plane.
        bits: 8, 4, 2 or 1.
        group_size: elements a group, a multiple of ``8 / bits``.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        codes, uint8 ``(G, W)``, and ranges, float32 (float64 for float64 input) ``(G, 2)``
        holding offset and step, with ``G = ceil(x.numel() / group_size)``.
    """
    num_planes = 8 // bits
    width = group_size // num_planes
    flat = flatten(x, dim_order).to(compute_dtype(x.dtype))
    num_groups = ceil_div(flat.shape[0], group_size)
    shape = (num_groups, group_size)
    offset = pad_flat(flat, group_size, float("inf")).view(shape).amin(1, keepdim=True)
    largest = pad_flat(flat, group_size, float("-inf")).view(shape).amax(1, keepdim=True)
    top = 2**bits - 1
    step = (largest - offset) / top
    smallest = torch.finfo(step.dtype).tiny * 2.0**26
    scale = torch.where(step >= smallest, 2.0 ** fraction_bits(bits) / step, 0.0)
    planes = pad_flat(flat, group_size, 0.0).view(num_groups, num_planes, width)
    packed: Tensor | None = None
    for plane, threshold in enumerate(thresholds):
        fixed = ((planes[:, plane] - offset) * scale).clamp_max(top * 2.0 ** fraction_bits(bits))
        fixed = fixed.to(torch.int32)
        code = torch.bitwise_right_shift(fixed + threshold, fraction_bits(bits))
        code = code * 2 ** (bits * plane) if plane else code
        packed = code if packed is None else packed | code
    assert packed is not None
    return packed.to(torch.uint8), torch.cat([offset, step], 1)


def quantize(
    x: Tensor, seed: Tensor, bits: int, group_size: int, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Quantise with thresholds drawn from a seed.

    Args:
        x: floating tensor of any shape.
        seed: 0-dim int64 tensor in [0, 2**62), or its row of a key schedule.
        bits: 8, 4, 2 or 1.
        group_size: elements a group, a multiple of ``8 / bits``.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        codes and ranges, see :func:`quantize_with_thresholds`.
    """
    num_groups = ceil_div(numel_of(x.shape), group_size)
    thresholds = draw_thresholds(num_groups, seed, bits, group_size)
    return quantize_with_thresholds(x, thresholds, bits, group_size, dim_order)


def dequantize(
    codes: Tensor,
    ranges: Tensor,
    size: Size,
    dtype: torch.dtype,
    bits: int,
    dim_order: Sequence[int],
) -> Tensor:
    """Rebuild the tensor whose expectation is the quantised one.

    Args:
        codes: uint8 ``(G, W)``.
        ranges: float32 or float64 ``(G, 2)``, offset and step.
        size: shape of the result.
        dtype: dtype of the result.
        bits: 8, 4, 2 or 1.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        Tensor of shape ``size`` whose memory order is ``dim_order``.
    """
    num_planes = 8 // bits
    wide = codes.to(torch.int32).unsqueeze(1)
    if num_planes > 1:
        shift = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device)
        wide = torch.bitwise_right_shift(wide, shift.view(1, num_planes, 1)) & (2**bits - 1)
    offset, step = ranges[:, 0].view(-1, 1, 1), ranges[:, 1].view(-1, 1, 1)
    value = (wide.to(ranges.dtype) * step + offset).to(dtype)
    numel = numel_of(size)
    flat = value.reshape(-1)
    if not known(numel == flat.shape[0]):
        flat = flat[:numel]
    return unflatten(flat, size, dim_order)
