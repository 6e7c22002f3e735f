"""Checks and sizes of the input specification."""

import re

import pytest
import torch

from models_zoo.errors import InputShapeError
from models_zoo.input_spec import InputSpec

FREE = InputSpec("net", 3, least_size=8, multiple=4, hint="do this")
FIXED = InputSpec("net", 3, fixed_size=(28, 20))


def test_check_accepts_a_fitting_tensor() -> None:
    FREE.check(torch.empty(2, 3, 8, 12))
    FIXED.check(torch.empty(2, 3, 28, 20))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 8, 8), (2, 3, 8, 8, 8)])
def test_check_refuses_other_dims_and_channels(shape: tuple[int, ...]) -> None:
    text = re.escape(f"net: expected an input of shape (N, 3, H, W), got {shape}")
    with pytest.raises(InputShapeError, match=text):
        FREE.check(torch.empty(shape))


def test_check_names_the_axes_of_a_volume() -> None:
    spec = InputSpec("net", 1, num_spatial_dims=3)
    with pytest.raises(InputShapeError, match=re.escape("(N, 1, D, H, W), got (1, 2, 4, 4, 4)")):
        spec.check(torch.empty(1, 2, 4, 4, 4))


def test_too_small_a_size_says_the_least_size_and_what_to_do() -> None:
    text = "spatial size (8, 4) is too small for the downsampling: the least size is 8 a side"
    with pytest.raises(InputShapeError, match=re.escape(text) + "; do this"):
        FREE.check_size((8, 4))


def test_a_size_that_does_not_divide_says_the_multiple() -> None:
    text = "spatial size (8, 10) does not divide: each side must be a multiple of 4"
    with pytest.raises(InputShapeError, match=re.escape(text)):
        FREE.check_size((8, 10))


def test_another_size_than_the_fixed_one_is_refused() -> None:
    text = "expected the spatial size (28, 20), fixed when the model was built, got (20, 28)"
    with pytest.raises(InputShapeError, match=re.escape(text)):
        FIXED.check_size((20, 28))


def test_another_number_of_sides_is_refused() -> None:
    with pytest.raises(InputShapeError, match=re.escape("expected 2 spatial sides, got (8,)")):
        FREE.check_size((8,))


def test_fit_raises_each_side_to_the_least_size_and_the_multiple() -> None:
    assert FREE.fit((2, 13)) == (8, 16)
    assert FIXED.fit((2, 13)) == (28, 20)
