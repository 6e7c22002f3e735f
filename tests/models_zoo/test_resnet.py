"""ResNet-18 and ResNet-50."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import models_zoo
from models_zoo.resnet import BasicBlock, Bottleneck, resnet18

NAMES = ("resnet18", "resnet50")


def test_published_parameter_counts(count_parameters: Callable[..., int]) -> None:
    assert count_parameters("resnet18") == 11_689_512
    assert count_parameters("resnet50") == 25_557_032


def test_the_small_stem_swaps_the_first_kernel_only(count_parameters: Callable[..., int]) -> None:
    difference = (7 * 7 - 3 * 3) * 3 * 64
    assert count_parameters("resnet18", small_input=True) == 11_689_512 - difference


@pytest.mark.parametrize("name", NAMES)
def test_full_size_output_shape(meta_output: Callable[..., Tensor], name: str) -> None:
    assert meta_output(name, 2, (224, 192)).shape == (2, 1000)


@pytest.mark.parametrize(("block", "out_channels"), [(BasicBlock, 4), (Bottleneck, 16)])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_shapes(block: type[nn.Module], out_channels: int, stride: int) -> None:
    output = block(6, 4, stride)(torch.randn(2, 6, 8, 4))
    assert output.shape == (2, out_channels, 8 // stride, 4 // stride)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("small_input", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_trains_on_non_square_images(
    train_step: Callable[..., Tensor], name: str, small_input: bool, batch_size: int
) -> None:
    torch.manual_seed(0)
    options = {"num_classes": 5, "in_channels": 2, "width": 4, "small_input": small_input}
    model = models_zoo.build(name, **options)
    size = (16, 24) if small_input else (64, 40)
    assert train_step(model, torch.randn(batch_size, 2, *size)).shape == (batch_size, 5)


def test_parameter_names_are_torchvisions() -> None:
    names = dict(resnet18(width=4).named_parameters())
    assert names["layer2.0.downsample.0.weight"].shape == (8, 4, 1, 1)
    assert names["layer4.1.bn2.weight"].shape == (32,)
    assert names["fc.weight"].shape == (1000, 32)


@pytest.mark.parametrize(("small_input", "least_size"), [(False, 32), (True, 8)])
def test_too_small_an_image_says_the_least_size(small_input: bool, least_size: int) -> None:
    model = resnet18(width=4, small_input=small_input).eval()
    assert model(torch.randn(1, 3, least_size, least_size)).shape == (1, 1000)
    text = f"resnet18: spatial size .* the least size is {least_size} a side"
    with pytest.raises(models_zoo.InputShapeError, match=text):
        model(torch.randn(1, 3, least_size, least_size - 1))


def test_too_small_an_image_names_the_option_that_helps() -> None:
    with pytest.raises(models_zoo.InputShapeError, match="build with small_input=True"):
        resnet18(width=4)(torch.randn(1, 3, 16, 16))


def test_width_zero_is_refused() -> None:
    text = re.escape("resnet50: width must be an integer of at least 1, got 0")
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        models_zoo.build("resnet50", width=0)
