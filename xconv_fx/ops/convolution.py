"""A convolution that keeps a sketch of its input for the weight gradient.

``xconv::convolution`` returns the output and the sketch; its autograd formula saves the weight,
the seed and the sketch. The input and bias gradients are exact, the weight gradient is unbiased.
Used by the drop-in layers; compiled graphs use the operators of ``sketching`` and ``gradients``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xconv_fx.ops.gradients import conv_input_grad, conv_weight_grad, is_channels_last
from xconv_fx.ops.gradients import memory_format as format_of
from xconv_fx.ops.registry import define
from xconv_fx.ops.sketching import dequantize, probe, quantize_op, reconstruct

GROUP_SIZE = 256

Ints = Sequence[int]


def memory_order(x: Tensor) -> list[int]:
    """Order the dimensions of a convolution's input from outermost to innermost.

    Args:
        x: tensor ``(B, C, *spatial)``.

    Returns:
        Channels last if ``x`` is stored so, else the plain order.
    """
    dims = list(range(x.dim()))
    return [0, *dims[2:], 1] if is_channels_last(x) else dims


def _sketch(
    x: Tensor, seed: Tensor, sketch: str, probes: int, bits: int, distribution: str
) -> list[Tensor]:
    if sketch == "quantize":
        return list(quantize_op(x, seed, bits, GROUP_SIZE, memory_order(x)))
    return [probe(x, seed, sketch, probes, distribution)]


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
    seed: Tensor,
    sketch: str,
    probes: int,
    bits: int,
    distribution: str,
) -> tuple[Tensor, list[Tensor]]:
    y = torch.ops.aten.convolution.default(
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    parts = _sketch(x, seed, sketch, probes, bits, distribution)
    return y.contiguous(memory_format=format_of(x, weight)), parts


def _fake_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
    seed: Tensor,
    sketch: str,
    probes: int,
    bits: int,
    distribution: str,
) -> tuple[Tensor, list[Tensor]]:
    del bias
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    size = [x.shape[0], channels]
    for i in range(len(stride)):
        extent, reach = x.shape[2 + i], dilation[i] * (weight.shape[2 + i] - 1)
        if transposed:
            size.append((extent - 1) * stride[i] - 2 * padding[i] + reach + output_padding[i] + 1)
        else:
            size.append((extent + 2 * padding[i] - reach - 1) // stride[i] + 1)
    y = x.new_empty(size).contiguous(memory_format=format_of(x, weight))
    return y, _sketch(x, seed, sketch, probes, bits, distribution)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    x, weight, bias, *geometry, seed, sketch, _probes, bits, distribution = inputs
    _, parts = output
    ctx.save_for_backward(weight, seed, *parts)
    ctx.geometry = geometry
    ctx.size, ctx.dtype, ctx.order = x.shape, x.dtype, memory_order(x)
    ctx.sketch, ctx.bits, ctx.distribution = sketch, bits, distribution
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad_y: Tensor, grad_parts: list[Tensor]) -> tuple[Tensor | None, ...]:
    del grad_parts
    weight, seed, *parts = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = grad_weight = grad_bias = None
    if needs_x:
        grad_x = conv_input_grad(grad_y, weight, ctx.size, *ctx.geometry)
    if needs_weight:
        if ctx.sketch == "quantize":
            x_hat = dequantize(*parts, seed, ctx.size, ctx.dtype, ctx.bits, ctx.order)
        else:
            (sketch,) = parts
            x_hat = reconstruct(sketch, seed, ctx.size, ctx.dtype, ctx.sketch, ctx.distribution)
        grad_weight = conv_weight_grad(grad_y, x_hat, weight, *ctx.geometry)
    if ctx.has_bias and needs_bias:
        grad_bias = grad_y.sum([0, *range(2, grad_y.dim())])
    return (grad_x, grad_weight, grad_bias) + (None,) * 11


convolution = define(
    "convolution(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding,"
    " SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups, Tensor seed,"
    " str sketch, int probes, int bits, str distribution) -> (Tensor, Tensor[])",
    _convolution,
    _fake_convolution,
)
torch.library.register_autograd("xconv::convolution", _backward, setup_context=_setup_context)
