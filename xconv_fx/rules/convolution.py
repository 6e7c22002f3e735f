"""Convolutions: the weight gradient is linear in the input, the others do not read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import xconv_fx.ops  # noqa: F401  registers torch.ops.xconv
from passes import LinearUse
from passes.rules import Wait

aten = torch.ops.aten
xconv = torch.ops.xconv


def expose_convolution_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
    *,
    channels_last: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Split a convolution backward into its three gradients (aten schema, torch 2.13).

    The input gradient reads the weight and not the input; the weight gradient is linear in
    the input; the bias gradient is a sum of the output gradient. Geometry given by one int
    for all dims (``padding="valid"`` arrives as ``[0]``) is written out.

    With ``channels_last`` the output gradient of a 2-D convolution is laid out so, once for both
    uses, as the inner compiler does for the forward.
    """
    del bias_sizes
    num_spatial = input.dim() - 2
    strides, paddings, dilations, output_paddings = (
        list(ints) * (num_spatial // len(ints))
        for ints in (stride, padding, dilation, output_padding)
    )
    geometry = (strides, paddings, dilations, transposed, output_paddings, groups)
    if channels_last and grad_output.dim() == 4:
        grad_output = grad_output.clone(memory_format=torch.channels_last)
    grad_input = grad_weight = grad_bias = None
    # The weight gradient first: a decoded input is gone before the input gradient is there.
    if output_mask[1]:
        grad_weight = xconv.conv_weight_grad(grad_output, input, weight, *geometry)
    if output_mask[0]:
        grad_input = xconv.conv_input_grad(grad_output, weight, list(input.shape), *geometry)
    if output_mask[2]:
        grad_bias = grad_output.sum([0, *range(2, grad_output.dim())])
    return grad_input, grad_weight, grad_bias


def slice_of_input_grad(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    start: int,
    stop: int,
) -> Any:
    """Form the input gradient of some channels, from their part of the weight.

    Arguments are those of ``xconv.conv_input_grad``, and the range of channels.

    Returns:
        ``(B, stop - start, *in)``; NotImplemented for grouped convolutions.
    """
    if groups != 1:
        return NotImplemented
    part = weight.narrow(0 if transposed else 1, start, stop - start)
    size = [input_size[0], stop - start, *input_size[2:]]
    return xconv.conv_input_grad(
        grad_output, part, size, stride, padding, dilation, transposed, output_padding, groups
    )


EXPOSURES: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: expose_convolution_backward,
}
LINEAR_USES: dict[Any, tuple[LinearUse, ...]] = {
    xconv.conv_weight_grad.default: (LinearUse(arg=1),),
}
SLICES: dict[Any, Callable[..., Any]] = {xconv.conv_input_grad.default: slice_of_input_grad}
WAIT = Wait(xconv.wait.default, {xconv.conv_weight_grad.default: 0})
