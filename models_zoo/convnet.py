"""The small norm-free classifiers that the XConv paper trains on MNIST and CIFAR-10.

Comes in: images ``(N, C, H, W)`` of the size given when the net is built. Goes out: logits
``(N, num_classes)``; the softmax is left to the loss.
"""

from torch import Tensor, nn

from models_zoo.blocks import check_at_least, conv_layer, dropout_layer
from models_zoo.errors import ModelOptionError
from models_zoo.input_spec import InputSpec


class ConvNet(nn.Module):
    """A stack of convolutions, ReLUs and pools, then a fully connected head.

    Args:
        features: maps ``(N, C, H, W)`` to feature maps.
        head: maps the flattened feature maps to logits.
        input_spec: the input that the head was sized for.
    """

    input_spec: InputSpec

    def __init__(self, features: nn.Module, head: nn.Module, input_spec: InputSpec) -> None:
        super().__init__()
        self.input_spec = input_spec
        self.features = features
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            x: ``(N, C, H, W)``, of the size given when the net was built.

        Returns:
            ``(N, num_classes)``.

        Raises:
            InputShapeError: other channels or another size than the net was built for.
        """
        self.input_spec.check(x)
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits


def mnist_net(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 32,
    image_size: int | tuple[int, int] = 28,
    dropout: float = 0.5,
) -> ConvNet:
    """The MNIST net of the XConv paper: two 3x3 convolutions, a max-pool, two linear layers.

    Source: Thatipelli et al., arXiv 2106.06998; ``experiments/mnist.py`` of slimgroup/XConv,
    which follows the MNIST net of pytorch/examples.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        width: channels of the first convolution; the second has twice as many.
        image_size: H and W of the images, one number for square ones.
        dropout: rate before the last layer; the rate after the pool is half of it.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``.

    Raises:
        ModelOptionError: an option is out of range, or the image is smaller than 2 a side.
    """
    model = "mnist_net"
    check_at_least(model, 1, num_classes=num_classes, in_channels=in_channels, width=width)
    height_px, width_px = _image_size(model, image_size, least_size=2)
    head_dropout = dropout_layer(model, dropout)
    features = nn.Sequential(
        conv_layer(in_channels, width, 3),
        nn.ReLU(inplace=True),
        conv_layer(width, 2 * width, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        dropout_layer(model, dropout / 2),
    )
    head = nn.Sequential(
        nn.Linear(2 * width * (height_px // 2) * (width_px // 2), 4 * width),
        nn.ReLU(inplace=True),
        head_dropout,
        nn.Linear(4 * width, num_classes),
    )
    return ConvNet(features, head, InputSpec(model, in_channels, fixed_size=(height_px, width_px)))


def cifar_net(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    image_size: int | tuple[int, int] = 32,
) -> ConvNet:
    """The CIFAR-10 net of the XConv paper: four 5x5 convolutions, two average pools, one linear.

    Source: Thatipelli et al., arXiv 2106.06998; ``experiments/cifarconvnet.py`` of
    slimgroup/XConv.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        width: channels of the first convolution; the others have twice as many.
        image_size: H and W of the images, one number for square ones.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, num_classes)``.

    Raises:
        ModelOptionError: an option is out of range, or the image is smaller than 4 a side.
    """
    model = "cifar_net"
    check_at_least(model, 1, num_classes=num_classes, in_channels=in_channels, width=width)
    height_px, width_px = _image_size(model, image_size, least_size=4)
    features = nn.Sequential(
        conv_layer(in_channels, width, 5),
        nn.ReLU(inplace=True),
        conv_layer(width, 2 * width, 5),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        conv_layer(2 * width, 2 * width, 5),
        nn.ReLU(inplace=True),
        conv_layer(2 * width, 2 * width, 5),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
    )
    head = nn.Linear(2 * width * (height_px // 4) * (width_px // 4), num_classes)
    return ConvNet(features, head, InputSpec(model, in_channels, fixed_size=(height_px, width_px)))


def _image_size(
    model: str, image_size: int | tuple[int, int], *, least_size: int
) -> tuple[int, int]:
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(s, int) and s >= least_size for s in size):
        raise ModelOptionError(
            f"{model}: image_size must be H and W, the least size is {least_size} a side, "
            f"got {image_size!r}"
        )
    return size
