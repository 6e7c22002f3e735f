"""The DCGAN pair: a generator of transposed convolutions and a strided discriminator.

Source: Radford et al., arXiv 1511.06434, section 3 and figure 1; layers, no biases and initial
weights as in pytorch/examples ``dcgan/main.py``. Comes in: latents ``(N, latent_channels, 1, 1)``
or images ``(N, C, S, S)``. Goes out: images in [-1, 1], or one logit an image.
"""

from torch import Tensor, nn

from models_zoo.blocks import check_at_least, conv_norm_act
from models_zoo.errors import ModelOptionError
from models_zoo.input_spec import InputSpec

_WEIGHT_STD = 0.02
_LEAST_IMAGE_SIZE = 8


class Generator(nn.Module):
    """Transposed convolutions from one latent position to an image.

    Args:
        layers: the layers in order.
        input_spec: the latent that they accept.
    """

    input_spec: InputSpec

    def __init__(self, layers: nn.Sequential, input_spec: InputSpec) -> None:
        super().__init__()
        self.input_spec = input_spec
        self.layers = layers
        _init_normal_(self)

    def forward(self, z: Tensor) -> Tensor:
        """Images of a batch of latents.

        Args:
            z: ``(N, latent_channels, 1, 1)``.

        Returns:
            ``(N, out_channels, image_size, image_size)``, in [-1, 1].

        Raises:
            InputShapeError: the latent has another shape.
        """
        self.input_spec.check(z)
        image: Tensor = self.layers(z)
        return image


class Discriminator(nn.Module):
    """Strided convolutions from an image to one logit.

    Args:
        layers: the layers in order.
        input_spec: the images that they accept.
    """

    input_spec: InputSpec

    def __init__(self, layers: nn.Sequential, input_spec: InputSpec) -> None:
        super().__init__()
        self.input_spec = input_spec
        self.layers = layers
        _init_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            x: ``(N, in_channels, image_size, image_size)``.

        Returns:
            ``(N, 1)``: the logit of "real"; the paper's sigmoid is left to the loss.

        Raises:
            InputShapeError: wrong channels or another size than the net was built for.
        """
        self.input_spec.check(x)
        logits: Tensor = self.layers(x)
        return logits.flatten(1)


def dcgan_generator(
    *,
    latent_channels: int = 100,
    out_channels: int = 3,
    width: int = 64,
    image_size: int = 64,
) -> Generator:
    """The DCGAN generator: 3,576,704 parameters at the defaults.

    Source: Radford et al., arXiv 1511.06434, figure 1; widths as in pytorch/examples.

    Args:
        latent_channels: C of the latents.
        out_channels: C of the images.
        width: channels before the last layer; each earlier layer doubles them.
        image_size: H and W of the images, a power of two of at least 8.

    Returns:
        A net from ``(N, latent_channels, 1, 1)`` to ``(N, out_channels, S, S)``.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "dcgan_generator"
    check_at_least(
        model, 1, latent_channels=latent_channels, out_channels=out_channels, width=width
    )
    num_doublings = _num_doublings(model, image_size)
    channels = width * 2**num_doublings
    layers = [*_up(latent_channels, channels, stride=1, padding=0)]
    for _ in range(num_doublings):
        layers += _up(channels, channels // 2, stride=2, padding=1)
        channels //= 2
    layers += [_transposed(channels, out_channels, stride=2, padding=1), nn.Tanh()]
    spec = InputSpec(model, latent_channels, fixed_size=(1, 1))
    return Generator(nn.Sequential(*layers), spec)


def dcgan_discriminator(
    *, in_channels: int = 3, width: int = 64, image_size: int = 64
) -> Discriminator:
    """The DCGAN discriminator: 2,765,568 parameters at the defaults.

    Source: Radford et al., arXiv 1511.06434, section 3; widths as in pytorch/examples.

    Args:
        in_channels: C of the images.
        width: channels after the first layer; each later layer doubles them.
        image_size: H and W of the images, a power of two of at least 8.

    Returns:
        A net from ``(N, in_channels, S, S)`` to ``(N, 1)``.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "dcgan_discriminator"
    check_at_least(model, 1, in_channels=in_channels, width=width)
    num_doublings = _num_doublings(model, image_size)
    layers = [*_down(in_channels, width, norm=False)]
    for _ in range(num_doublings):
        layers += _down(width, 2 * width, norm=True)
        width *= 2
    layers.append(nn.Conv2d(width, 1, kernel_size=4, bias=False))
    spec = InputSpec(model, in_channels, fixed_size=(image_size, image_size))
    return Discriminator(nn.Sequential(*layers), spec)


def _num_doublings(model: str, image_size: int) -> int:
    check_at_least(model, _LEAST_IMAGE_SIZE, image_size=image_size)
    if image_size & (image_size - 1):
        raise ModelOptionError(f"{model}: image_size must be a power of two, got {image_size}")
    return image_size.bit_length() - _LEAST_IMAGE_SIZE.bit_length()


def _transposed(
    in_channels: int, out_channels: int, *, stride: int, padding: int
) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(
        in_channels, out_channels, kernel_size=4, stride=stride, padding=padding, bias=False
    )


def _up(in_channels: int, out_channels: int, *, stride: int, padding: int) -> nn.Sequential:
    conv = _transposed(in_channels, out_channels, stride=stride, padding=padding)
    return conv_norm_act(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _down(in_channels: int, out_channels: int, *, norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False)
    batch_norm = nn.BatchNorm2d(out_channels) if norm else None
    return conv_norm_act(conv, batch_norm, nn.LeakyReLU(0.2, inplace=True))


def _init_normal_(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, _WEIGHT_STD)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, _WEIGHT_STD)
            nn.init.zeros_(module.bias)
