import importlib.util
import sys

import pytest
import torch

from benchmarks import third_party

installed = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None or importlib.util.find_spec("timm") is None,
    reason="torchvision and timm are not part of the project's requirements",
)


def test_every_name_says_its_package():
    assert {name.partition(".")[0] for name in third_party.names()} == {"torchvision", "timm"}


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"expected one of \[.*\], got 'torchvision.nothing'"):
        third_party.build("torchvision.nothing")


@pytest.mark.parametrize("name", ["torchvision.resnet18", "timm.convnext_atto"])
def test_a_missing_package_is_an_error_that_says_what_to_install(name, monkeypatch):
    package = name.partition(".")[0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(third_party.MissingPackageError) as error:
        third_party.build(name)
    text = str(error.value)
    assert text.startswith(f"{package} cannot be imported (")
    assert text.endswith(third_party.INSTALL)


@installed
@pytest.mark.parametrize(
    ("name", "given", "shape"),
    [
        ("torchvision.resnet18", {"size": 32}, (2, 3, 32, 32)),
        ("torchvision.r3d_18", {"batch_size": 2, "size": 16}, (2, 3, 8, 16, 16)),
        ("timm.convnext_atto", {"batch_size": 1, "size": 64}, (1, 3, 64, 64)),
    ],
)
def test_a_model_comes_in_training_mode_with_a_batch_it_takes(name, given, shape):
    model, (batch,) = third_party.build(name, **given)
    assert model.training
    assert batch.shape == shape
    with torch.no_grad():
        assert model(batch).shape[0] == shape[0]
