"""The nets of the frontier: of full width, at sizes that two CPU cores can time.

Owns which nets, batches and images. In: a model's name and sizes of the user's. Out: a
`benchmarks.trained_nets.BenchmarkNet`, whose training and batches are that module's. Sizes are
chosen so that the values kept for backward outweigh the weights' gradients, as in training at
full size. For the same reason the U-Nets have four stages in place of five: a quarter (2D) and a
third (3D) of the weights, with no more than 6 % fewer bytes saved by eager autograd. Dropout is
off, since its masks would differ between eager and compiled steps and no error be left to
measure; VGG has the classifier for small images, of one layer.
"""

from __future__ import annotations

import dataclasses

import torch

import models_zoo
from benchmarks.trained_nets import BenchmarkNet
from demos.texture_data import TextureData

NETS = (
    BenchmarkNet("resnet50", "resnet50", "classify", (112, 112), 0.02, batch_size=16),
    BenchmarkNet(
        "unet2d", "unet2d", "segment", (96, 96), 0.05, batch_size=4, options={"num_stages": 4}
    ),
    BenchmarkNet(
        "unet3d", "unet3d", "segment", (32, 32, 32), 0.05, batch_size=2, options={"num_stages": 4}
    ),
    BenchmarkNet(
        "vgg11_bn",
        "vgg11_bn",
        "classify",
        (112, 112),
        0.02,
        batch_size=8,
        options={"small_input": True},
    ),
    BenchmarkNet(
        "mobilenet_v2",
        "mobilenet_v2",
        "classify",
        (96, 96),
        0.02,
        batch_size=16,
        options={"dropout": 0.0},
    ),
)
"""Batch norm in 2D four times, with and without depthwise convolutions; instance norm in 3D."""


def net_at(
    name: str, data: TextureData, batch_size: int | None = None, size: int | None = None
) -> BenchmarkNet:
    """Find a net, and set its batch and image.

    Args:
        name: of one of :data:`NETS`.
        data: photographs, that a crop must fit into.
        batch_size: N; None for the net's own.
        size: side of an image or volume in pixels; None for the net's own.

    Returns:
        The net.

    Raises:
        ValueError: there is no such net, the model does not take the size (an
            ``InputShapeError``), or the photographs are too small for it.
    """
    known = {net.name: net for net in NETS}
    if name not in known:
        raise ValueError(f"frontier: expected a model of {list(known)}, got {name!r}")
    net = known[name]
    if size is not None:
        net = dataclasses.replace(net, size=(size,) * len(net.size))
    if batch_size is not None:
        net = dataclasses.replace(net, batch_size=batch_size)
    with torch.device("meta"):
        models_zoo.input_spec(models_zoo.build(net.model, **net.options)).check_size(net.size)
    crop = net.size[-1] if len(net.size) == 2 else net.size[-1] + net.size[0] - 1
    largest = min(min(region.shape) for region in data.train_regions)
    if crop > largest:
        raise ValueError(
            f"frontier: a {name} of size {net.size} needs crops of {crop} pixels, but the smallest "
            f"photograph gives {largest}; choose a smaller --size"
        )
    return net
