"""Where in its window a max-pool found the maximum, as a small integer.

aten's max pools return positions in the input plane as int64, 8 bytes an element of the output.
The place inside the window is a number below the window's size: one byte, or a few bits packed.
:func:`window_offsets` and :func:`window_indices` turn one into the other, exactly;
:func:`max_pool_input_grad` reads offsets directly.

Shape legend: ``*in`` and ``*out`` the input's and the output's spatial sizes, D their number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xconv_fx.ops.gradients import memory_format
from xconv_fx.ops.registry import define
from xconv_fx.sketches.layout import Size, known


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


def max_pool_input_grad(
    grad_output: Tensor,
    offsets: Tensor,
    input_size: Size,
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Form the input gradient of a max-pool without dilation, exactly.

    Every element of the input looks at the windows it lies in, at most ``ceil(window / stride)``
    a dimension, and takes the gradients of those whose maximum it was. So the gradient is
    pointwise, and fuses with what reads it; scattering gradients to their places would not.

    Args:
        grad_output: ``(*batch, *out)``.
        offsets: ``(*batch, *out)`` from :func:`window_offsets`.
        input_size: the D spatial sizes of the input.
        window: the D sizes of the window.
        stride: the D strides.
        padding: the D paddings.

    Returns:
        ``(*batch, *in)``, channels-last if ``grad_output`` is.
    """
    num = len(window)
    lead = list(grad_output.shape[:-num])
    # Position y lies in block (y + padding) // stride, at (y + padding) % stride there.
    blocks = [(input_size[d] - 1 + padding[d]) // stride[d] + 1 for d in range(num)]
    total: Tensor | None = None
    for back in itertools.product(*(range(-(-window[d] // stride[d])) for d in range(num))):
        grad = _spread(_shift(grad_output, back, blocks), num)
        found = _spread(_shift(offsets, back, blocks), num).to(torch.int32)
        wanted = _offsets_in_block(back, window, stride, grad.device)
        term = torch.where(found == wanted, grad, torch.zeros_like(grad))
        total = term if total is None else total + term
    assert total is not None, "a window has at least one element"
    result = total.reshape([*lead, *(blocks[d] * stride[d] for d in range(num))])
    for d in range(num):
        result = result.narrow(len(lead) + d, padding[d], input_size[d])
    return result.contiguous(memory_format=_format(grad_output, num))


def _shift(values: Tensor, back: Sequence[int], blocks: Size) -> Tensor:
    """Put the value of window o at block o + back, zeros where there is none."""
    num = len(back)
    sizes = values.shape[-num:]
    pads = [(back[d], blocks[d] - sizes[d] - back[d]) for d in range(num)]
    if all(known(pad == 0) for pair in pads for pad in pair):
        return values
    return F.pad(values, [pad for pair in reversed(pads) for pad in pair])


def _spread(values: Tensor, num: int) -> Tensor:
    """View ``(*batch, *blocks)`` so that it broadcasts along the places of each block."""
    for d in range(num):
        values = values.unsqueeze(values.dim() - (num - 1 - d))
    return values


def _offsets_in_block(
    back: Sequence[int], window: Sequence[int], stride: Sequence[int], device: torch.device
) -> Tensor:
    """Number the places of a block as the window that begins ``back`` blocks before it does.

    Returns:
        int32 ``(1, stride_0, 1, stride_1, ...)``; -1 where the window does not reach.
    """
    offsets = reaches = None
    for d, (size, step) in enumerate(zip(window, stride, strict=True)):
        place = torch.arange(step, dtype=torch.int32, device=device) + back[d] * step
        place = place.view([-1] + [1] * (2 * (len(window) - 1 - d)))
        offsets = place if offsets is None else offsets * size + place
        reaches = place < size if reaches is None else reaches & (place < size)
    assert offsets is not None, "a window has at least one dimension"
    assert reaches is not None, "a window has at least one dimension"
    return torch.where(reaches, offsets, -1)


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


def _format(grad_output: Tensor, num: int) -> torch.memory_format:
    batched = grad_output.dim() == num + 2
    return memory_format(grad_output) if batched else torch.contiguous_format


def _fake_max_pool_input_grad(
    grad_output: Tensor,
    offsets: Tensor,
    input_size: Size,
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    if offsets.shape != grad_output.shape:
        raise ValueError(
            "xconv::max_pool_input_grad expects offsets of the shape of grad_output, "
            f"{tuple(grad_output.shape)}, got {tuple(offsets.shape)}"
        )
    del stride, padding
    num = len(window)
    grad = grad_output.new_empty([*grad_output.shape[:-num], *input_size])
    return grad.contiguous(memory_format=_format(grad_output, num))


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
define(
    "max_pool_input_grad(Tensor grad_output, Tensor offsets, SymInt[] input_size, int[] window,"
    " int[] stride, int[] padding) -> Tensor",
    max_pool_input_grad,
    _fake_max_pool_input_grad,
    max_pool_input_grad,
)
