"""DenseNet-121, and the small DenseNet-BC for images of 32 pixels.

Source: Huang et al., arXiv 1608.06993; layers, names and initial weights as in torchvision's
``models/densenet.py``, without its optional checkpointing. Comes in: images ``(N, C, H, W)``.
Goes out: logits ``(N, num_classes)``.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models_zoo.blocks import check_at_least, conv_layer, init_kaiming_normal_
from models_zoo.errors import ModelOptionError
from models_zoo.input_spec import InputSpec

_BOTTLENECK = 4


@dataclass(frozen=True)
class DenseNetConfig:
    """The shape of one DenseNet.

    Args:
        model: the registry name, for error texts.
        num_classes: number of logits.
        in_channels: C of the images.
        growth_rate: channels that each dense layer adds.
        block_config: number of dense layers of each block.
        stem_channels: channels of the first convolution.
        small_input: a 3x3 stride-1 stem without norm and max-pool.
    """

    model: str
    num_classes: int
    in_channels: int
    growth_rate: int
    block_config: tuple[int, ...]
    stem_channels: int
    small_input: bool


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution; the output joins the input.

    Args:
        in_channels: C of the input.
        growth_rate: channels that the layer adds.
    """

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        hidden = _BOTTLENECK * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = conv_layer(in_channels, hidden, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = conv_layer(hidden, growth_rate, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, in_channels + growth_rate, H, W)``."""
        hidden = self.conv1(self.relu1(self.norm1(x)))
        added = self.conv2(self.relu2(self.norm2(hidden)))
        return torch.cat((x, added), dim=1)


class DenseNet(nn.Module):
    """A stem, dense blocks with transitions between, a global average pool, a linear layer.

    Args:
        config: the shape of the net.
    """

    input_spec: InputSpec

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__()
        self.input_spec = _input_spec(config)
        self.features = _stem(config)
        channels = config.stem_channels
        for index, depth in enumerate(config.block_config, start=1):
            block = _dense_block(channels, config.growth_rate, depth)
            self.features.add_module(f"denseblock{index}", block)
            channels += depth * config.growth_rate
            if index < len(config.block_config):
                self.features.add_module(f"transition{index}", _transition(channels))
                channels //= 2
        # torchvision's name for the last norm of every DenseNet, whatever the number of blocks.
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, config.num_classes)
        init_kaiming_normal_(self, mode="fan_in")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            x: ``(N, in_channels, H, W)``, H and W at least the input spec's least size.

        Returns:
            ``(N, num_classes)``.

        Raises:
            InputShapeError: wrong channels, or an image below the least size.
        """
        self.input_spec.check(x)
        x = self.relu(self.features(x))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def densenet121(
    *, num_classes: int = 1000, in_channels: int = 3, growth_rate: int = 32
) -> DenseNet:
    """DenseNet-121: 7,978,856 parameters at the defaults.

    Source: Huang et al., arXiv 1608.06993, table 1.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        growth_rate: channels that each dense layer adds; the stem has twice as many.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W at least 29.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "densenet121"
    check_at_least(
        model, 1, num_classes=num_classes, in_channels=in_channels, growth_rate=growth_rate
    )
    return DenseNet(
        DenseNetConfig(
            model=model,
            num_classes=num_classes,
            in_channels=in_channels,
            growth_rate=growth_rate,
            block_config=(6, 12, 24, 16),
            stem_channels=2 * growth_rate,
            small_input=False,
        )
    )


def densenet_small(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    growth_rate: int = 12,
    block_config: tuple[int, ...] = (6, 6, 6),
) -> DenseNet:
    """DenseNet-BC of 40 layers for images of 32 pixels: 176,122 parameters at the defaults.

    Source: Huang et al., arXiv 1608.06993, sections 3 and 4.2; ``block_config=(16, 16, 16)`` is
    the paper's DenseNet-BC of 100 layers with 769,162 parameters.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        growth_rate: channels that each dense layer adds; the stem has twice as many.
        block_config: number of dense layers of each block.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W at least
        ``2 ** (len(block_config) - 1)``.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "densenet_small"
    check_at_least(
        model, 1, num_classes=num_classes, in_channels=in_channels, growth_rate=growth_rate
    )
    if not block_config or min(block_config) < 1:
        raise ModelOptionError(
            f"{model}: block_config must be one or more integers of at least 1, "
            f"got {block_config!r}"
        )
    return DenseNet(
        DenseNetConfig(
            model=model,
            num_classes=num_classes,
            in_channels=in_channels,
            growth_rate=growth_rate,
            block_config=tuple(block_config),
            stem_channels=2 * growth_rate,
            small_input=True,
        )
    )


def _input_spec(config: DenseNetConfig) -> InputSpec:
    # Each transition halves, rounding down; the large stem halves twice, rounding up.
    stem_size = 2 ** (len(config.block_config) - 1)
    least_size = stem_size if config.small_input else 4 * (stem_size - 1) + 1
    return InputSpec(config.model, config.in_channels, least_size=least_size)


def _stem(config: DenseNetConfig) -> nn.Sequential:
    channels = config.stem_channels
    if config.small_input:
        conv = conv_layer(config.in_channels, channels, 3, bias=False)
        return nn.Sequential(OrderedDict([("conv0", conv)]))
    return nn.Sequential(
        OrderedDict(
            [
                ("conv0", conv_layer(config.in_channels, channels, 7, stride=2, bias=False)),
                ("norm0", nn.BatchNorm2d(channels)),
                ("relu0", nn.ReLU(inplace=True)),
                ("pool0", nn.MaxPool2d(kernel_size=3, stride=2, padding=1)),
            ]
        )
    )


def _dense_block(in_channels: int, growth_rate: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            (f"denselayer{i + 1}", DenseLayer(in_channels + i * growth_rate, growth_rate))
            for i in range(depth)
        )
    )


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            [
                ("norm", nn.BatchNorm2d(channels)),
                ("relu", nn.ReLU(inplace=True)),
                ("conv", conv_layer(channels, channels // 2, 1, bias=False)),
                ("pool", nn.AvgPool2d(kernel_size=2, stride=2)),
            ]
        )
    )
