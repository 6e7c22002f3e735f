"""MobileNetV2."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import models_zoo
from models_zoo.mobilenet import InvertedResidual, mobilenet_v2


def test_published_parameter_counts(count_parameters: Callable[..., int]) -> None:
    assert count_parameters("mobilenet_v2") == 3_504_872
    # timm lists its mobilenetv2_140 at 6.11 million.
    assert count_parameters("mobilenet_v2", width_mult=1.4) == pytest.approx(6.11e6, abs=0.005e6)


def test_full_size_output_shape(meta_output: Callable[..., Tensor]) -> None:
    assert meta_output("mobilenet_v2", 2, (224, 192)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("channels", "stride", "residual"), [((8, 8), 1, True), ((8, 8), 2, False), ((8, 16), 1, False)]
)
def test_inverted_residual_adds_where_the_shape_is_kept(
    channels: tuple[int, int], stride: int, residual: bool
) -> None:
    block = InvertedResidual(*channels, stride, 6)
    assert block.has_residual is residual
    assert block(torch.randn(2, 8, 8, 4)).shape == (2, channels[1], 8 // stride, 4 // stride)


def test_has_seventeen_depthwise_convolutions_and_relu6() -> None:
    modules = list(mobilenet_v2(width_mult=0.1).modules())
    depthwise = [m for m in modules if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    assert len(depthwise) == 17
    assert sum(isinstance(m, nn.ReLU6) for m in modules) == 35


@pytest.mark.parametrize("batch_size", [1, 2])
def test_trains_on_non_square_images(train_step: Callable[..., Tensor], batch_size: int) -> None:
    torch.manual_seed(0)
    model = mobilenet_v2(num_classes=5, in_channels=2, width_mult=0.1)
    assert train_step(model, torch.randn(batch_size, 2, 64, 40)).shape == (batch_size, 5)


def test_too_small_an_image_says_the_least_size() -> None:
    with pytest.raises(models_zoo.InputShapeError, match="least size is 32 a side"):
        mobilenet_v2(width_mult=0.1)(torch.randn(1, 3, 31, 32))


@pytest.mark.parametrize("width_mult", [0, -1.0, "1"])
def test_width_mult_out_of_range_is_refused(width_mult: object) -> None:
    text = re.escape(f"mobilenet_v2: width_mult must be above 0, got {width_mult!r}")
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        models_zoo.build("mobilenet_v2", width_mult=width_mult)
