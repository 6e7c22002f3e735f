"""What XConv tells the passes: which backward ops are linear in what, and which codecs fit.

This is the one place where an op gets its rule: an exposure (a decomposition that shows the
linear use or the mask, numbers kept), and the linear argument with its sensitivity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from passes import LinearUse, Rules
from passes.rules import Codec
from xconv_fx import _torch, ops
from xconv_fx.options import BITS, PROBINGS, Options
from xconv_fx.sketches.codecs import BitMask, Probe, Quantize

aten = torch.ops.aten
xconv = torch.ops.xconv

_DEFAULT_PROBES = 16


def make_rules(options: Options) -> Rules:
    """Return the rules for these options."""
    return Rules(
        linear=LINEAR_USES,
        exposures=EXPOSURES,
        lowerings=ops.DECOMPOSITIONS,
        primitives=_torch.inductor_decompositions(),
        codecs=candidate_codecs(options),
        mask_codec=BitMask(),
        audited=AUDITED,
    )


def candidate_codecs(options: Options) -> tuple[Codec, ...]:
    """Return the sketches that the plan may choose from, most exact first."""
    if options.sketch in PROBINGS:
        probes = _DEFAULT_PROBES if options.probes is None else options.probes
        return (Probe(options.sketch, probes, options.distribution),)
    if options.bits is not None:
        return (Quantize(options.bits),)
    if options.sketch == "quantize":
        return (Quantize(),)
    return tuple(Quantize(bits) for bits in BITS)


def noise_price(options: Options) -> float:
    """Return lambda: a codec chosen by name is used wherever it is smaller than the value."""
    fixed = options.sketch != "auto" or options.bits is not None
    return 0.0 if fixed else options.noise_price


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
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Split a convolution backward into its three gradients (aten schema, torch 2.13).

    The input gradient reads the weight and not the input; the weight gradient is linear in
    the input; the bias gradient is a sum of the output gradient.
    """
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    grad_input = grad_weight = grad_bias = None
    if output_mask[0]:
        grad_input = xconv.conv_input_grad(grad_output, weight, list(input.shape), *geometry)
    if output_mask[1]:
        grad_weight = xconv.conv_weight_grad(grad_output, input, weight, *geometry)
    if output_mask[2]:
        grad_bias = grad_output.sum([0, *range(2, grad_output.dim())])
    return grad_input, grad_weight, grad_bias


EXPOSURES: dict[Any, Any] = {
    aten.convolution_backward.default: expose_convolution_backward,
    **_torch.decompositions_of(
        [
            aten.threshold_backward.default,
            aten.leaky_relu_backward.default,
            aten.hardtanh_backward.default,
            aten.native_dropout_backward.default,
        ]
    ),
}

LINEAR_USES: dict[Any, tuple[LinearUse, ...]] = {
    xconv.conv_weight_grad.default: (LinearUse(arg=1),),
}

AUDITED: dict[Any, str] = {xconv.conv_weight_grad.default: "convolution"}
