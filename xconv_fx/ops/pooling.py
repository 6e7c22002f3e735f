"""Where in its window a max-pool found the maximum, as a small integer.

aten's max pools return positions in the input plane as int64, 8 bytes an element of the output.
The place inside the window is a number below the window's size: one byte, or a few bits packed.
:func:`window_offsets` and :func:`window_indices` turn one into the other, exactly.

Shape legend: ``*out`` the output's spatial sizes, D their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.ops.registry import define
from xconv_fx.sketches.layout import Size


def offset_dtype(window: Sequence[int]) -> torch.dtype:
    """Choose the smallest dtype that holds every offset of a window.

    Args:
        window: its size, one int a spatial dimension.

    Returns:
        uint8, int16, int32 or int64.
    """
    num_offsets = math.prod(window)
    if num_offsets <= 2**8:
        return torch.uint8
    if num_offsets <= 2**15:
        return torch.int16
    return torch.int32 if num_offsets <= 2**31 else torch.int64


def window_offsets(
    indices: Tensor,
    starts: Sequence[Tensor],
    input_size: Size,
    window: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Number the elements of each window from 0 and say which one an index means.

    Args:
        indices: int64 ``(*batch, *out)``, positions in the flattened input plane, each inside its
            window.
        starts: D int64 tensors ``(out_d,)``: where each window begins, negative in the padding.
        input_size: the D spatial sizes of the input.
        window: the D sizes of the (largest) window.
        dilation: the D distances between neighbours in a window.

    Returns:
        ``(*batch, *out)`` in :func:`offset_dtype`, values in ``[0, prod(window))``.
    """
    offsets: Tensor | None = None
    coordinates = _unflatten(indices, input_size)
    for d, coordinate in enumerate(coordinates):
        increment = coordinate - _along(starts[d], d, len(window))
        if dilation[d] != 1:
            increment = increment // dilation[d]
        offsets = increment if offsets is None else offsets * window[d] + increment
    assert offsets is not None, "a window has at least one dimension"
    return offsets.to(offset_dtype(window))


def window_indices(
    offsets: Tensor,
    starts: Sequence[Tensor],
    input_size: Size,
    window: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Undo :func:`window_offsets`.

    Args:
        offsets: ``(*batch, *out)``.
        starts: as given there.
        input_size: as given there.
        window: as given there.
        dilation: as given there.

    Returns:
        int64 ``(*batch, *out)``.
    """
    indices: Tensor | None = None
    for d, increment in enumerate(_unflatten(offsets.to(torch.int64), window)):
        coordinate = _along(starts[d], d, len(window)) + increment * dilation[d]
        indices = coordinate if indices is None else indices * input_size[d] + coordinate
    assert indices is not None, "a window has at least one dimension"
    return indices


def _unflatten(flat: Tensor, size: Size) -> list[Tensor]:
    """Split positions in a flattened volume into one coordinate a dimension, outermost first."""
    coordinates: list[Tensor] = []
    for extent in reversed(size[1:]):
        coordinates.append(flat % extent)
        flat = flat // extent
    return [flat, *reversed(coordinates)]


def _along(values: Tensor, dim: int, num_dims: int) -> Tensor:
    """View a 1-D tensor so that it broadcasts along the spatial dimension ``dim``."""
    return values.view([-1] + [1] * (num_dims - 1 - dim))


def _fake_window_offsets(
    indices: Tensor,
    starts: Sequence[Tensor],
    input_size: Size,
    window: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    if not len(starts) == len(input_size) == len(window) == len(dilation):
        raise ValueError(
            "xconv::window_offsets expects as many starts, input sizes, window sizes and "
            f"dilations as there are spatial dimensions, got {len(starts)}, {len(input_size)}, "
            f"{len(window)} and {len(dilation)}"
        )
    return torch.empty_like(indices, dtype=offset_dtype(window))


define(
    "window_offsets(Tensor indices, Tensor[] starts, SymInt[] input_size, int[] window,"
    " int[] dilation) -> Tensor",
    window_offsets,
    _fake_window_offsets,
    window_offsets,
)
