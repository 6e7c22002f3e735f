"""Pointwise functions: those whose derivative is a boolean, and those where it is a number.

For the first kind (relu and its kin, dropout) torch's own decompositions show the mask, which
is packed to one bit, exact. For the second the derivative is formed in the forward, and the
input gradient is linear in it. The derivative is the backward applied to a gradient of ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from passes import LinearUse
from xconv_fx import _torch
from xconv_fx.ops.derivatives import opmath
from xconv_fx.rules.norms import PATH_SENSITIVITY

aten = torch.ops.aten
xconv = torch.ops.xconv

_MASKED = (
    aten.threshold_backward.default,
    aten.leaky_relu_backward.default,
    aten.hardtanh_backward.default,
    aten.native_dropout_backward.default,
)
_SMOOTH = (
    aten.gelu_backward.default,
    aten.silu_backward.default,
    aten.sigmoid_backward.default,
    aten.tanh_backward.default,
    aten.elu_backward.default,
    aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default,
    aten.mish_backward.default,
    aten.softplus_backward.default,
    aten.log_sigmoid_backward.default,
)


def derivative_exposure(decomposition: Callable[..., Any]) -> Callable[..., Any]:
    """Return the exposure of a pointwise backward ``f(grad, saved, ...)`` linear in grad.

    Args:
        decomposition: the backward in plain ops; of its arguments after the first, the tensors
            are what it saved, at whatever place.
    """

    def expose(grad_output: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wide = [opmath(arg) if isinstance(arg, Tensor) else arg for arg in args]
        saved = next(arg for arg in wide if isinstance(arg, Tensor))
        # A gradient of one everywhere, without sizes: a symbolic size could be read off the
        # incoming gradient, and the derivative would then depend on it.
        one = torch.ones((), dtype=saved.dtype, device=saved.device)
        derivative = decomposition(one, *wide, **kwargs)
        grad: Tensor = xconv.scale_grad(grad_output, derivative)
        return grad

    return expose


def expose_prelu_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Rewrite ``aten._prelu_kernel_backward`` (torch 2.13): a mask, and the negative part.

    The input gradient needs the sign only; the weight gradient is linear in ``min(input, 0)``.
    """
    positive = input > 0
    grad_input = torch.where(positive, grad_output, weight * grad_output)
    negative = torch.where(positive, 0.0, input)
    return grad_input, xconv.scale_grad(grad_output, negative)


def expose_glu_backward(grad_output: Tensor, input: Tensor, dim: int) -> Tensor:
    """Rewrite ``aten.glu_backward`` (torch 2.13): the output ``a sigmoid(b)`` has two derivatives.

    Args:
        grad_output: of half the size of ``input`` along ``dim``.
        input: a and b, one behind the other along ``dim``.
        dim: the dim that is halved.
    """
    value, gate = opmath(input).chunk(2, dim)
    opened = torch.sigmoid(gate)
    grad_value = xconv.scale_grad(grad_output, opened)
    grad_gate = xconv.scale_grad(grad_output, value * opened * (1 - opened))
    return torch.cat([grad_value, grad_gate], dim)


EXPOSURES: dict[Any, Callable[..., Any]] = {
    **_torch.decompositions_of(_MASKED),
    **{
        op: derivative_exposure(decomposition)
        for op, decomposition in _torch.decompositions_of(_SMOOTH).items()
    },
    aten._prelu_kernel_backward.default: expose_prelu_backward,
    aten.glu_backward.default: expose_glu_backward,
}
LINEAR_USES: dict[Any, tuple[LinearUse, ...]] = {
    xconv.scale_grad.default: (LinearUse(1, PATH_SENSITIVITY, on_path=True),),
}
