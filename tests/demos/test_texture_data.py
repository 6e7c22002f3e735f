import socket
from pathlib import Path

import pytest
import skimage.data
import torch
from torch import Tensor

from demos import texture_data
from demos.texture_data import (
    PHOTOGRAPHS,
    TextureData,
    check_crop_size,
    draw_test_set,
    draw_train_batch,
    load_photographs,
    split,
)


def numbered_pixels(height: int, width: int) -> Tensor:
    return torch.arange(height * width, dtype=torch.float32).view(height, width)


@pytest.fixture(scope="module")
def photographs() -> dict[str, Tensor]:
    return load_photographs()


@pytest.fixture
def data(photographs: dict[str, Tensor]) -> TextureData:
    return split(photographs)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_photographs_are_grey_values_of_every_class(photographs: dict[str, Tensor]) -> None:
    assert list(photographs) == list(PHOTOGRAPHS)
    for photograph in photographs.values():
        assert photograph.ndim == 2
        assert photograph.dtype == torch.float32
        assert photograph.min() >= 0
        assert photograph.max() <= 1


def test_photographs_are_read_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("reading the photographs opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)

    assert load_photographs()


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(skimage.data, "__file__", str(tmp_path / "__init__.py"))

    with pytest.raises(FileNotFoundError, match=r"does not carry brick\.png, coins\.png"):
        load_photographs()


def test_train_and_test_regions_share_no_pixel() -> None:
    # Every pixel has a number of its own.
    data = split({"wide": numbered_pixels(20, 101), "tall": numbered_pixels(50, 31)})

    for train, test in zip(data.train_regions, data.test_regions, strict=True):
        assert not set(train.flatten().tolist()) & set(test.flatten().tolist())
        assert train.shape[1] > test.shape[1] > 0


def test_regions_cover_the_whole_photograph(
    photographs: dict[str, Tensor], data: TextureData
) -> None:
    for i, photograph in enumerate(photographs.values()):
        both = torch.cat([data.train_regions[i], data.test_regions[i]], dim=1)
        assert torch.equal(both, photograph)


def test_crops_stay_in_their_region(monkeypatch: pytest.MonkeyPatch) -> None:
    # Left columns are 0 and right ones 1; standardising would hide which a crop came from.
    monkeypatch.setattr(
        texture_data, "_batch", lambda crops, labels: texture_data.Batch(crops, labels)
    )
    sides = (torch.arange(100) >= 70).float().expand(40, 100)
    data = split({"a": sides, "b": sides})

    assert not draw_train_batch(data, 64, 16, seeded(0)).images.any()
    assert draw_test_set(data, 32, 16).images.all()


def test_batches_have_the_documented_shapes(data: TextureData) -> None:
    batch = draw_train_batch(data, 5, 24, seeded(0))

    assert batch.images.shape == (5, 3, 24, 24)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous()
    assert batch.labels.shape == (5,)
    assert batch.labels.dtype == torch.int64


def test_channels_are_the_same_grey_values(data: TextureData) -> None:
    images = draw_train_batch(data, 4, 24, seeded(0)).images

    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


def test_crops_have_zero_mean_and_at_most_unit_deviation(data: TextureData) -> None:
    images = draw_train_batch(data, 32, 24, seeded(0)).images[:, 0]

    # fp32 sums over 576 values of size one: 1e-5 is far above their rounding.
    assert images.mean((1, 2)).abs().max() < 1e-5
    assert images.std((1, 2)).max() < 1 + 1e-5


def test_batches_depend_on_the_seed_alone(data: TextureData) -> None:
    first, again, other = (draw_train_batch(data, 8, 24, seeded(seed)) for seed in (1, 1, 2))

    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_test_sets_depend_on_the_seed_alone(data: TextureData) -> None:
    torch.rand(1)
    first = draw_test_set(data, 3, 24)
    torch.rand(1)

    assert torch.equal(first.images, draw_test_set(data, 3, 24).images)
    assert not torch.equal(first.images, draw_test_set(data, 3, 24, seed=1).images)


def test_a_test_set_has_as_many_crops_of_each_class(data: TextureData) -> None:
    labels = draw_test_set(data, 3, 24).labels

    assert torch.bincount(labels).tolist() == [3] * len(PHOTOGRAPHS)


@pytest.mark.parametrize("crop_size", [0, 116])
def test_a_crop_that_does_not_fit_is_an_error(data: TextureData, crop_size: int) -> None:
    with pytest.raises(ValueError, match=r"smallest test region, of 'coins', is 303x115; .* 115"):
        check_crop_size(data, crop_size)


def test_the_largest_crop_fits(data: TextureData) -> None:
    check_crop_size(data, 115)

    assert draw_test_set(data, 1, 115).images.shape == (len(PHOTOGRAPHS), 3, 115, 115)
