"""Exact gradients of a convolution, one at a time.

``conv_input_grad`` needs the weight only and ``conv_weight_grad`` the input only, so that a graph
may keep a sketch of the input and still have the exact input gradient. Arguments are those of
``aten.convolution`` with batched inputs. Neither is lowered to aten before Inductor, which (2.13)
lays the arguments of ``aten.convolution_backward`` out like its guess of the result, and copied
both channels-last arguments of a depthwise convolution, which then needs workspace besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.ops.registry import define
from xconv_fx.sketches.layout import Size, known, numel_of

Ints = Sequence[int]


def is_channels_last(x: Tensor) -> bool:
    """Say whether channels are innermost in memory, from the order of the strides alone.

    Contiguity queries would change with padding of strides, and strides of dimensions of size 1
    or of expanded ones mean nothing to Inductor: neither has a say here.

    Args:
        x: tensor ``(B, C, *spatial)``.

    Returns:
        True for 4-D and 5-D tensors with more than one channel and more than one position,
        stored channels-last.
    """
    size, stride = x.shape, x.stride()
    if len(size) not in (4, 5) or not (known(size[1] > 1) and known(stride[1] == 1)):
        return False
    return any(known(size[d] > 1) and known(stride[d] > 1) for d in range(2, len(size)))


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """Choose the memory format of a result: channels-last if any of the tensors is.

    Args:
        *tensors: tensors ``(B, C, *spatial)`` of one number of dimensions.

    Returns:
        A memory format that suits that number of dimensions.
    """
    if not any(is_channels_last(tensor) for tensor in tensors):
        return torch.contiguous_format
    return torch.channels_last if tensors[0].dim() == 4 else torch.channels_last_3d


def computing_format(weight: Tensor, grad_output: Tensor, input_size: Size) -> torch.memory_format:
    """Choose the memory format in which a gradient is formed.

    Activations keep theirs, but where the weight outweighs them on the CPU: channels-last, oneDNN
    (torch 2.13) held up to four copies of a weight where the plain format took two, and was slower.

    Args:
        weight: the weight.
        grad_output: ``(B, O, *out)``.
        input_size: shape ``(B, C, *in)`` of the convolution's input.

    Returns:
        A memory format for the activations.
    """
    if weight.device.type == "cpu" and known(
        weight.numel() > grad_output.numel() + numel_of(input_size)
    ):
        return torch.contiguous_format
    return memory_format(grad_output)


def input_grad(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Size,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> Tensor:
    """Form the input gradient of a convolution, exactly, without its input.

    The gradient of a convolution is the transposed convolution with the output padding that
    restores the input size (:func:`missing_padding`); that of a transposed convolution is the
    convolution, cut to the input size where the output padding exceeded the stride.

    Args:
        grad_output: ``(B, O, *out)``.
        weight: ``(O, C / groups, *k)``, or ``(C, O / groups, *k)`` if transposed.
        input_size: shape ``(B, C, *in)`` of the convolution's input.
        stride: one int a spatial dimension.
        padding: one int a spatial dimension.
        dilation: one int a spatial dimension.
        transposed: whether the forward convolution was transposed.
        output_padding: of the forward convolution.
        groups: of the forward convolution.

    Returns:
        ``(B, C, *in)``, channels-last if ``grad_output`` or ``weight`` is.
    """
    spatial = range(len(stride))
    result_format = memory_format(grad_output, weight)
    layout = computing_format(weight, grad_output, input_size)
    grad_output = grad_output.contiguous(memory_format=layout)
    grad: Tensor
    if known(grad_output.numel() == 0):
        # aten refuses a convolution of nothing unless the batch or the channels are empty.
        grad = grad_output.new_zeros(list(input_size))
    elif transposed:
        del output_padding  # it shows in the sizes
        grad = torch.ops.aten.convolution.default(
            grad_output, weight, None, stride, padding, dilation, False, [0] * len(stride), groups
        )
        for i in spatial:
            grad = grad.narrow(2 + i, 0, input_size[2 + i])
    else:
        missing = missing_padding(input_size, weight.shape[2:], stride, padding, dilation)
        grad = torch.ops.aten.convolution.default(
            grad_output, weight, None, stride, padding, dilation, True, missing, groups
        )
    return grad.contiguous(memory_format=result_format)


def missing_padding(
    input_size: Size, kernel: Size, stride: Ints, padding: Ints, dilation: Ints
) -> list[int]:
    """Return the output padding with which a transposed convolution restores an input's size.

    Args:
        input_size: shape ``(B, C, *in)`` of the convolution's input.
        kernel: sizes of the kernel, one a spatial dimension, as are all that follow.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.

    Returns:
        One int a spatial dimension, ``(in + 2p - d(k - 1) - 1) mod s``.
    """
    return [
        (extent + 2 * p - d * (k - 1) - 1) % s
        for extent, k, s, p, d in zip(
            input_size[2:], kernel, stride, padding, dilation, strict=True
        )
    ]


def weight_grad(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> Tensor:
    """Form the weight gradient of a convolution.

    Args:
        grad_output: ``(B, O, *out)``.
        input: ``(B, C, *in)``, the input or an unbiased reconstruction of it.
        weight: gives shape, dtype and device; its values are not read.
        stride: one int a spatial dimension.
        padding: one int a spatial dimension.
        dilation: one int a spatial dimension.
        transposed: whether the forward convolution was transposed.
        output_padding: of the forward convolution.
        groups: of the forward convolution.

    Returns:
        Tensor like ``weight``.
    """
    layout = computing_format(weight, grad_output, input.shape)
    grad: Tensor = torch.ops.aten.convolution_backward.default(
        grad_output.contiguous(memory_format=layout),
        input.contiguous(memory_format=layout),
        weight,
        None,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        [False, True, False],
    )[1]
    return grad


def _weight_grad(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> Tensor:
    grad = weight_grad(
        grad_output, input, weight, stride, padding, dilation, transposed, output_padding, groups
    )
    return grad.contiguous(memory_format=memory_format(weight))


def _fake_input_grad(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Size,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> Tensor:
    del stride, padding, dilation, transposed, output_padding, groups
    return grad_output.new_empty(list(input_size)).contiguous(
        memory_format=memory_format(grad_output, weight)
    )


def _fake_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> Tensor:
    del grad_output, input, stride, padding, dilation, transposed, output_padding, groups
    return weight.new_empty(weight.shape).contiguous(memory_format=memory_format(weight))


conv_input_grad = define(
    "conv_input_grad(Tensor grad_output, Tensor weight, SymInt[] input_size, SymInt[] stride,"
    " SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding,"
    " SymInt groups) -> Tensor",
    input_grad,
    _fake_input_grad,
)
conv_weight_grad = define(
    "conv_weight_grad(Tensor grad_output, Tensor input, Tensor weight, SymInt[] stride,"
    " SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding,"
    " SymInt groups) -> Tensor",
    _weight_grad,
    _fake_weight_grad,
)
