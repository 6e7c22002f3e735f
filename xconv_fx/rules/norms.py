"""Batch, group, layer and instance norms: linear in the normalised input, which is formed here.

Mean and reciprocal standard deviation stay exact (they are small), and so does the gradient
of the affine bias. Of the gradient of the input one term is quadratic; see
:func:`xconv_fx.ops.derivatives.norm_input_grad` for its size, O(1/n) of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from passes import LinearUse
from xconv_fx.ops.derivatives import opmath

aten = torch.ops.aten
xconv = torch.ops.xconv

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

# Noise in a weight gradient stays there; noise in an input gradient travels to every layer
# upstream, so an element of it is priced 16 times as high (4 bits where a conv gets 2).
PATH_SENSITIVITY = 16.0


def expose_batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> Gradients:
    """Rewrite ``aten.native_batch_norm_backward`` (torch 2.13); instance norm arrives here too.

    Args:
        grad_output: ``(N, C, *)``.
        input: ``(N, C, *)``.
        weight: ``(C,)`` or None.
        running_mean: ``(C,)``, read in eval mode.
        running_var: ``(C,)``, read in eval mode.
        save_mean: ``(C,)``, read in training mode.
        save_invstd: ``(C,)``, read in training mode.
        train: whether the statistics came from the batch.
        eps: added to ``running_var``.
        output_mask: which of the gradients of input, weight and bias are wanted.
    """
    channel = [1, -1] + [1] * (input.dim() - 2)
    dims = [0, *range(2, input.dim())]
    if train:
        assert save_mean is not None
        assert save_invstd is not None
        mean, rstd = save_mean, save_invstd
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, rstd = running_mean, torch.rsqrt(running_var + eps)
    mean, rstd = mean.reshape(channel), rstd.reshape(channel)
    normalized = (opmath(input) - mean) * rstd
    # The weight is constant over what a statistic is taken of (that of a group or layer norm is
    # not), so it may come after the sums, which then are those of the gradients of weight and bias.
    scale = rstd if weight is None else rstd * weight.reshape(channel)
    grad_input = None
    if output_mask[0] and train:
        grad_input = xconv.norm_input_grad(
            grad_output, normalized, scale, list(input.shape), dims
        ).to(input.dtype)
    elif output_mask[0]:
        grad_input = (grad_output * scale).to(input.dtype)
    return grad_input, *_affine_grads(grad_output, normalized, weight, dims, output_mask)


def expose_group_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    N: int,  # noqa: N803  aten's name
    C: int,  # noqa: N803  aten's name
    HxW: int,  # noqa: N803  aten's name
    group: int,
    output_mask: Sequence[bool],
) -> Gradients:
    """Rewrite ``aten.native_group_norm_backward`` (torch 2.13).

    Args:
        grad_output: ``(N, C, *)``.
        input: ``(N, C, *)``.
        mean: ``(N, group)``.
        rstd: ``(N, group)``.
        weight: ``(C,)`` or None.
        N: batch size.
        C: channels.
        HxW: product of the spatial sizes.
        group: number of groups.
        output_mask: which of the gradients of input, weight and bias are wanted.
    """
    channel = [1, -1] + [1] * (input.dim() - 2)
    dims = [0, *range(2, input.dim())]
    stat_size = [N, group, C // group * HxW]
    mean, rstd = mean.reshape(N, group, 1), rstd.reshape(N, group, 1)
    grouped = opmath(input).reshape(stat_size)
    normalized = ((grouped - mean) * rstd).reshape(input.shape)
    grad_normalized = grad_output if weight is None else grad_output * weight.reshape(channel)
    grad_input = None
    if output_mask[0]:
        grad_input = xconv.norm_input_grad(grad_normalized, normalized, rstd, stat_size, [2]).to(
            input.dtype
        )
    return grad_input, *_affine_grads(grad_output, normalized, weight, dims, output_mask)


def expose_layer_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> Gradients:
    """Rewrite ``aten.native_layer_norm_backward`` (torch 2.13).

    Args:
        grad_output: ``(*, *normalized_shape)``.
        input: ``(*, *normalized_shape)``.
        normalized_shape: the trailing sizes that are normalised.
        mean: ``(*, 1, ..., 1)``.
        rstd: ``(*, 1, ..., 1)``.
        weight: ``normalized_shape`` or None.
        bias: unread.
        output_mask: which of the gradients of input, weight and bias are wanted.
    """
    del bias
    num_outer = input.dim() - len(normalized_shape)
    inner = list(range(num_outer, input.dim()))
    normalized = (opmath(input) - mean) * rstd
    grad_normalized = grad_output if weight is None else grad_output * weight
    grad_input = None
    if output_mask[0]:
        grad_input = xconv.norm_input_grad(
            grad_normalized, normalized, rstd, list(input.shape), inner
        ).to(input.dtype)
    outer = list(range(num_outer))
    return grad_input, *_affine_grads(grad_output, normalized, weight, outer, output_mask)


def _affine_grads(
    grad_output: Tensor,
    normalized: Tensor,
    weight: Tensor | None,
    dims: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    dtype = grad_output.dtype if weight is None else weight.dtype
    grad_weight = grad_bias = None
    if output_mask[1]:
        grad_weight = xconv.norm_weight_grad(grad_output, normalized, dims).to(dtype)
    if output_mask[2]:
        grad_bias = (opmath(grad_output).sum(list(dims)) if dims else grad_output).to(dtype)
    return grad_weight, grad_bias


def _expose_batch_norm_backward_with_reserve(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_var: Tensor | None,
    update: bool,
    eps: float,
    output_mask: Sequence[bool],
    reserve: Tensor,
) -> Gradients:
    """Rewrite ``aten.batch_norm_backward``; ``save_var`` holds the reciprocal deviation."""
    del reserve
    return expose_batch_norm_backward(
        grad_output, input, weight, running_mean, running_var, save_mean, save_var, update, eps,
        output_mask,
    )  # fmt: skip


def _expose_cudnn_batch_norm_backward(
    input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_var: Tensor | None,
    epsilon: float,
    reserve: Tensor,
) -> Gradients:
    """Rewrite ``aten.cudnn_batch_norm_backward``; cuDNN runs in training mode only."""
    del reserve
    return expose_batch_norm_backward(
        grad_output, input, weight, running_mean, running_var, save_mean, save_var, True,
        epsilon, [True, True, True],
    )  # fmt: skip


EXPOSURES: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm_backward.default: expose_batch_norm_backward,
    aten.batch_norm_backward.default: _expose_batch_norm_backward_with_reserve,
    aten.cudnn_batch_norm_backward.default: _expose_cudnn_batch_norm_backward,
    aten.native_group_norm_backward.default: expose_group_norm_backward,
    aten.native_layer_norm_backward.default: expose_layer_norm_backward,
}
LINEAR_USES: dict[Any, tuple[LinearUse, ...]] = {
    xconv.norm_input_grad.default: (LinearUse(1, PATH_SENSITIVITY, on_path=True),),
    xconv.norm_weight_grad.default: (LinearUse(arg=1),),
}
