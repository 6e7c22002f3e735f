"""Gradients that are linear in something the forward formed: norms and pointwise functions.

``norm_input_grad`` and ``norm_weight_grad`` read the normalised input, ``scale_grad`` the
derivative of a pointwise function; each may be an unbiased stand-in. Statistics and products
are taken in float32 for half types.

Shape suffixes: none; the shapes are those of the norm that is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.ops.registry import define
from xconv_fx.sketches.layout import Size


def norm_input_grad(
    grad_normalized: Tensor, normalized: Tensor, rstd: Tensor, stat_size: Size, dims: Sequence[int]
) -> Tensor:
    """Form the input gradient of a normalisation from the gradient of its normalised input.

    With g the gradient of the normalised input h, and means over ``dims``:
    ``dx = rstd * (g - mean(g) - h * mean(g * h))`` (Ioffe and Szegedy, arXiv 1502.03167,
    section 3). A factor that is constant over ``dims``, such as the affine weight of a batch norm,
    may be in ``rstd`` as well as in ``g``. Linear in h but for the last term, where h meets its own
    mean: an unbiased stand-in for h takes ``rstd * g * Var(h) / n`` from the expectation, n being
    the number of elements the statistics are taken over.

    Args:
        grad_normalized: gradient of the normalised input, the affine weight included unless it is
            in ``rstd``.
        normalized: the normalised input, of the same shape.
        rstd: reciprocal standard deviation, with what is constant over ``dims``; broadcastable with
            ``stat_size``.
        stat_size: a view of the shape in which the statistics run over whole ``dims``.
        dims: dims of ``stat_size`` that mean and variance were taken over.

    Returns:
        The input gradient, in shape and dtype of ``grad_normalized``.
    """
    shape, dtype = grad_normalized.shape, grad_normalized.dtype
    g = opmath(grad_normalized).reshape(list(stat_size))
    h = opmath(normalized).reshape(list(stat_size))
    mean_g = g.mean(list(dims), keepdim=True)
    mean_gh = (g * h).mean(list(dims), keepdim=True)
    return (rstd * (g - mean_g - h * mean_gh)).reshape(shape).to(dtype)


def norm_weight_grad(grad_output: Tensor, normalized: Tensor, dims: Sequence[int]) -> Tensor:
    """Form the gradient of a norm's affine weight: ``sum(grad_output * normalized)`` over dims.

    Args:
        grad_output: gradient of the norm's output.
        normalized: the normalised input, of the same shape.
        dims: the dims that the weight does not have.

    Returns:
        The gradient, in float32 for half types.
    """
    product = opmath(grad_output) * opmath(normalized)
    return product.sum(list(dims)) if dims else product


def scale_grad(grad_output: Tensor, derivative: Tensor) -> Tensor:
    """Form the input gradient of a pointwise function from its derivative.

    Args:
        grad_output: gradient of the function's output.
        derivative: the derivative at each element, of the same shape.

    Returns:
        ``grad_output * derivative`` in the dtype of ``grad_output``.
    """
    return (opmath(grad_output) * opmath(derivative)).to(grad_output.dtype)


def opmath(x: Tensor) -> Tensor:
    """Widen a half type to float32, in which products and sums are taken; leave others alone."""
    return x.to(torch.float32) if x.dtype in (torch.bfloat16, torch.float16) else x


define(
    "norm_input_grad(Tensor grad_normalized, Tensor normalized, Tensor rstd, SymInt[] stat_size,"
    " int[] dims) -> Tensor",
    norm_input_grad,
    norm_input_grad,
    norm_input_grad,
)
define(
    "norm_weight_grad(Tensor grad_output, Tensor normalized, int[] dims) -> Tensor",
    norm_weight_grad,
    norm_weight_grad,
    norm_weight_grad,
)
define(
    "scale_grad(Tensor grad_output, Tensor derivative) -> Tensor",
    scale_grad,
    scale_grad,
    scale_grad,
)
