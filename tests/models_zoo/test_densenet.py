"""DenseNet-121 and the small DenseNet-BC."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import models_zoo
from models_zoo.densenet import DenseLayer, DenseNet, DenseNetConfig, densenet121, densenet_small


def test_published_parameter_counts(count_parameters: Callable[..., int]) -> None:
    assert count_parameters("densenet121") == 7_978_856
    assert count_parameters("densenet_small") == 176_122
    assert count_parameters("densenet_small", block_config=(16, 16, 16)) == 769_162


def test_full_size_output_shape(meta_output: Callable[..., Tensor]) -> None:
    assert meta_output("densenet121", 2, (224, 192)).shape == (2, 1000)


def test_dense_layer_keeps_its_input_and_adds_channels() -> None:
    x = torch.randn(2, 6, 5, 7)
    output = DenseLayer(6, 4)(x)
    assert output.shape == (2, 10, 5, 7)
    assert torch.equal(output[:, :6], x)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_trains_on_non_square_images(train_step: Callable[..., Tensor], batch_size: int) -> None:
    torch.manual_seed(0)
    small = densenet_small(num_classes=5, in_channels=2, growth_rate=4, block_config=(2, 2, 2))
    assert train_step(small, torch.randn(batch_size, 2, 8, 12)).shape == (batch_size, 5)
    large = densenet121(num_classes=5, in_channels=2, growth_rate=4)
    assert train_step(large, torch.randn(batch_size, 2, 64, 40)).shape == (batch_size, 5)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiles_whole_with_the_large_stem(train_step: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    config = DenseNetConfig(
        model="densenet121",
        num_classes=5,
        in_channels=3,
        growth_rate=4,
        block_config=(1, 1, 1, 1),
        stem_channels=8,
        small_input=False,
    )
    model = DenseNet(config)
    train_step(torch.compile(model, backend="aot_eager", fullgraph=True), torch.randn(2, 3, 32, 64))


def test_parameter_names_are_torchvisions() -> None:
    names = dict(densenet121(growth_rate=4).named_parameters())
    assert names["features.denseblock1.denselayer2.conv1.weight"].shape == (16, 12, 1, 1)
    assert names["features.transition1.conv.weight"].shape == (16, 32, 1, 1)
    assert "features.norm5.weight" in names


@pytest.mark.parametrize(("name", "least_size"), [("densenet121", 29), ("densenet_small", 4)])
def test_least_size_is_the_true_one(name: str, least_size: int) -> None:
    model = models_zoo.build(name, num_classes=3, growth_rate=4).eval()
    assert model(torch.randn(1, 3, least_size, least_size)).shape == (1, 3)
    too_small = torch.randn(1, 3, least_size - 1, least_size - 1)
    with pytest.raises(models_zoo.InputShapeError, match=f"least size is {least_size} a side"):
        model(too_small)
    with pytest.raises(RuntimeError):
        model.features(too_small)


@pytest.mark.parametrize("block_config", [(), (6, 0)])
def test_bad_block_config_is_refused(block_config: tuple[int, ...]) -> None:
    text = "densenet_small: block_config must be one or more integers of at least 1, got"
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        densenet_small(block_config=block_config)
