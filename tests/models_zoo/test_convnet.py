"""The MNIST and CIFAR nets of the XConv paper."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import models_zoo
from models_zoo.convnet import cifar_net, mnist_net


def test_parameter_counts_of_the_reference_nets(count_parameters: Callable[..., int]) -> None:
    # experiments/mnist.py and experiments/cifarconvnet.py of slimgroup/XConv.
    assert count_parameters("mnist_net") == 320 + 18_496 + 12_544 * 128 + 128 + 1_290
    assert count_parameters("cifar_net") == 1_216 + 12_832 + 2 * 25_632 + 2_048 * 10 + 10


@pytest.mark.parametrize("batch_size", [1, 3])
def test_trains_on_non_square_images(train_step: Callable[..., Tensor], batch_size: int) -> None:
    mnist = mnist_net(num_classes=5, in_channels=2, width=4, image_size=(10, 15))
    assert train_step(mnist, torch.randn(batch_size, 2, 10, 15)).shape == (batch_size, 5)
    cifar = cifar_net(num_classes=5, in_channels=2, width=4, image_size=(10, 15))
    assert train_step(cifar, torch.randn(batch_size, 2, 10, 15)).shape == (batch_size, 5)


@pytest.mark.parametrize("name", ["mnist_net", "cifar_net"])
def test_has_no_norm(name: str) -> None:
    assert not any("Norm" in type(module).__name__ for module in models_zoo.build(name).modules())


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = mnist_net(width=4)
    x = torch.randn(2, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dropout_out_of_range_is_refused() -> None:
    with pytest.raises(models_zoo.ModelOptionError, match=r"mnist_net: dropout must .* got -0.1"):
        mnist_net(dropout=-0.1)


def test_another_image_size_is_refused() -> None:
    with pytest.raises(models_zoo.InputShapeError, match=re.escape("(28, 28), fixed when")):
        mnist_net(width=4)(torch.randn(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("name", "image_size", "least_size"),
    [("mnist_net", 1, 2), ("cifar_net", 3, 4), ("cifar_net", (8, 8, 8), 4), ("mnist_net", 28.0, 2)],
)
def test_too_small_an_image_size_says_the_least(
    name: str, image_size: object, least_size: int
) -> None:
    text = f"{name}: image_size must be H and W, the least size is {least_size} a side, got"
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        models_zoo.build(name, image_size=image_size)
