"""VGG-11, VGG-11 with batch norm and VGG-16.

Source: Simonyan and Zisserman, arXiv 1409.1556; layers, names and initial weights as in
torchvision's ``models/vgg.py``. Comes in: images ``(N, C, H, W)``. Goes out: logits
``(N, num_classes)``.
"""

from torch import Tensor, nn

from models_zoo.blocks import (
    check_at_least,
    conv_layer,
    dropout_layer,
    init_kaiming_normal_,
)
from models_zoo.input_spec import InputSpec

_STAGE_WIDTHS = (1, 2, 4, 8, 8)
_HIDDEN_FEATURES = 4096


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each closed by a max-pool, then a classifier.

    Args:
        model: the registry name, for error texts.
        stage_depths: number of convolutions of each of the five stages.
        batch_norm: whether a batch norm follows each convolution.
        num_classes: number of logits.
        in_channels: C of the images.
        width: channels of the first stage; the stages have 1, 2, 4, 8 and 8 times as many.
        small_input: a global average pool and one linear layer in place of the 7x7 pool and the
            three linear layers, usual for images of 32 to 64 pixels.
        dropout: rate in the three-layer classifier; without effect with ``small_input``.

    Raises:
        ModelOptionError: an option is out of range.
    """

    input_spec: InputSpec

    def __init__(
        self,
        model: str,
        stage_depths: tuple[int, int, int, int, int],
        *,
        batch_norm: bool,
        num_classes: int,
        in_channels: int,
        width: int,
        small_input: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        check_at_least(model, 1, num_classes=num_classes, in_channels=in_channels, width=width)
        self.input_spec = InputSpec(model, in_channels, least_size=32)
        self.features = _features(in_channels, width, stage_depths, batch_norm)
        out_channels = width * _STAGE_WIDTHS[-1]
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small_input else 7)
        if small_input:
            self.classifier = nn.Sequential(nn.Linear(out_channels, num_classes))
        else:
            self.classifier = nn.Sequential(
                nn.Linear(out_channels * 7 * 7, _HIDDEN_FEATURES),
                nn.ReLU(inplace=True),
                dropout_layer(model, dropout),
                nn.Linear(_HIDDEN_FEATURES, _HIDDEN_FEATURES),
                nn.ReLU(inplace=True),
                dropout_layer(model, dropout),
                nn.Linear(_HIDDEN_FEATURES, num_classes),
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


def vgg11(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    small_input: bool = False,
    dropout: float = 0.5,
) -> VGG:
    """VGG-11 (configuration A): 132,863,336 parameters at the defaults.

    Source: Simonyan and Zisserman, arXiv 1409.1556, table 1.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        width: channels of the first stage.
        small_input: a global average pool and one linear layer as the classifier.
        dropout: rate in the three-layer classifier.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W at least 32.

    Raises:
        ModelOptionError: an option is out of range.
    """
    return VGG(
        "vgg11",
        (1, 1, 2, 2, 2),
        batch_norm=False,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        small_input=small_input,
        dropout=dropout,
    )


def vgg11_bn(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    small_input: bool = False,
    dropout: float = 0.5,
) -> VGG:
    """VGG-11 with a batch norm after each convolution: 132,868,840 parameters at the defaults.

    Source: Simonyan and Zisserman, arXiv 1409.1556, table 1; the norms as in torchvision.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        width: channels of the first stage.
        small_input: a global average pool and one linear layer as the classifier.
        dropout: rate in the three-layer classifier.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W at least 32.

    Raises:
        ModelOptionError: an option is out of range.
    """
    return VGG(
        "vgg11_bn",
        (1, 1, 2, 2, 2),
        batch_norm=True,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        small_input=small_input,
        dropout=dropout,
    )


def vgg16(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    small_input: bool = False,
    dropout: float = 0.5,
) -> VGG:
    """VGG-16 (configuration D): 138,357,544 parameters at the defaults.

    Source: Simonyan and Zisserman, arXiv 1409.1556, table 1.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        width: channels of the first stage.
        small_input: a global average pool and one linear layer as the classifier.
        dropout: rate in the three-layer classifier.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W at least 32.

    Raises:
        ModelOptionError: an option is out of range.
    """
    return VGG(
        "vgg16",
        (2, 2, 3, 3, 3),
        batch_norm=False,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        small_input=small_input,
        dropout=dropout,
    )


def _features(
    in_channels: int,
    width: int,
    stage_depths: tuple[int, int, int, int, int],
    batch_norm: bool,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for depth, factor in zip(stage_depths, _STAGE_WIDTHS, strict=True):
        for _ in range(depth):
            layers.append(conv_layer(in_channels, width * factor, 3))
            in_channels = width * factor
            if batch_norm:
                layers.append(nn.BatchNorm2d(in_channels))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)
