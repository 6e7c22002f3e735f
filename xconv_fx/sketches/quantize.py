"""Stochastic quantisation of a tensor in groups of consecutive elements.

In: a floating tensor and thresholds (or a seed). Out: packed codes of 8, 4, 2 or 1 bits and the
range of each group; and back. Source: design, section 4, family 2.

A group holds ``group_size`` elements that are consecutive in memory order. With
``step = (max - min) / (2**bits - 1)`` and ``v = (x - min) / step`` the code is
``floor(v) + (u < v - floor(v))`` for a threshold u uniform in [0, 1), so
``E[min + code * step] = x``. This is ``floor(v + 1 - u)`` without the rounding of a float32 sum:
v - floor(v) is exact, whereas v + u near 255 would be rounded to multiples of 2**-16.

Exactness. u is a multiple of 2**-24, so P(u < f) is exactly f when f is one too, which in
float32 is every v >= 1; below, the probability is high by less than 2**-24. The rest is one
rounding of v and of the decoded value. Float64 inputs keep float64 ranges; the bias of at most
2**-24 steps remains.

Edges. A constant group has step 0 and comes back exactly. A group with inf or nan has a non-finite
range and comes back with every element non-finite (so do finite float32 values whose range
exceeds the largest float32). Half types are computed in float32.

Shape legend: G number of groups, P = 8 / bits planes, W = group_size * bits / 8 bytes a group.
Code bits are planar: byte w of a group holds the codes of elements w, w + W, w + 2W, ... in its
low, next, ... bits. Loads of one plane are then contiguous, which is what vectorises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, ceil_div, flatten, known, numel_of, pad_flat, unflatten
from xconv_fx.sketches.randomness import start_rows, uniform, uniform_pair


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Name the dtype in which a sketch of a dtype is computed.

    Args:
        dtype: a floating dtype.

    Returns:
        float64 for float64, else float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def draw_thresholds(
    num_groups: int, seed: Tensor, bits: int, group_size: int
) -> tuple[Tensor, ...]:
    """Draw the rounding thresholds of :func:`quantize`.

    Args:
        num_groups: G, may be a SymInt.
        seed: 0-dim int64 tensor in [0, 2**62).
        bits: 8, 4, 2 or 1.
        group_size: elements a group.

    Returns:
        P float32 tensors ``(G, W)`` in [0, 1). Each threshold is exactly uniform over a uniform
        seed; planes 2q and 2q + 1 share a hash (:func:`~.randomness.uniform_pair`).
    """
    num_planes = 8 // bits
    width = group_size // num_planes
    row = torch.arange(num_groups, device=seed.device).unsqueeze(1)
    row_bits = 16 if known(num_groups <= 2**16) else 48
    if num_planes == 1:
        column = torch.arange(width, dtype=torch.int32, device=seed.device).unsqueeze(0)
        return (uniform(row, column, seed, row_bits=row_bits, column_bits=16),)
    state = start_rows(row, seed, row_bits=row_bits)
    thresholds: list[Tensor] = []
    for start in range(0, num_planes // 2 * width, width):
        column = torch.arange(start, start + width, dtype=torch.int32, device=seed.device)
        pair = uniform_pair(state, column.unsqueeze(0), column_bits=16)
        thresholds.extend(pair)
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
        thresholds: P tensors ``(G, W)`` in [0, 1), plane by plane.
        bits: 8, 4, 2 or 1.
        group_size: elements a group, a multiple of ``8 / bits``.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        codes, uint8 ``(G, W)``, and ranges, float32 (float64 for float64 input) ``(G, 2)``
        holding offset and step, with ``G = ceil(x.numel() / group_size)``.
    """
    num_planes = 8 // bits
    width = group_size // num_planes
    top = 2**bits - 1
    flat = flatten(x, dim_order).to(compute_dtype(x.dtype))
    num_groups = ceil_div(flat.shape[0], group_size)
    shape = (num_groups, group_size)
    offset = pad_flat(flat, group_size, float("inf")).view(shape).amin(1, keepdim=True)
    largest = pad_flat(flat, group_size, float("-inf")).view(shape).amax(1, keepdim=True)
    step = (largest - offset) / top
    divisor = torch.where(step == 0, 1.0, step)
    planes = pad_flat(flat, group_size, 0.0).view(num_groups, num_planes, width)
    packed: Tensor | None = None
    for plane, threshold in enumerate(thresholds):
        v = (planes[:, plane] - offset) / divisor
        # where() also sends nan to 0: converting nan to an integer is undefined in C++.
        v = torch.where(v > 0, v, 0.0).clamp_max(top)
        whole = v.floor()
        code = torch.where(threshold < v - whole, whole + 1, whole).to(torch.int32)
        code = code * 2 ** (bits * plane)
        packed = code if packed is None else packed | code
    assert packed is not None
    return packed.to(torch.uint8), torch.cat([offset, step], 1)


def quantize(
    x: Tensor, seed: Tensor, bits: int, group_size: int, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Quantise with thresholds drawn from a seed.

    Args:
        x: floating tensor of any shape.
        seed: 0-dim int64 tensor in [0, 2**62).
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
