"""SqueezeNet 1.0 and 1.1."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import models_zoo
from models_zoo.squeezenet import Fire, squeezenet1_0, squeezenet1_1

NAMES = ("squeezenet1_0", "squeezenet1_1")


def test_published_parameter_counts(count_parameters: Callable[..., int]) -> None:
    assert count_parameters("squeezenet1_0") == 1_248_424
    assert count_parameters("squeezenet1_1") == 1_235_496


@pytest.mark.parametrize("name", NAMES)
def test_full_size_output_shape(meta_output: Callable[..., Tensor], name: str) -> None:
    assert meta_output(name, 2, (224, 192)).shape == (2, 1000)


def test_fire_keeps_the_size_and_joins_both_expansions() -> None:
    assert Fire(6, 2, 4)(torch.randn(2, 6, 5, 7)).shape == (2, 8, 5, 7)


@pytest.mark.parametrize(("build", "size"), [(squeezenet1_0, 24), (squeezenet1_1, 20)])
def test_trains_on_non_square_images(
    train_step: Callable[..., Tensor], build: Callable[..., torch.nn.Module], size: int
) -> None:
    torch.manual_seed(0)
    model = build(num_classes=32, in_channels=2, dropout=0.0)
    assert train_step(model, torch.randn(4, 2, size, size + 9)).shape == (4, 32)


@pytest.mark.parametrize("name", NAMES)
def test_has_no_norm(name: str) -> None:
    assert not any("Norm" in type(module).__name__ for module in models_zoo.build(name).modules())


@pytest.mark.parametrize(("name", "least_size"), [("squeezenet1_0", 21), ("squeezenet1_1", 17)])
def test_least_size_is_the_true_one(name: str, least_size: int) -> None:
    model = models_zoo.build(name, num_classes=3).eval()
    assert model(torch.randn(1, 3, least_size, least_size)).shape == (1, 3)
    too_small = torch.randn(1, 3, least_size - 1, least_size - 1)
    with pytest.raises(models_zoo.InputShapeError, match=f"least size is {least_size} a side"):
        model(too_small)
    with pytest.raises(RuntimeError):
        model.features(too_small)
