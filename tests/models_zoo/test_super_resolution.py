"""The EDSR baseline."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import models_zoo
from models_zoo.super_resolution import super_resolution


def test_published_parameter_counts(count_parameters: Callable[..., int]) -> None:
    # Lim et al., table 1: 1.5 M for the x4 baseline; 1.37 M for x2 by the authors' code.
    assert count_parameters("super_resolution") == 1_369_859
    assert count_parameters("super_resolution", scale=4) == 1_517_571


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_trains_on_non_square_images(
    train_step: Callable[..., Tensor], scale: int, batch_size: int
) -> None:
    torch.manual_seed(0)
    model = super_resolution(in_channels=2, width=4, num_blocks=2, scale=scale)
    output = train_step(model, torch.randn(batch_size, 2, 5, 7))
    assert output.shape == (batch_size, 2, 5 * scale, 7 * scale)


def test_residual_scale_weights_the_branch() -> None:
    torch.manual_seed(0)
    block = super_resolution(width=4, num_blocks=1, residual_scale=0.1).body[0]
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x) - x, 0.1 * block.body(x))


def test_an_unknown_scale_is_refused() -> None:
    text = "super_resolution: scale must be one of 2, 3, 4, 8, got 5"
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        super_resolution(scale=5)


def test_other_channels_are_refused() -> None:
    with pytest.raises(models_zoo.InputShapeError, match="super_resolution: expected an input"):
        super_resolution(width=4, num_blocks=1)(torch.randn(1, 1, 8, 8))
