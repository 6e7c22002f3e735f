"""MobileNetV2: depthwise convolutions, linear bottlenecks and ReLU6.

Source: Sandler et al., arXiv 1801.04381; layers, names and initial weights as in torchvision's
``models/mobilenetv2.py``. Comes in: images ``(N, C, H, W)``. Goes out: logits
``(N, num_classes)``.
"""

from torch import Tensor, nn

from models_zoo.blocks import (
    check_at_least,
    conv_layer,
    conv_norm_act,
    dropout_layer,
    init_kaiming_normal_,
)
from models_zoo.errors import ModelOptionError
from models_zoo.input_spec import InputSpec

# Table 2 of the paper: expansion, output channels, number of blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_CHANNELS = 32
_LAST_CHANNELS = 1280
_DIVISOR = 8


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise 3x3 and a linear 1x1 projection.

    The residual sum is made where the shape is kept.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        stride: stride of the depthwise convolution.
        expansion: hidden channels for each input channel; 1 leaves the expansion out.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.has_residual = stride == 1 and in_channels == out_channels
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_bn_relu6(in_channels, hidden, 1))
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride=stride, groups=hidden),
            conv_layer(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        projected: Tensor = self.conv(x)
        return x + projected if self.has_residual else projected


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals, a 1x1 convolution, a global pool, a linear layer.

    Args:
        model: the registry name, for error texts.
        num_classes: number of logits.
        in_channels: C of the images.
        width_mult: factor on every channel count, then rounded to a multiple of 8.
        dropout: rate before the linear layer.
    """

    input_spec: InputSpec

    def __init__(
        self, model: str, num_classes: int, in_channels: int, width_mult: float, dropout: float
    ) -> None:
        super().__init__()
        self.input_spec = InputSpec(model, in_channels, least_size=32)
        channels = _round_channels(_STEM_CHANNELS * width_mult)
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, channels, 3, stride=2)]
        for expansion, base_channels, depth, first_stride in _STAGES:
            out_channels = _round_channels(base_channels * width_mult)
            for index in range(depth):
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(channels, out_channels, stride, expansion))
                channels = out_channels
        last_channels = _round_channels(_LAST_CHANNELS * max(1.0, width_mult))
        layers.append(_conv_bn_relu6(channels, last_channels, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            dropout_layer(model, dropout), nn.Linear(last_channels, num_classes)
        )
        init_kaiming_normal_(self, mode="fan_out", linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            x: ``(N, in_channels, H, W)``, H and W at least 32.

        Returns:
            ``(N, num_classes)``.

        Raises:
            InputShapeError: wrong channels, or an image below the least size.
        """
        self.input_spec.check(x)
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def mobilenet_v2(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width_mult: float = 1.0,
    dropout: float = 0.2,
) -> MobileNetV2:
    """MobileNetV2: 3,504,872 parameters at the defaults.

    Source: Sandler et al., arXiv 1801.04381, table 2.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        width_mult: factor on every channel count, then rounded to a multiple of 8; as in the
            paper the last 1280 channels never shrink.
        dropout: rate before the linear layer.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W at least 32.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "mobilenet_v2"
    check_at_least(model, 1, num_classes=num_classes, in_channels=in_channels)
    if not isinstance(width_mult, int | float) or not width_mult > 0:
        raise ModelOptionError(f"{model}: width_mult must be above 0, got {width_mult!r}")
    return MobileNetV2(model, num_classes, in_channels, width_mult, dropout)


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, never down by more than a tenth (the authors' rule)."""
    rounded = max(_DIVISOR, int(channels + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return rounded + _DIVISOR if rounded < 0.9 * channels else rounded


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = conv_layer(
        in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=False
    )
    return conv_norm_act(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))
