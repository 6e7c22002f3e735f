"""The models by name: building them and making small example inputs for them.

Comes in: a model's name and its options. Goes out: an ``nn.Module`` with random weights, or the
tensors to call it with. The architectures are left to the family modules.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models_zoo.blocks import check_at_least
from models_zoo.convnet import cifar_net, mnist_net
from models_zoo.dcgan import dcgan_discriminator, dcgan_generator
from models_zoo.densenet import densenet121, densenet_small
from models_zoo.errors import ModelOptionError, UnknownModelError
from models_zoo.input_spec import InputSpec
from models_zoo.mobilenet import mobilenet_v2
from models_zoo.resnet import resnet18, resnet50
from models_zoo.squeezenet import squeezenet1_0, squeezenet1_1
from models_zoo.super_resolution import super_resolution
from models_zoo.unet import unet2d, unet3d
from models_zoo.vgg import vgg11, vgg11_bn, vgg16

Task = Literal["classification", "dense", "generator"]
"""What a model's output is: logits an image, a map a pixel, or an image from a latent."""


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry.

    Args:
        name: the name it is built by.
        builder: the function that builds it; its keyword arguments are the model's options.
        in_channels: C of the input at the default options.
        size: a small spatial size to run it at, in pixels.
        num_spatial_dims: number of spatial dims of the input.
        task: what the output is.
    """

    name: str
    builder: Callable[..., nn.Module]
    in_channels: int
    size: tuple[int, ...]
    num_spatial_dims: int
    task: Task

    def options(self) -> tuple[str, ...]:
        """The names of the builder's options, in its order."""
        return tuple(inspect.signature(self.builder).parameters)


_ENTRIES = (
    ModelEntry("mnist_net", mnist_net, 1, (28, 28), 2, "classification"),
    ModelEntry("cifar_net", cifar_net, 3, (32, 32), 2, "classification"),
    ModelEntry("squeezenet1_0", squeezenet1_0, 3, (64, 64), 2, "classification"),
    ModelEntry("squeezenet1_1", squeezenet1_1, 3, (64, 64), 2, "classification"),
    ModelEntry("resnet18", resnet18, 3, (64, 64), 2, "classification"),
    ModelEntry("resnet50", resnet50, 3, (64, 64), 2, "classification"),
    ModelEntry("vgg11", vgg11, 3, (64, 64), 2, "classification"),
    ModelEntry("vgg11_bn", vgg11_bn, 3, (64, 64), 2, "classification"),
    ModelEntry("vgg16", vgg16, 3, (64, 64), 2, "classification"),
    ModelEntry("unet2d", unet2d, 3, (64, 64), 2, "dense"),
    ModelEntry("unet3d", unet3d, 1, (32, 32, 32), 3, "dense"),
    ModelEntry("mobilenet_v2", mobilenet_v2, 3, (64, 64), 2, "classification"),
    ModelEntry("densenet121", densenet121, 3, (64, 64), 2, "classification"),
    ModelEntry("densenet_small", densenet_small, 3, (32, 32), 2, "classification"),
    ModelEntry("super_resolution", super_resolution, 3, (24, 24), 2, "dense"),
    ModelEntry("dcgan_generator", dcgan_generator, 100, (1, 1), 2, "generator"),
    ModelEntry("dcgan_discriminator", dcgan_discriminator, 3, (64, 64), 2, "classification"),
)


def names() -> tuple[str, ...]:
    """The names of all models, in the registry's order."""
    return tuple(entry.name for entry in _ENTRIES)


def entry(name: str) -> ModelEntry:
    """The registry entry of a model.

    Args:
        name: the model's name.

    Returns:
        Its entry.

    Raises:
        UnknownModelError: no model has that name; the text gives the closest and all names.
    """
    for candidate in _ENTRIES:
        if candidate.name == name:
            return candidate
    raise UnknownModelError(
        f"unknown model {name!r}{_suggestion(name, names())}; known models: {', '.join(names())}"
    )


def build(name: str, **options: object) -> nn.Module:
    """Build a model with random weights, drawn from torch's global generator.

    Args:
        name: the model's name.
        **options: the options of its builder, such as ``num_classes`` or ``width``.

    Returns:
        The model, in training mode, on torch's default device.

    Raises:
        UnknownModelError: no model has that name.
        ModelOptionError: the model has no such option, or its value is out of range.
    """
    found = entry(name)
    known = found.options()
    for option in options:
        if option not in known:
            raise ModelOptionError(
                f"{name}: no option {option!r}{_suggestion(option, known)}; "
                f"its options: {', '.join(known)}"
            )
    return found.builder(**options)


def input_spec(model: nn.Module) -> InputSpec:
    """What a model of the zoo accepts as its input.

    Args:
        model: a model that :func:`build` made.

    Returns:
        Its channels, number of spatial dims and sizes.

    Raises:
        ModelOptionError: the module is not a model of the zoo.
    """
    spec = getattr(model, "input_spec", None)
    if not isinstance(spec, InputSpec):
        raise ModelOptionError(
            f"{type(model).__name__} has no input_spec; give a model that models_zoo.build made"
        )
    return spec


def example_input(
    name: str,
    batch_size: int,
    *,
    size: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    **options: object,
) -> tuple[Tensor, ...]:
    """Small standard normal inputs for a model.

    Args:
        name: the model's name.
        batch_size: N, at least 1.
        size: the spatial size, one number for equal sides; None for the entry's small default,
            raised where the options ask for more.
        device: where the tensors are made; torch's default device when None.
        dtype: a floating dtype.
        generator: source of the numbers, on the same device; torch's global one when None.
        **options: the options the model is built with, where they change its input
            (``in_channels``, ``image_size``, ``small_input``, ``num_stages``, ...).

    Returns:
        The positional arguments of the model's ``forward``: ``(N, C, *spatial)``.

    Raises:
        UnknownModelError: no model has that name.
        ModelOptionError: the batch size, the dtype or an option is out of range.
        InputShapeError: the model cannot take the size; the text says the least size.
    """
    found = entry(name)
    check_at_least(name, 1, batch_size=batch_size)
    if not dtype.is_floating_point:
        raise ModelOptionError(f"{name}: dtype must be a floating dtype, got {dtype}")
    with torch.device("meta"):
        spec = input_spec(build(name, **options))
    if size is None:
        spatial = spec.fit(found.size)
    else:
        sides = (size,) * spec.num_spatial_dims if isinstance(size, int) else tuple(size)
        spec.check_size(sides)
        spatial = sides
    shape = (batch_size, spec.in_channels, *spatial)
    return (torch.randn(shape, device=device, dtype=dtype, generator=generator),)


def _suggestion(word: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
