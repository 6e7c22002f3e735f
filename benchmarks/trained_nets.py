"""Small networks of the zoo, trained for some steps on crops of real photographs.

Owns which networks the gradient benchmarks look at, their data and their short training. In: a
network's name, a number of steps, a generator. Out: a model in training mode and batches for it.
What is measured on them is left to the benchmarks.

All pixels are those of the photographs that scikit-image carries (`demos.texture_data`); nothing
is downloaded. The volumes are no scans but pans: plane k is a crop of a photograph moved by k
pixels down and right, as a camera that pans over a still scene would take it. So every axis has
the statistics of real pixels, and the first axis no content of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models_zoo
from demos.texture_data import TextureData, draw_train_batch

_NUM_CLASSES = 8


@dataclass(frozen=True)
class BenchmarkNet:
    """One network, its task and the size of its batches.

    Attributes:
        name: how the benchmarks call it.
        model: name in `models_zoo`.
        task: `classify` crops by their photograph, or `segment` images (volumes) that a random
            line (plane) divides between two photographs.
        size: spatial size of an image, in pixels.
        learning_rate: of the training.
        batch_size: N.
        options: of the model's builder.
    """

    name: str
    model: str
    task: Literal["classify", "segment"]
    size: tuple[int, ...]
    learning_rate: float
    batch_size: int = 64
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledBatch:
    """Images or volumes and their classes.

    Attributes:
        images: fp32 ``(N, C, *size)``.
        labels: int64 ``(N,)``, or ``(N, *size)`` for a segmentation.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> LabelledBatch:
        """Return the batch on a device."""
        return LabelledBatch(self.images.to(device), self.labels.to(device))


NETS = (
    BenchmarkNet(
        "resnet18",
        "resnet18",
        "classify",
        (32, 32),
        learning_rate=0.05,
        options={"width": 16, "small_input": True},
    ),
    BenchmarkNet(
        "unet2d",
        "unet2d",
        "segment",
        (32, 32),
        learning_rate=0.2,
        options={"width": 8, "num_stages": 3},
    ),
    # From width 12 on a group has three channels: at 8 it would have one, an instance norm.
    BenchmarkNet(
        "unet2d_group",
        "unet2d",
        "segment",
        (32, 32),
        learning_rate=0.2,
        options={"width": 12, "num_stages": 3, "norm": "group"},
    ),
    BenchmarkNet("cifar_net", "cifar_net", "classify", (32, 32), learning_rate=0.02),
    BenchmarkNet(
        "unet3d",
        "unet3d",
        "segment",
        (16, 16, 16),
        batch_size=16,
        learning_rate=0.1,
        options={"width": 8, "num_stages": 3},
    ),
)
"""BatchNorm twice, GroupNorm, no norm, and InstanceNorm in three dimensions."""


def net_option(default: Sequence[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option ``--net`` of a benchmark's command; it fills ``net_names``.

    Args:
        default: names of the networks that are measured without it.
    """
    return click.option(
        "--net",
        "net_names",
        multiple=True,
        type=click.Choice([net.name for net in NETS]),
        default=default,
        help="May be given several times.",
    )


def find_net(name: str) -> BenchmarkNet:
    """Finds a network by its name.

    Args:
        name: its name in :data:`NETS`.

    Returns:
        The network.

    Raises:
        ValueError: there is none of that name; the text gives the closest and all names.
    """
    known = [net.name for net in NETS]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown network {name!r}{hint}; known: {', '.join(known)}")
    return NETS[known.index(name)]


def build_net(net: BenchmarkNet, seed: int) -> nn.Module:
    """Builds a network with the seed's initial weights.

    Args:
        net: the network.
        seed: seed of torch's global generator, from which the weights are drawn.

    Returns:
        The model, in training mode, on the CPU.
    """
    torch.manual_seed(seed)
    return models_zoo.build(net.model, num_classes=_NUM_CLASSES, **net.options)


def draw_batch(
    net: BenchmarkNet, data: TextureData, generator: torch.Generator, batch_size: int | None = None
) -> LabelledBatch:
    """Draws a batch of the network's task.

    Args:
        net: the network; its ``in_channels`` are 3 grey channels in 2D and one in 3D.
        data: photographs; their training regions are read.
        generator: source of all randomness.
        batch_size: N; None for the network's own.

    Returns:
        A batch of independent samples.
    """
    count = net.batch_size if batch_size is None else batch_size
    first = _draw_images(net, data, count, generator)
    if net.task == "classify":
        return first
    second = _draw_images(net, data, count, generator)
    inside = _half_spaces(count, net.size, generator)
    shape = (count, *(1 for _ in net.size))
    return LabelledBatch(
        torch.where(inside.unsqueeze(1), first.images, second.images),
        torch.where(inside, first.labels.view(shape), second.labels.view(shape)),
    )


def loss_of(run: Callable[[Tensor], Tensor], batch: LabelledBatch) -> Tensor:
    """Computes the mean cross-entropy of a batch.

    Args:
        run: maps images to logits ``(N, 8)`` or ``(N, 8, *size)``; a model, perhaps compiled.
        batch: the batch.

    Returns:
        0-dim fp32 tensor.
    """
    return F.cross_entropy(run(batch.images), batch.labels)


def train(
    net: BenchmarkNet,
    model: nn.Module,
    data: TextureData,
    num_steps: int,
    generator: torch.Generator,
) -> list[float]:
    """Trains a model eagerly and exactly, by SGD with momentum 0.9.

    Args:
        net: the network, which gives task, batch size and learning rate.
        model: its model, on any one device, changed in place.
        data: photographs.
        num_steps: number of steps; 0 leaves the initial weights.
        generator: source of the batches.

    Returns:
        The loss of each step.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=net.learning_rate, momentum=0.9)
    device = next(model.parameters()).device
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, draw_batch(net, data, generator).to(device))
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    optimizer.zero_grad(set_to_none=True)
    return losses


def _draw_images(
    net: BenchmarkNet, data: TextureData, count: int, generator: torch.Generator
) -> LabelledBatch:
    side = net.size[-1]
    if len(net.size) == 2:
        crops = draw_train_batch(data, count, side, generator)
        return LabelledBatch(crops.images, crops.labels)
    depth = net.size[0]
    crops = draw_train_batch(data, count, side + depth - 1, generator)
    planes = [crops.images[:, :1, k : k + side, k : k + side] for k in range(depth)]
    return LabelledBatch(torch.stack(planes, 2), crops.labels)


def _half_spaces(count: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws boolean masks ``(N, *size)``: one side of a random line or plane near the centre."""
    normal = torch.randn(count, len(size), generator=generator)
    normal = normal / normal.norm(dim=1, keepdim=True)
    axes = [torch.linspace(-1, 1, extent) for extent in size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    offset = 0.5 * torch.rand(count, generator=generator) - 0.25
    height = torch.einsum("nd,d...->n...", normal, points)
    return height > offset.view(count, *(1 for _ in size))
