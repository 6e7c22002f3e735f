"""U-Nets in 2D and 3D."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import models_zoo
from models_zoo.unet import unet2d, unet3d

NORMS = ("batch", "group", "instance", "none")


def test_published_parameter_count_2d(count_parameters: Callable[..., int]) -> None:
    # milesial/Pytorch-UNet, UNet(n_channels=3, n_classes=1, bilinear=False).
    assert count_parameters("unet2d", num_classes=1) == 31_037_633


def test_parameter_count_2d_of_the_paper(count_parameters: Callable[..., int]) -> None:
    # Ronneberger et al., figure 1: without a norm, with biases, one channel in and two out.
    widths = (64, 128, 256, 512, 1024)
    expected = sum(
        9 * (cin + cout) * cout + 2 * cout for cin, cout in zip((1, *widths), widths, strict=False)
    )
    expected += sum(4 * 2 * w * w + w + 9 * (2 * w + w) * w + 2 * w for w in (512, 256, 128, 64))
    expected += 64 * 2 + 2
    assert count_parameters("unet2d", in_channels=1, norm="none") == expected


def test_parameter_count_3d_of_six_stages(count_parameters: Callable[..., int]) -> None:
    # PlainConvUNet by hand: per convolution 27 * cin * cout + cout and an affine norm of 2 * cout.
    widths = (32, 64, 128, 256, 320, 320)

    def stage(cin: int, cout: int) -> int:
        return 27 * (cin + cout) * cout + 6 * cout

    expected = sum(stage(*pair) for pair in zip((1, *widths), widths, strict=False))
    expected += sum(
        8 * low * high + high + stage(2 * high, high)
        for high, low in zip(widths, widths[1:], strict=False)
    )
    expected += 32 * 2 + 2
    assert count_parameters("unet3d", num_stages=6) == expected


def test_full_size_output_shapes(meta_output: Callable[..., Tensor]) -> None:
    assert meta_output("unet2d", 2, (256, 192)).shape == (2, 2, 256, 192)
    assert meta_output("unet3d", 2, (96, 128, 64)).shape == (2, 2, 96, 128, 64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_2d_trains_on_non_square_images(
    train_step: Callable[..., Tensor], norm: str, batch_size: int
) -> None:
    torch.manual_seed(0)
    model = unet2d(num_classes=3, in_channels=2, width=4, num_stages=3, norm=norm)
    output = train_step(model, torch.randn(batch_size, 2, 16, 24))
    assert output.shape == (batch_size, 3, 16, 24)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_3d_trains_on_unequal_sides(
    train_step: Callable[..., Tensor], norm: str, batch_size: int
) -> None:
    torch.manual_seed(0)
    model = unet3d(num_classes=3, in_channels=2, width=4, num_stages=3, norm=norm)
    output = train_step(model, torch.randn(batch_size, 2, 8, 12, 16))
    assert output.shape == (batch_size, 3, 8, 12, 16)


def test_the_ways_down_up_and_the_activations_are_each_nets_own() -> None:
    kinds_2d = {type(module) for module in unet2d(width=4).modules()}
    kinds_3d = {type(module) for module in unet3d(width=4).modules()}
    assert {nn.MaxPool2d, nn.ConvTranspose2d, nn.ReLU, nn.BatchNorm2d} <= kinds_2d
    assert {nn.ConvTranspose3d, nn.LeakyReLU, nn.InstanceNorm3d} <= kinds_3d
    assert nn.MaxPool3d not in kinds_3d


def test_each_skip_reaches_the_output() -> None:
    torch.manual_seed(0)
    model = unet2d(width=4, num_stages=3, norm="none").eval()
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        reference = model(x)
        for upsampler in model.upsamplers:
            nn.init.zeros_(upsampler.weight)
        assert not torch.equal(model(x), reference)
        assert model(x).std() > 0


def test_a_size_that_does_not_divide_says_the_multiple() -> None:
    with pytest.raises(models_zoo.InputShapeError, match="each side must be a multiple of 16"):
        unet2d(width=4)(torch.randn(1, 3, 40, 32))


@pytest.mark.parametrize(("norm", "least_size"), [("batch", 4), ("instance", 8)])
def test_too_small_an_image_says_the_least_size(norm: str, least_size: int) -> None:
    model = unet2d(width=4, num_stages=3, norm=norm)
    assert model(torch.randn(2, 3, least_size, least_size)).shape == (2, 2, least_size, least_size)
    text = f"least size is {least_size} a side; use a larger image or fewer num_stages"
    with pytest.raises(models_zoo.InputShapeError, match=text):
        model(torch.randn(2, 3, least_size, least_size // 2))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_stages": 1}, "num_stages must be an integer of at least 2, got 1"),
        ({"norm": "layer"}, "norm must be one of 'batch', 'group', 'instance', 'none', got"),
        ({"width": -4}, "width must be an integer of at least 1, got -4"),
    ],
)
@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
def test_bad_options_are_refused(name: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(models_zoo.ModelOptionError, match=re.escape(f"{name}: {text}")):
        models_zoo.build(name, **options)


def test_a_largest_width_below_the_first_is_refused() -> None:
    text = "unet3d: max_width must be an integer of at least 32, got 16"
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        unet3d(max_width=16)
