"""Single-image super-resolution: the EDSR baseline, norm-free with a PixelShuffle tail.

Comes in: low-resolution images ``(N, C, H, W)``. Goes out: images ``(N, C, scale * H, scale * W)``.
Subtracting the data set's mean colour, which the authors do inside the net, is left to the data.
"""

from torch import Tensor, nn

from models_zoo.blocks import check_at_least, check_choice, conv_layer
from models_zoo.input_spec import InputSpec


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between and a scaled residual sum.

    Args:
        width: C of the input and of the output.
        residual_scale: factor on the branch before the sum.
    """

    def __init__(self, width: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.body = nn.Sequential(
            conv_layer(width, width, 3), nn.ReLU(inplace=True), conv_layer(width, width, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, width, H, W)`` to the same shape."""
        branch: Tensor = self.body(x)
        return x + (branch if self.residual_scale == 1 else branch * self.residual_scale)


class EDSR(nn.Module):
    """A convolution, residual blocks under one long skip, an upsampler and a convolution.

    Args:
        model: the registry name, for error texts.
        in_channels: C of the images, also of the output.
        width: channels of the residual blocks.
        num_blocks: number of residual blocks.
        scale: magnification, 1, 2, 3, 4 or 8.
        residual_scale: factor on each residual branch.
    """

    input_spec: InputSpec

    def __init__(
        self,
        model: str,
        *,
        in_channels: int,
        width: int,
        num_blocks: int,
        scale: int,
        residual_scale: float,
    ) -> None:
        super().__init__()
        self.input_spec = InputSpec(model, in_channels)
        self.head = conv_layer(in_channels, width, 3)
        blocks = [ResidualBlock(width, residual_scale) for _ in range(num_blocks)]
        self.body = nn.Sequential(*blocks, conv_layer(width, width, 3))
        self.upsampler = _upsampler(width, scale)
        self.tail = conv_layer(width, in_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Magnify a batch of images.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            ``(N, in_channels, scale * H, scale * W)``.

        Raises:
            InputShapeError: wrong number of dims or channels.
        """
        self.input_spec.check(x)
        x = self.head(x)
        x = self.body(x) + x
        image: Tensor = self.tail(self.upsampler(x))
        return image


def super_resolution(
    *,
    in_channels: int = 3,
    width: int = 64,
    num_blocks: int = 16,
    scale: int = 2,
    residual_scale: float = 1.0,
) -> EDSR:
    """The EDSR baseline: 1,369,859 parameters at the defaults.

    Source: Lim et al., arXiv 1707.02921, table 1 and figure 3; PixelShuffle from Shi et al.,
    arXiv 1609.05158.

    Args:
        in_channels: C of the images.
        width: channels of the residual blocks.
        num_blocks: number of residual blocks.
        scale: magnification, 2, 3, 4 or 8.
        residual_scale: factor on each residual branch; 0.1 in the paper's large net.

    Returns:
        A net from ``(N, in_channels, H, W)`` to ``(N, in_channels, scale * H, scale * W)``.

    Raises:
        ModelOptionError: an option is out of range.
    """
    model = "super_resolution"
    check_at_least(model, 1, in_channels=in_channels, width=width, num_blocks=num_blocks)
    check_choice(model, "scale", scale, (2, 3, 4, 8))
    return EDSR(
        model,
        in_channels=in_channels,
        width=width,
        num_blocks=num_blocks,
        scale=scale,
        residual_scale=residual_scale,
    )


def _upsampler(width: int, scale: int) -> nn.Sequential:
    factors = (3,) if scale == 3 else (2,) * (scale.bit_length() - 1)
    layers: list[nn.Module] = []
    for factor in factors:
        layers += [conv_layer(width, width * factor**2, 3), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)
