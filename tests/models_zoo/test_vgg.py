"""VGG-11, VGG-11 with batch norm and VGG-16."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import models_zoo
from models_zoo.vgg import vgg11

NAMES = ("vgg11", "vgg11_bn", "vgg16")


def test_published_parameter_counts(count_parameters: Callable[..., int]) -> None:
    assert count_parameters("vgg11") == 132_863_336
    assert count_parameters("vgg11_bn") == 132_868_840
    assert count_parameters("vgg16") == 138_357_544


def test_small_head_is_one_linear_layer(count_parameters: Callable[..., int]) -> None:
    # The thirteen convolutions of VGG-16 hold 14,714,688 parameters.
    expected = 14_714_688 + 512 * 10 + 10
    assert count_parameters("vgg16", num_classes=10, small_input=True) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(224, 192), (32, 32)])
def test_full_size_output_shape(
    meta_output: Callable[..., Tensor], name: str, size: tuple[int, int]
) -> None:
    assert meta_output(name, 2, size).shape == (2, 1000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_trains_on_non_square_images(
    train_step: Callable[..., Tensor], name: str, batch_size: int
) -> None:
    torch.manual_seed(0)
    model = models_zoo.build(name, num_classes=5, in_channels=2, width=4, small_input=True)
    assert train_step(model, torch.randn(batch_size, 2, 64, 40)).shape == (batch_size, 5)


def test_too_small_an_image_says_the_least_size() -> None:
    model = vgg11(width=4, small_input=True)
    with pytest.raises(models_zoo.InputShapeError, match="least size is 32 a side"):
        model(torch.randn(1, 3, 32, 31))
    with pytest.raises(RuntimeError):
        model.features(torch.randn(1, 3, 32, 31))
