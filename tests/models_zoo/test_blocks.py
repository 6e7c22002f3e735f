"""Shared building blocks: checks, layers, initial weights."""

import math
import re

import pytest
import torch
from torch import nn

from models_zoo.blocks import (
    check_at_least,
    check_choice,
    conv_layer,
    conv_norm_act,
    dropout_layer,
    init_kaiming_normal_,
    norm_layer,
)
from models_zoo.errors import ModelOptionError


@pytest.mark.parametrize("value", [0, -3, True, 2.0, "8"])
def test_check_at_least_names_model_option_and_value(value: object) -> None:
    text = re.escape(f"net: width must be an integer of at least 1, got {value!r}")
    with pytest.raises(ModelOptionError, match=text):
        check_at_least("net", 1, width=value)


def test_check_choice_lists_the_choices() -> None:
    check_choice("net", "scale", 2, (2, 3))
    with pytest.raises(ModelOptionError, match=r"net: scale must be one of 2, 3, got 5"):
        check_choice("net", "scale", 5, (2, 3))


def test_dropout_at_rate_zero_is_no_layer() -> None:
    assert isinstance(dropout_layer("net", 0.0), nn.Identity)
    assert dropout_layer("net", 0.25).p == 0.25


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan, "0.5"])
def test_dropout_rate_out_of_range_is_refused(rate: object) -> None:
    with pytest.raises(ModelOptionError, match=r"net: dropout must be in \[0, 1\), got"):
        dropout_layer("net", rate)


@pytest.mark.parametrize("num_spatial_dims", [2, 3])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (7, 2)])
def test_conv_layer_divides_each_side_by_the_stride_rounded_up(
    kernel_size: int, stride: int, num_spatial_dims: int
) -> None:
    conv = conv_layer(2, 4, kernel_size, stride=stride, num_spatial_dims=num_spatial_dims)
    output = conv(torch.zeros(1, 2, *(9,) * num_spatial_dims))
    assert output.shape == (1, 4, *(-(-9 // stride),) * num_spatial_dims)


@pytest.mark.parametrize(
    ("norm", "num_spatial_dims", "expected"),
    [
        ("batch", 2, nn.BatchNorm2d),
        ("batch", 3, nn.BatchNorm3d),
        ("instance", 2, nn.InstanceNorm2d),
        ("instance", 3, nn.InstanceNorm3d),
        ("group", 2, nn.GroupNorm),
        ("none", 2, nn.Identity),
    ],
)
def test_norm_layer_by_name(norm: str, num_spatial_dims: int, expected: type[nn.Module]) -> None:
    layer = norm_layer(norm, 12, num_spatial_dims=num_spatial_dims)
    assert type(layer) is expected
    num_affine = 0 if norm == "none" else 2 * 12
    assert sum(parameter.numel() for parameter in layer.parameters()) == num_affine


@pytest.mark.parametrize(("num_channels", "num_groups"), [(12, 4), (64, 32), (7, 1)])
def test_group_norm_takes_the_most_groups_that_divide(num_channels: int, num_groups: int) -> None:
    assert norm_layer("group", num_channels).num_groups == num_groups


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ModelOptionError, match="norm must be one of 'batch', .*, got 'layer'"):
        norm_layer("layer", 8)


def test_conv_norm_act_leaves_out_what_is_not_given() -> None:
    conv, norm, relu = conv_layer(1, 2, 3), norm_layer("batch", 2), nn.ReLU()
    assert list(conv_norm_act(conv, norm, relu)) == [conv, norm, relu]
    assert list(conv_norm_act(conv, nn.Identity(), None)) == [conv]


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_init_kaiming_normal_has_the_papers_deviation(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv_layer(64, 128, 3), nn.Linear(64, 32), nn.BatchNorm2d(3))
    init_kaiming_normal_(model, mode=mode, negative_slope=0.1, linear_std=0.01)
    fan = (64 if mode == "fan_in" else 128) * 9
    # 73,728 normal draws: the deviation of the sample deviation is 0.26 %, so 2 % is 7 sigma.
    expected = math.sqrt(2 / (1 + 0.1**2) / fan)
    assert model[0].weight.std().item() == pytest.approx(expected, rel=0.02)
    # 2,048 draws: 1.6 %, so 10 % is 6 sigma.
    assert model[1].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not model[0].bias.any()
    assert not model[1].bias.any()
    assert (model[2].weight == 1).all()


def test_init_kaiming_normal_leaves_linear_layers_by_default() -> None:
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    init_kaiming_normal_(model, mode="fan_in")
    assert torch.equal(model.weight, before)
