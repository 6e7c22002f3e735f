"""U-Nets for segmentation in 2D and 3D.

Comes in: images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)`` whose sides divide by the
downsampling. Goes out: logits a pixel, ``(N, num_classes, *spatial)``. Skips are joined by
concatenation, and the way up is a transposed convolution of kernel and stride 2.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from models_zoo.blocks import (
    Norm,
    check_at_least,
    check_choice,
    conv_layer,
    conv_norm_act,
    init_kaiming_normal_,
    norm_layer,
)
from models_zoo.input_spec import InputSpec


@dataclass(frozen=True)
class UNetConfig:
    """The shape of one U-Net.

    Args:
        model: the registry name, for error texts.
        num_spatial_dims: 2 or 3.
        in_channels: C of the input.
        num_classes: channels of the output.
        stage_widths: channels of each stage, finest first.
        norm: the norm after each 3x3 convolution.
        strided_down: halve by a stride-2 convolution instead of a max-pool.
        negative_slope: slope of the leaky ReLU; 0 makes it a ReLU.
        conv_bias: whether the 3x3 convolutions have a bias.
    """

    model: str
    num_spatial_dims: int
    in_channels: int
    num_classes: int
    stage_widths: tuple[int, ...]
    norm: Norm
    strided_down: bool
    negative_slope: float
    conv_bias: bool


class UNet(nn.Module):
    """An encoder and a decoder of two-convolution stages, joined by skips.

    Args:
        config: the shape of the net.
    """

    input_spec: InputSpec

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.input_spec = _input_spec(config)
        widths = config.stage_widths
        finer = (config.in_channels, *widths[:-1])
        self.encoder = nn.ModuleList(
            _stage(config, in_channels, width, down=index > 0)
            for index, (in_channels, width) in enumerate(zip(finer, widths, strict=True))
        )
        steps = [(widths[i], widths[i - 1]) for i in range(len(widths) - 1, 0, -1)]
        self.upsamplers = nn.ModuleList(_upsampler(config, *step) for step in steps)
        self.decoder = nn.ModuleList(
            _stage(config, 2 * width, width, down=False) for _, width in steps
        )
        self.head = conv_layer(
            widths[0], config.num_classes, 1, num_spatial_dims=config.num_spatial_dims
        )
        init_kaiming_normal_(self, mode="fan_in", negative_slope=config.negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Logits a pixel.

        Args:
            x: ``(N, in_channels, *spatial)``, each side a multiple of the downsampling.

        Returns:
            ``(N, num_classes, *spatial)``.

        Raises:
            InputShapeError: wrong channels, or a side that is too small or does not divide.
        """
        self.input_spec.check(x)
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for upsampler, stage in zip(self.upsamplers, self.decoder, strict=True):
            x = stage(torch.cat((skips.pop(), upsampler(x)), dim=1))
        logits: Tensor = self.head(x)
        return logits


def unet2d(
    *,
    num_classes: int = 2,
    in_channels: int = 3,
    width: int = 64,
    num_stages: int = 5,
    norm: Norm = "batch",
) -> UNet:
    """The 2D U-Net with padded convolutions: 31,037,698 parameters at the defaults.

    Source: Ronneberger et al., arXiv 1505.04597, figure 1; padding, the norm and no bias before
    it as in the usual PyTorch port, milesial/Pytorch-UNet.

    Args:
        num_classes: channels of the output.
        in_channels: C of the images.
        width: channels of the finest stage; each coarser stage doubles them.
        num_stages: number of resolutions; each side must divide by ``2 ** (num_stages - 1)``.
        norm: "batch", "group", "instance" or "none"; with "none" the convolutions have a bias.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes, H, W)``.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "unet2d"
    _check_options(model, num_classes, in_channels, width, num_stages, norm)
    return UNet(
        UNetConfig(
            model=model,
            num_spatial_dims=2,
            in_channels=in_channels,
            num_classes=num_classes,
            stage_widths=tuple(width * 2**index for index in range(num_stages)),
            norm=norm,
            strided_down=False,
            negative_slope=0.0,
            conv_bias=norm == "none",
        )
    )


def unet3d(
    *,
    num_classes: int = 2,
    in_channels: int = 1,
    width: int = 32,
    max_width: int = 320,
    num_stages: int = 5,
    norm: Norm = "instance",
) -> UNet:
    """The plain 3D U-Net of nnU-Net, without deep supervision.

    Source: Isensee et al., Nature Methods 18 (2021), arXiv 1904.08128; strided convolutions on
    the way down, affine instance norm, leaky ReLU of slope 0.01 and biases as in
    ``PlainConvUNet`` of MIC-DKFZ/dynamic-network-architectures. nnU-Net chooses the number of
    stages and anisotropic strides from the data; here the first is an option and the second
    is left out.

    Args:
        num_classes: channels of the output.
        in_channels: C of the volumes.
        width: channels of the finest stage; each coarser stage doubles them.
        max_width: the most channels of a stage.
        num_stages: number of resolutions; each side must divide by ``2 ** (num_stages - 1)``.
        norm: "batch", "group", "instance" or "none".

    Returns:
        A net from ``(N, in_channels, D, H, W)`` to ``(N, num_classes, D, H, W)``.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "unet3d"
    _check_options(model, num_classes, in_channels, width, num_stages, norm)
    check_at_least(model, width, max_width=max_width)
    return UNet(
        UNetConfig(
            model=model,
            num_spatial_dims=3,
            in_channels=in_channels,
            num_classes=num_classes,
            stage_widths=tuple(min(width * 2**index, max_width) for index in range(num_stages)),
            norm=norm,
            strided_down=True,
            negative_slope=0.01,
            conv_bias=True,
        )
    )


def _check_options(
    model: str, num_classes: int, in_channels: int, width: int, num_stages: int, norm: Norm
) -> None:
    check_at_least(model, 1, num_classes=num_classes, in_channels=in_channels, width=width)
    check_at_least(model, 2, num_stages=num_stages)
    check_choice(model, "norm", norm, get_args(Norm))


def _input_spec(config: UNetConfig) -> InputSpec:
    multiple = 2 ** (len(config.stage_widths) - 1)
    # torch's instance norm refuses to train on a single position, so the coarsest stage gets two.
    least_size = 2 * multiple if config.norm == "instance" else multiple
    return InputSpec(
        config.model,
        config.in_channels,
        config.num_spatial_dims,
        least_size=least_size,
        multiple=multiple,
        hint="use a larger image or fewer num_stages",
    )


def _stage(config: UNetConfig, in_channels: int, width: int, *, down: bool) -> nn.Sequential:
    stride = 2 if down and config.strided_down else 1
    layers = [
        _conv_norm_act(config, in_channels, width, stride),
        _conv_norm_act(config, width, width, 1),
    ]
    if down and not config.strided_down:
        pool = nn.MaxPool2d if config.num_spatial_dims == 2 else nn.MaxPool3d
        return nn.Sequential(pool(2), *layers)
    return nn.Sequential(*layers)


def _conv_norm_act(
    config: UNetConfig, in_channels: int, out_channels: int, stride: int
) -> nn.Sequential:
    dims = config.num_spatial_dims
    conv = conv_layer(
        in_channels,
        out_channels,
        3,
        stride=stride,
        bias=config.conv_bias,
        num_spatial_dims=dims,
    )
    slope = config.negative_slope
    activation = nn.LeakyReLU(slope, inplace=True) if slope > 0 else nn.ReLU(inplace=True)
    return conv_norm_act(
        conv, norm_layer(config.norm, out_channels, num_spatial_dims=dims), activation
    )


def _upsampler(
    config: UNetConfig, in_channels: int, out_channels: int
) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    conv = nn.ConvTranspose2d if config.num_spatial_dims == 2 else nn.ConvTranspose3d
    return conv(in_channels, out_channels, kernel_size=2, stride=2)
