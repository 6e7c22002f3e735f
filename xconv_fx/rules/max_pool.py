"""Max pools: their backward needs where in each window the maximum was, a small integer.

Of the input it reads the shape only. Where torch keeps positions in the whole plane (int64) the
exposure forms the offset in the window in the forward; the backward reads it, or rebuilds the
positions from it where windows are dilated or of unequal sizes, exactly. Offsets are packed to as
many bits as the window's size needs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from xconv_fx import _torch
from xconv_fx.ops.pooling import window_indices
from xconv_fx.rules.shape_only import shape_stand_in

aten = torch.ops.aten
xconv = torch.ops.xconv

# Inductor's decomposition of max_pool2d and max_pool3d (torch 2.11 to 2.13); the second result is
# int8.
_WITH_OFFSETS = "prims._low_memory_max_pool_with_offsets"


def num_offsets(node: fx.Node) -> int | None:
    """Return how many values a max-pool's offset can take: the window's size.

    Args:
        node: any node.

    Returns:
        The number of elements of the pooling window if ``node`` holds window offsets, which
        run from 0 to that number less one; None otherwise.
    """
    if node.target is xconv.window_offsets.default:
        window = node.args[3]
    elif (
        node.target is operator.getitem
        and node.args[1] == 1
        and isinstance(node.args[0], fx.Node)
        and str(getattr(node.args[0].target, "overloadpacket", "")) == _WITH_OFFSETS
    ):
        window = node.args[0].args[1]
    else:
        return None
    assert isinstance(window, (list, tuple)), f"{node}: window {window}"
    sizes = [size for size in window if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(window) else None


def max_pool_exposure(op: Callable[..., Any], num_dims: int) -> Callable[..., Any]:
    """Return the exposure of ``aten.max_pool*d_with_indices_backward`` (torch 2.13).

    Args:
        op: the backward op.
        num_dims: its number of spatial dimensions.
    """

    def expose(
        grad_output: Tensor,
        input: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
        indices: Tensor,
    ) -> Any:
        geometry = (kernel_size, stride or kernel_size, padding, dilation)
        window, strides, paddings, dilations = (
            list(ints) * (num_dims // len(ints)) for ints in geometry
        )
        starts = [
            torch.arange(size, device=indices.device) * strides[d] - paddings[d]
            for d, size in enumerate(indices.shape[-num_dims:])
        ]
        input_size = list(input.shape[-num_dims:])
        if dilations == [1] * num_dims:
            offsets = xconv.window_offsets(indices, starts, input_size, window, dilations)
            return xconv.max_pool_input_grad(
                grad_output, offsets, input_size, window, strides, paddings
            )
        if not _torch.max_pool_forms_offsets(window):
            indices = _through_offsets(indices, starts, input, window, dilations)
        shape = shape_stand_in(grad_output, input)
        return op(grad_output, shape, window, strides, paddings, dilations, ceil_mode, indices)

    return expose


def adaptive_max_pool_exposure(op: Callable[..., Any], num_dims: int) -> Callable[..., Any]:
    """Return the exposure of ``aten.adaptive_max_pool*d_backward`` (torch 2.13).

    Window o of I inputs and O outputs runs from ``floor(o I / O)`` to ``ceil((o + 1) I / O)``;
    offsets are counted in the largest.

    Args:
        op: the backward op.
        num_dims: its number of spatial dimensions.
    """

    def expose(grad_output: Tensor, input: Tensor, indices: Tensor) -> Any:
        inputs, outputs = input.shape[-num_dims:], indices.shape[-num_dims:]
        if _all_ints(inputs) and _all_ints(outputs):
            starts = [
                torch.arange(num_out, device=indices.device) * num_in // num_out
                for num_in, num_out in zip(inputs, outputs, strict=True)
            ]
            window = [
                _largest_window(num_in, num_out)
                for num_in, num_out in zip(inputs, outputs, strict=True)
            ]
            indices = _through_offsets(indices, starts, input, window, [1] * num_dims)
        return op(grad_output, shape_stand_in(grad_output, input), indices)

    return expose


def fractional_max_pool_exposure(op: Callable[..., Any], num_dims: int) -> Callable[..., Any]:
    """Return the exposure of ``aten.fractional_max_pool*d_backward`` (torch 2.13).

    Its windows begin at random places; the position in the plane is kept, in the smallest dtype.

    Args:
        op: the backward op.
        num_dims: its number of spatial dimensions.
    """

    def expose(
        grad_output: Tensor,
        input: Tensor,
        kernel_size: Sequence[int],
        output_size: Sequence[int],
        indices: Tensor,
    ) -> Any:
        inputs = input.shape[-num_dims:]
        if _all_ints(inputs):
            start = torch.zeros([1], dtype=torch.int64, device=indices.device)
            ones = [1] * num_dims
            indices = _through_offsets(indices, [start] * num_dims, input, list(inputs), ones)
        shape = shape_stand_in(grad_output, input)
        return op(grad_output, shape, kernel_size, output_size, indices)

    return expose


def _through_offsets(
    indices: Tensor,
    starts: Sequence[Tensor],
    input: Tensor,
    window: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Take indices to offsets, which may be kept, and back."""
    input_size = list(input.shape[-len(window) :])
    offsets = xconv.window_offsets(indices, starts, input_size, window, dilation)
    return window_indices(offsets, starts, input_size, window, dilation)


def _largest_window(num_in: int, num_out: int) -> int:
    """Return the size of the largest of an adaptive pool's windows along one dimension."""
    ends = (-(-(i + 1) * num_in // num_out) for i in range(num_out))
    return max((end - i * num_in // num_out for i, end in enumerate(ends)), default=1)


def _all_ints(sizes: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in sizes)


EXPOSURES: dict[Any, Callable[..., Any]] = {
    aten.max_pool2d_with_indices_backward.default: max_pool_exposure(
        aten.max_pool2d_with_indices_backward.default, 2
    ),
    aten.max_pool3d_with_indices_backward.default: max_pool_exposure(
        aten.max_pool3d_with_indices_backward.default, 3
    ),
    aten.adaptive_max_pool2d_backward.default: adaptive_max_pool_exposure(
        aten.adaptive_max_pool2d_backward.default, 2
    ),
    aten.adaptive_max_pool3d_backward.default: adaptive_max_pool_exposure(
        aten.adaptive_max_pool3d_backward.default, 3
    ),
    aten.fractional_max_pool2d_backward.default: fractional_max_pool_exposure(
        aten.fractional_max_pool2d_backward.default, 2
    ),
    aten.fractional_max_pool3d_backward.default: fractional_max_pool_exposure(
        aten.fractional_max_pool3d_backward.default, 3
    ),
}
