"""Building blocks that several families need: convolution stacks, norms, initial weights, checks.

Comes in: channel counts and the names of a norm. Goes out: ``nn.Module`` pieces. What belongs to
one architecture only (residual, Fire, dense blocks) stays in that family's file.
"""

import math
from typing import Literal, get_args

from torch import nn

from models_zoo.errors import ModelOptionError

Norm = Literal["batch", "group", "instance", "none"]
"""The norms that :func:`norm_layer` builds."""

_MAX_GROUPS = 32


def check_at_least(model: str, least: int, **options: object) -> None:
    """Refuse options that are not integers of at least ``least``.

    Args:
        model: the model's name, for the error text.
        least: the least value allowed.
        **options: option names and the values given for them.

    Raises:
        ModelOptionError: names the model, the option, the least value and the value got.
    """
    for option, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ModelOptionError(
                f"{model}: {option} must be an integer of at least {least}, got {value!r}"
            )


def check_choice(model: str, option: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse an option whose value is not among the choices.

    Args:
        model: the model's name, for the error text.
        option: the option's name.
        value: the value given.
        choices: the values allowed.

    Raises:
        ModelOptionError: names the model, the option, the choices and the value got.
    """
    if value not in choices:
        raise ModelOptionError(
            f"{model}: {option} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        )


def dropout_layer(model: str, rate: float) -> nn.Module:
    """A dropout layer, or nothing at rate 0 so that no random op is traced.

    Args:
        model: the model's name, for the error text.
        rate: the share of elements set to zero while training, in [0, 1).

    Returns:
        ``nn.Dropout(rate)``, or ``nn.Identity()`` at rate 0.

    Raises:
        ModelOptionError: the rate is outside [0, 1).
    """
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ModelOptionError(f"{model}: dropout must be in [0, 1), got {rate!r}")
    return nn.Dropout(rate) if rate > 0 else nn.Identity()


def conv_layer(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = True,
    num_spatial_dims: int = 2,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution padded so that stride 1 keeps the size (odd kernels).

    Args:
        in_channels: C of the input ``(N, C, *spatial)``.
        out_channels: C of the output.
        kernel_size: the kernel's side.
        stride: the stride on every side.
        groups: number of channel groups; ``in_channels`` makes it depthwise.
        bias: whether a bias is added.
        num_spatial_dims: 2 or 3.

    Returns:
        The layer, mapping ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial)`` with
        each side divided by the stride, rounded up.
    """
    conv = nn.Conv2d if num_spatial_dims == 2 else nn.Conv3d
    return conv(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=bias,
    )


def norm_layer(norm: Norm, num_channels: int, *, num_spatial_dims: int = 2) -> nn.Module:
    """A norm by name.

    Group norm takes the largest number of groups that divides both 32 (Wu and He,
    arXiv 1803.08494, take 32) and the channels; instance norm is affine.

    Args:
        norm: which norm; "none" gives ``nn.Identity()``.
        num_channels: C of the input ``(N, C, *spatial)``.
        num_spatial_dims: 2 or 3.

    Returns:
        The layer; its output has the input's shape.

    Raises:
        ModelOptionError: the norm's name is unknown.
    """
    check_choice("norm_layer", "norm", norm, get_args(Norm))
    if norm == "batch":
        batch_norm = nn.BatchNorm2d if num_spatial_dims == 2 else nn.BatchNorm3d
        return batch_norm(num_channels)
    if norm == "instance":
        instance_norm = nn.InstanceNorm2d if num_spatial_dims == 2 else nn.InstanceNorm3d
        return instance_norm(num_channels, affine=True)
    if norm == "group":
        return nn.GroupNorm(math.gcd(num_channels, _MAX_GROUPS), num_channels)
    return nn.Identity()


def conv_norm_act(
    conv: nn.Module, norm: nn.Module | None, activation: nn.Module | None
) -> nn.Sequential:
    """A convolution, then a norm, then an activation, the last two where given.

    Args:
        conv: the convolution.
        norm: the norm; None and ``nn.Identity`` are left out.
        activation: the activation, or None.

    Returns:
        The layers in order, as one module.
    """
    layers = [conv]
    if norm is not None and not isinstance(norm, nn.Identity):
        layers.append(norm)
    if activation is not None:
        layers.append(activation)
    return nn.Sequential(*layers)


def init_kaiming_normal_(
    model: nn.Module,
    *,
    mode: Literal["fan_in", "fan_out"],
    negative_slope: float = 0.0,
    linear_std: float | None = None,
) -> None:
    """Draw He normal weights for every convolution, in place, and set its bias to zero.

    Source: He et al., arXiv 1502.01852, equations 10 and 14. Norms keep torch's own ones and
    zeros.

    Args:
        model: the module whose weights are drawn.
        mode: whether forward ("fan_in") or backward ("fan_out") variance is kept.
        negative_slope: the slope of the leaky ReLU that follows; 0 for ReLU.
        linear_std: standard deviation of linear weights (their bias then is zero), or None to
            leave linear layers as torch made them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(
                module.weight, a=negative_slope, mode=mode, nonlinearity="leaky_relu"
            )
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0.0, linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
