"""SqueezeNet 1.0 and 1.1, norm-free classifiers made of Fire modules.

Source: Iandola et al., arXiv 1602.07360; layers, names and initial weights as in torchvision's
``models/squeezenet.py``. Comes in: images ``(N, C, H, W)``. Goes out: logits
``(N, num_classes)``.
"""

import torch
from torch import Tensor, nn

from models_zoo.blocks import check_at_least, dropout_layer
from models_zoo.input_spec import InputSpec


class Fire(nn.Module):
    """A 1x1 squeeze, then 1x1 and 3x3 expansions side by side, each with a ReLU.

    Args:
        in_channels: C of the input.
        squeeze_channels: channels after the squeeze.
        expand_channels: channels of each of the two expansions.
    """

    def __init__(self, in_channels: int, squeeze_channels: int, expand_channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze_channels, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze_channels, expand_channels, kernel_size=1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze_channels, expand_channels, kernel_size=3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, 2 * expand_channels, H, W)``."""
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            (
                self.expand1x1_activation(self.expand1x1(x)),
                self.expand3x3_activation(self.expand3x3(x)),
            ),
            dim=1,
        )


class SqueezeNet(nn.Module):
    """Convolution stem, Fire modules with max-pools between, convolutional classifier.

    Args:
        input_spec: the input that the features accept.
        features: maps ``(N, C, H, W)`` to ``(N, 512, h, w)``.
        num_classes: number of logits.
        dropout: rate before the classifier.
    """

    input_spec: InputSpec

    def __init__(
        self, input_spec: InputSpec, features: nn.Sequential, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.input_spec = input_spec
        self.features = features
        final_conv = nn.Conv2d(512, num_classes, kernel_size=1)
        self.classifier = nn.Sequential(
            dropout_layer(input_spec.model, dropout),
            final_conv,
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module is final_conv:
                    nn.init.normal_(module.weight, mean=0.0, std=0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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
        logits: Tensor = self.classifier(self.features(x))
        return logits.flatten(1)


def squeezenet1_0(
    *, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5
) -> SqueezeNet:
    """SqueezeNet 1.0: 1,248,424 parameters at 1000 classes.

    Source: Iandola et al., arXiv 1602.07360, table 1.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        dropout: rate before the classifier.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W at least 21.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "squeezenet1_0"
    check_at_least(model, 1, num_classes=num_classes, in_channels=in_channels)
    features = nn.Sequential(
        nn.Conv2d(in_channels, 96, kernel_size=7, stride=2),
        nn.ReLU(inplace=True),
        _pool(),
        Fire(96, 16, 64),
        Fire(128, 16, 64),
        Fire(128, 32, 128),
        _pool(),
        Fire(256, 32, 128),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        _pool(),
        Fire(512, 64, 256),
    )
    spec = InputSpec(model, in_channels, least_size=21)
    return SqueezeNet(spec, features, num_classes, dropout)


def squeezenet1_1(
    *, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5
) -> SqueezeNet:
    """SqueezeNet 1.1: 1,235,496 parameters at 1000 classes, 2.4 times less arithmetic than 1.0.

    Source: Iandola et al., arXiv 1602.07360; the 1.1 variant of the authors' repository,
    forresti/SqueezeNet.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        dropout: rate before the classifier.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W at least 17.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "squeezenet1_1"
    check_at_least(model, 1, num_classes=num_classes, in_channels=in_channels)
    features = nn.Sequential(
        nn.Conv2d(in_channels, 64, kernel_size=3, stride=2),
        nn.ReLU(inplace=True),
        _pool(),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        _pool(),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        _pool(),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )
    spec = InputSpec(model, in_channels, least_size=17)
    return SqueezeNet(spec, features, num_classes, dropout)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
