"""ResNet-18 and ResNet-50 with batch norm.

Source: He et al., arXiv 1512.03385; layers, names and initial weights as in torchvision's
``models/resnet.py`` (stride on the 3x3 convolution of a bottleneck). Comes in: images
``(N, C, H, W)``. Goes out: logits ``(N, num_classes)``.
"""

from torch import Tensor, nn

from models_zoo.blocks import check_at_least, conv_layer, conv_norm_act, init_kaiming_normal_
from models_zoo.input_spec import InputSpec


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a residual sum.

    Args:
        in_channels: C of the input.
        width: channels of both convolutions.
        stride: stride of the first convolution.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_layer(in_channels, width, 3, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv_layer(width, width, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, width, H / stride, W / stride)``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with batch norm and a residual sum.

    Args:
        in_channels: C of the input.
        width: channels of the first two convolutions; the third has four times as many.
        stride: stride of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv_layer(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv_layer(width, width, 3, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv_layer(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, 4 * width, H / stride, W / stride)``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, a global average pool and a linear layer.

    Args:
        model: the registry name, for error texts.
        block: the residual block.
        stage_depths: number of blocks of each of the four stages.
        num_classes: number of logits.
        in_channels: C of the images.
        width: channels of the stem and of the first stage; each later stage doubles them.
        small_input: a 3x3 stride-1 stem without max-pool, usual for images of 32 to 64 pixels.

    Raises:
        ModelOptionError: an option is out of range.
    """

    input_spec: InputSpec

    def __init__(
        self,
        model: str,
        block: type[BasicBlock] | type[Bottleneck],
        stage_depths: tuple[int, int, int, int],
        *,
        num_classes: int,
        in_channels: int,
        width: int,
        small_input: bool,
    ) -> None:
        super().__init__()
        check_at_least(model, 1, num_classes=num_classes, in_channels=in_channels, width=width)
        self.input_spec = _input_spec(model, in_channels, small_input)
        kernel_size, stride = (3, 1) if small_input else (7, 2)
        self.conv1 = conv_layer(in_channels, width, kernel_size, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.maxpool = nn.Identity() if small_input else pool
        depth1, depth2, depth3, depth4 = stage_depths
        expansion = block.expansion
        self.layer1 = _stage(block, width, width, depth1, stride=1)
        self.layer2 = _stage(block, width * expansion, 2 * width, depth2, stride=2)
        self.layer3 = _stage(block, 2 * width * expansion, 4 * width, depth3, stride=2)
        self.layer4 = _stage(block, 4 * width * expansion, 8 * width, depth4, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width * expansion, num_classes)
        init_kaiming_normal_(self, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            x: ``(N, in_channels, H, W)``, H and W at least 32, or 8 with ``small_input``.

        Returns:
            ``(N, num_classes)``.

        Raises:
            InputShapeError: wrong channels, or an image below the least size.
        """
        self.input_spec.check(x)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def resnet18(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    small_input: bool = False,
) -> ResNet:
    """ResNet-18: 11,689,512 parameters at the defaults.

    Source: He et al., arXiv 1512.03385, table 1.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        width: base width; the stages have 1, 2, 4 and 8 times as many channels.
        small_input: a 3x3 stride-1 stem without max-pool, usual for images of 32 to 64 pixels.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``.

    Raises:
        ModelOptionError: an option is out of range.
    """
    return ResNet(
        "resnet18",
        BasicBlock,
        (2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        small_input=small_input,
    )


def resnet50(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    small_input: bool = False,
) -> ResNet:
    """ResNet-50: 25,557,032 parameters at the defaults.

    Source: He et al., arXiv 1512.03385, table 1.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        width: base width; the stages have 4, 8, 16 and 32 times as many output channels.
        small_input: a 3x3 stride-1 stem without max-pool, usual for images of 32 to 64 pixels.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``.

    Raises:
        ModelOptionError: an option is out of range.
    """
    return ResNet(
        "resnet50",
        Bottleneck,
        (3, 4, 6, 3),
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        small_input=small_input,
    )


def _input_spec(model: str, in_channels: int, small_input: bool) -> InputSpec:
    if small_input:
        return InputSpec(model, in_channels, least_size=8)
    hint = "use a larger image, or build with small_input=True for images from 8 pixels"
    return InputSpec(model, in_channels, least_size=32, hint=hint)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    conv = conv_layer(in_channels, out_channels, 1, stride=stride, bias=False)
    return conv_norm_act(conv, nn.BatchNorm2d(out_channels), None)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    depth: int,
    *,
    stride: int,
) -> nn.Sequential:
    first = block(in_channels, width, stride)
    rest = [block(width * block.expansion, width, 1) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)
