"""The DCGAN generator and discriminator."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import models_zoo
from models_zoo.dcgan import dcgan_discriminator, dcgan_generator


def test_published_parameter_counts(count_parameters: Callable[..., int]) -> None:
    # pytorch/examples dcgan with nz=100, ngf=ndf=64, nc=3.
    assert count_parameters("dcgan_generator") == 3_576_704
    assert count_parameters("dcgan_discriminator") == 2_765_568


@pytest.mark.parametrize("image_size", [8, 32, 64])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_pair_trains(
    train_step: Callable[..., Tensor], image_size: int, batch_size: int
) -> None:
    torch.manual_seed(0)
    generator = dcgan_generator(latent_channels=6, out_channels=2, width=2, image_size=image_size)
    image = train_step(generator, torch.randn(batch_size, 6, 1, 1))
    assert image.shape == (batch_size, 2, image_size, image_size)
    assert image.abs().max() <= 1
    discriminator = dcgan_discriminator(in_channels=2, width=2, image_size=image_size)
    assert train_step(discriminator, image).shape == (batch_size, 1)


def test_initial_weights_have_the_papers_deviation() -> None:
    torch.manual_seed(0)
    # 131,072 draws: the deviation of the sample deviation is 0.2 %, so 2 % is 10 sigma.
    weight = dcgan_generator(latent_channels=64, width=16).layers[0].weight
    assert weight.numel() == 131_072
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_another_image_size_is_refused() -> None:
    with pytest.raises(models_zoo.InputShapeError, match=r"expected the spatial size \(64, 64\)"):
        dcgan_discriminator(width=2)(torch.randn(1, 3, 64, 32))


@pytest.mark.parametrize("name", ["dcgan_generator", "dcgan_discriminator"])
def test_bad_image_sizes_are_refused(name: str) -> None:
    with pytest.raises(models_zoo.ModelOptionError, match=f"{name}: image_size .* least 8, got 4"):
        models_zoo.build(name, image_size=4)
    with pytest.raises(models_zoo.ModelOptionError, match=f"{name}: .* power of two, got 48"):
        models_zoo.build(name, image_size=48)
