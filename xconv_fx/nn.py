"""Drop-in convolution layers that keep a sketch of their input instead of the input.

The manual way to use the sketches, without a compiler: layers with the arguments and the state
dict of ``torch.nn``, and :func:`convert` for a whole model. The output, the input gradient and
the bias gradient are exact, the weight gradient is unbiased (design, section 1). In evaluation,
without gradients, or when the weight needs none, the layers are the exact ones of torch.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import xconv_fx.ops  # noqa: F401  (registers the operators)
from passes.rules import Codec
from xconv_fx.codecs import Probe, Quantize
from xconv_fx.errors import OptionError
from xconv_fx.ops.convolution import GROUP_SIZE, convolution
from xconv_fx.sketches.probing import MODES
from xconv_fx.sketches.randomness import SEED_BOUND

_logger = logging.getLogger(__name__)

SKETCHES = (*MODES, "quantize")


class XConv1d(nn.Conv1d):
    """``torch.nn.Conv1d`` that keeps a sketch of its input for the weight gradient.

    Input ``(B, C, L)`` or ``(C, L)``, output as of ``torch.nn.Conv1d``. The attribute ``probing``
    switches the sketch off (the layer is then exact) and on again. Where the input has fewer
    positions than probes the layer is exact, since a sketch would not be smaller.
    """

    def __init__(
        self,
        *args: Any,
        sketch: str = "independent",
        probes: int = 16,
        bits: int = 2,
        distribution: str = "gaussian",
        probing: bool = True,
        **kwargs: Any,
    ) -> None:
        """Build the layer.

        Args:
            *args: those of ``torch.nn.Conv1d``.
            sketch: ``independent``, ``multichannel``, ``orthogonal`` or ``quantize``.
            probes: number of probing vectors; ``quantize`` ignores it.
            bits: 8, 4, 2 or 1 bits of ``quantize``; the others ignore it.
            distribution: ``gaussian`` or ``rademacher`` entries of the probing matrix.
            probing: whether to sketch.
            **kwargs: those of ``torch.nn.Conv1d``.

        Raises:
            OptionError: if a sketch option has a value that is not allowed.
        """
        super().__init__(*args, **kwargs)
        _configure(self, sketch, probes, bits, distribution, probing)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, see ``torch.nn.Conv1d``."""
        sketched = _sketched_convolution(self, input)
        return super().forward(input) if sketched is None else sketched

    def extra_repr(self) -> str:
        """Describe the layer, its sketch included."""
        base: Any = super()  # torch leaves extra_repr without annotations
        return f"{base.extra_repr()}, {_describe(self)}"


class XConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` that keeps a sketch of its input for the weight gradient.

    Input ``(B, C, H, W)`` or ``(C, H, W)``; see :class:`XConv1d`.
    """

    def __init__(
        self,
        *args: Any,
        sketch: str = "independent",
        probes: int = 16,
        bits: int = 2,
        distribution: str = "gaussian",
        probing: bool = True,
        **kwargs: Any,
    ) -> None:
        """Build the layer.

        Args:
            *args: those of ``torch.nn.Conv2d``.
            sketch: see :class:`XConv1d`.
            probes: see :class:`XConv1d`.
            bits: see :class:`XConv1d`.
            distribution: see :class:`XConv1d`.
            probing: see :class:`XConv1d`.
            **kwargs: those of ``torch.nn.Conv2d``.

        Raises:
            OptionError: if a sketch option has a value that is not allowed.
        """
        super().__init__(*args, **kwargs)
        _configure(self, sketch, probes, bits, distribution, probing)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, see ``torch.nn.Conv2d``."""
        sketched = _sketched_convolution(self, input)
        return super().forward(input) if sketched is None else sketched

    def extra_repr(self) -> str:
        """Describe the layer, its sketch included."""
        base: Any = super()  # torch leaves extra_repr without annotations
        return f"{base.extra_repr()}, {_describe(self)}"


class XConv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` that keeps a sketch of its input for the weight gradient.

    Input ``(B, C, D, H, W)`` or ``(C, D, H, W)``; see :class:`XConv1d`.
    """

    def __init__(
        self,
        *args: Any,
        sketch: str = "independent",
        probes: int = 16,
        bits: int = 2,
        distribution: str = "gaussian",
        probing: bool = True,
        **kwargs: Any,
    ) -> None:
        """Build the layer.

        Args:
            *args: those of ``torch.nn.Conv3d``.
            sketch: see :class:`XConv1d`.
            probes: see :class:`XConv1d`.
            bits: see :class:`XConv1d`.
            distribution: see :class:`XConv1d`.
            probing: see :class:`XConv1d`.
            **kwargs: those of ``torch.nn.Conv3d``.

        Raises:
            OptionError: if a sketch option has a value that is not allowed.
        """
        super().__init__(*args, **kwargs)
        _configure(self, sketch, probes, bits, distribution, probing)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, see ``torch.nn.Conv3d``."""
        sketched = _sketched_convolution(self, input)
        return super().forward(input) if sketched is None else sketched

    def extra_repr(self) -> str:
        """Describe the layer, its sketch included."""
        base: Any = super()  # torch leaves extra_repr without annotations
        return f"{base.extra_repr()}, {_describe(self)}"


_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: XConv1d,
    nn.Conv2d: XConv2d,
    nn.Conv3d: XConv3d,
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def convert(
    model: nn.Module,
    *,
    sketch: str = "independent",
    probes: int = 16,
    bits: int = 2,
    distribution: str = "gaussian",
    probing: bool = True,
) -> nn.Module:
    """Turn the convolutions of a model into sketching ones, in place.

    Each ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` becomes the same object of the class here,
    with the same parameters, hooks and place in the model; layers from here take the new options.
    Other subclasses may compute something else, and transposed convolutions have no layer here:
    both are left alone, and each is logged by name on the logger ``xconv_fx.nn``.

    Args:
        model: any module, a convolution itself included.
        sketch: see :class:`XConv1d`.
        probes: see :class:`XConv1d`.
        bits: see :class:`XConv1d`.
        distribution: see :class:`XConv1d`.
        probing: see :class:`XConv1d`.

    Returns:
        The model.

    Raises:
        OptionError: if a sketch option has a value that is not allowed; nothing is changed.
        ValueError: if the model has no convolution that can be converted.
    """
    _make_codec(sketch, probes, bits, distribution)
    converted = 0
    left_alone: list[str] = []
    for name, module in model.named_modules():
        kind = type(module)
        if kind in _LAYERS:
            # A change of class keeps hooks, parameters, and references that others hold.
            module.__class__ = _LAYERS[kind]
        elif kind not in _LAYERS.values():
            if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
                left_alone.append(f"{name or '(the model itself)'}: {kind.__name__}")
            continue
        _configure(module, sketch, probes, bits, distribution, probing)
        converted += 1
    for entry in left_alone:
        _logger.warning("convert left a layer exact, no sketching layer matches it: %s", entry)
    if not converted:
        raise ValueError(
            f"convert found no nn.Conv1d, nn.Conv2d or nn.Conv3d in {type(model).__name__}; "
            f"convolutions of other classes: {', '.join(left_alone) or 'none'}"
        )
    return model


def _make_codec(sketch: str, probes: int, bits: int, distribution: str) -> Codec:
    if sketch not in SKETCHES:
        raise OptionError("sketch", sketch, ", ".join(SKETCHES))
    quantize = Quantize(bits, GROUP_SIZE)
    probe = Probe(sketch if sketch in MODES else MODES[0], probes, distribution)
    return quantize if sketch == "quantize" else probe


def _configure(
    layer: Any, sketch: str, probes: int, bits: int, distribution: str, probing: bool
) -> None:
    _make_codec(sketch, probes, bits, distribution)
    layer.sketch, layer.probes, layer.bits = sketch, probes, bits
    layer.distribution, layer.probing = distribution, probing


def _describe(layer: Any) -> str:
    codec = _make_codec(layer.sketch, layer.probes, layer.bits, layer.distribution)
    return f"sketch={codec.name if layer.probing else 'off'}"


def _sketched_convolution(layer: Any, x: Tensor) -> Tensor | None:
    """Convolve and keep a sketch, or return None where the exact layer is to be used."""
    weight, bias = layer.weight, layer.bias
    num_spatial = weight.dim() - 2
    wanted = layer.probing and layer.training and weight.requires_grad
    if not (wanted and torch.is_grad_enabled() and x.dim() in (num_spatial + 1, num_spatial + 2)):
        return None
    batched = x if x.dim() == num_spatial + 2 else x.unsqueeze(0)
    padded, padding = _pad(layer, batched)
    codec = _make_codec(layer.sketch, layer.probes, layer.bits, layer.distribution)
    if codec.supports(padded.shape, padded.dtype) is not None:
        return None
    padded, weight, bias = _autocast(padded, weight, bias)
    seed = torch.randint(0, SEED_BOUND, (), device=x.device)
    y, _ = convolution(
        padded,
        weight,
        bias,
        list(layer.stride),
        padding,
        list(layer.dilation),
        False,
        [0] * num_spatial,
        layer.groups,
        seed,
        layer.sketch,
        layer.probes,
        layer.bits,
        layer.distribution,
    )
    result: Tensor = y if x.dim() == num_spatial + 2 else y.squeeze(0)
    return result


def _pad(layer: Any, x: Tensor) -> tuple[Tensor, list[int]]:
    """Apply padding that the operator cannot; return the input and the padding that is left."""
    if layer.padding == "valid":
        sides = [(0, 0)] * len(layer.stride)
    elif layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in layer.padding]
    if layer.padding_mode == "zeros" and all(left == right for left, right in sides):
        return x, [left for left, _ in sides]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    flat = [side for pair in reversed(sides) for side in pair]
    return functional.pad(x, flat, mode=mode), [0] * len(sides)


# Dynamo of 2.11 cannot trace it.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _autocast_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would cast the arguments of a convolution."""
    device = x.device.type
    if not _autocast_available(device) or not torch.is_autocast_enabled(device):
        return x, weight, bias
    if x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
