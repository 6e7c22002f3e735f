import pytest
import torch

from benchmarks.frontier_nets import NETS, net_at
from demos.texture_data import TextureData, split
from models_zoo.errors import InputShapeError


@pytest.fixture
def data() -> TextureData:
    return split({"left": torch.rand(160, 230), "right": torch.rand(160, 230)})


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_the_defaults_fit(net, data: TextureData) -> None:
    assert net_at(net.name, data) == net


def test_batch_and_size_can_be_set(data: TextureData) -> None:
    net = net_at("unet3d", data, batch_size=1, size=48)

    assert (net.batch_size, net.size) == (1, (48, 48, 48))


def test_an_unknown_model_is_refused(data: TextureData) -> None:
    with pytest.raises(ValueError, match=r"expected a model of \['resnet50', .* got 'lenet'"):
        net_at("lenet", data)


def test_a_size_that_the_model_does_not_take_is_refused(data: TextureData) -> None:
    with pytest.raises(InputShapeError, match=r"unet2d"):
        net_at("unet2d", data, size=50)


def test_a_crop_larger_than_a_photograph_is_refused(data: TextureData) -> None:
    with pytest.raises(ValueError, match=r"needs crops of 191 pixels, .* gives 160; .*--size"):
        net_at("unet3d", data, size=96)
