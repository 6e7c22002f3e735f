"""Models of torchvision and timm, with random weights: what people train, not what we wrote.

Not installed with the project. Beside the CPU build of torch 2.13:

    pip install safetensors huggingface_hub pyyaml tqdm
    pip install --no-deps torchvision==0.28.0 timm==1.0.31

Nothing is downloaded: weights are drawn, and so are inputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

INSTALL = (
    "pip install safetensors huggingface_hub pyyaml tqdm && "
    "pip install --no-deps torchvision==0.28.0 timm==1.0.31"
)


class MissingPackageError(ImportError):
    """A package that is not part of the project's own requirements cannot be imported."""


@dataclass(frozen=True)
class Entry:
    """How to build one model.

    Attributes:
        make: Builds it with random weights; given the imported package.
        sample_shape: Shape of one input without the batch, ``(C, *spatial)``.
        batch_size: Of the batch it is counted at.
    """

    make: Callable[[Any], nn.Module]
    sample_shape: tuple[int, ...] = (3, 224, 224)
    batch_size: int = 2


def _torchvision(name: str, **kwargs: Any) -> Entry:
    return Entry(lambda package: package.models.get_model(name, weights=None, **kwargs))


def _timm(name: str) -> Entry:
    return Entry(lambda package: package.create_model(name, pretrained=False))


_MODELS = {
    "torchvision.resnet18": _torchvision("resnet18"),
    "torchvision.resnet50": _torchvision("resnet50"),
    "torchvision.vgg11_bn": _torchvision("vgg11_bn"),
    "torchvision.densenet121": _torchvision("densenet121"),
    "torchvision.mobilenet_v2": _torchvision("mobilenet_v2"),
    "torchvision.fcn_resnet50": _torchvision("fcn_resnet50", weights_backbone=None),
    "torchvision.r3d_18": Entry(_torchvision("r3d_18").make, (3, 8, 112, 112), batch_size=1),
    "timm.efficientnet_b0": _timm("efficientnet_b0"),
    "timm.convnext_atto": _timm("convnext_atto"),
    "timm.regnety_008": _timm("regnety_008"),
}


def names() -> list[str]:
    """Returns the names of the models, as ``package.model``."""
    return list(_MODELS)


def build(
    name: str, batch_size: int | None = None, size: int | None = None
) -> tuple[nn.Module, tuple[Tensor]]:
    """Builds a model and a batch for it.

    Args:
        name: One of :func:`names`.
        batch_size: Samples in the batch; the model's own default if None.
        size: Height and width; the model's own if None.

    Returns:
        The model in training mode, and the batch ``(B, C, *spatial)``, float32.

    Raises:
        ValueError: The name is none of them.
        MissingPackageError: The package is not installed.
    """
    if name not in _MODELS:
        raise ValueError(f"third-party model: expected one of {names()}, got {name!r}.")
    entry = _MODELS[name]
    model = entry.make(_import(name.partition(".")[0]))
    shape = entry.sample_shape if size is None else (*entry.sample_shape[:-2], size, size)
    return model.train(), (torch.randn(batch_size or entry.batch_size, *shape),)


def _import(package: str) -> Any:
    try:
        _define_detection_schemas()
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{package} cannot be imported ({error}); its models need torchvision and timm beside "
            f"this torch: {INSTALL}"
        ) from error


def _define_detection_schemas() -> None:
    """Defines what torchvision's own compiled ops would.

    Its wheel is built for the CUDA torch: beside the CPU torch its library does not load, and the
    import fails on two fake implementations without a schema (torchvision 0.28).
    """
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
