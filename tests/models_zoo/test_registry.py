"""Building by name, example inputs, and what every model of the zoo must do."""

import copy
import re
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn

import models_zoo


@dataclass(frozen=True)
class Tiny:
    """Options and a size that make a model cheap to run."""

    size: int | tuple[int, ...] | None
    options: dict[str, object] = field(default_factory=dict)


TINY = MappingProxyType(
    {
        "mnist_net": Tiny(None, {"width": 4, "image_size": 8, "dropout": 0.0}),
        "cifar_net": Tiny(None, {"width": 4, "image_size": (8, 12)}),
        "squeezenet1_0": Tiny((21, 24), {"num_classes": 8, "dropout": 0.0}),
        "squeezenet1_1": Tiny((17, 20), {"num_classes": 8, "dropout": 0.0}),
        "resnet18": Tiny((8, 16), {"num_classes": 8, "width": 4, "small_input": True}),
        "resnet50": Tiny((8, 16), {"num_classes": 8, "width": 4, "small_input": True}),
        "vgg11": Tiny((32, 40), {"num_classes": 8, "width": 4, "small_input": True}),
        "vgg11_bn": Tiny((32, 64), {"num_classes": 8, "width": 4, "small_input": True}),
        "vgg16": Tiny((32, 40), {"num_classes": 8, "width": 4, "small_input": True}),
        "unet2d": Tiny((8, 12), {"width": 4, "num_stages": 3}),
        "unet3d": Tiny((8, 8, 12), {"width": 4, "num_stages": 3}),
        "mobilenet_v2": Tiny((32, 64), {"num_classes": 8, "width_mult": 0.1, "dropout": 0.0}),
        "densenet121": Tiny((32, 64), {"num_classes": 8, "growth_rate": 4}),
        "densenet_small": Tiny((8, 12), {"growth_rate": 4, "block_config": (2, 2, 2)}),
        "super_resolution": Tiny((6, 8), {"width": 4, "num_blocks": 2}),
        "dcgan_generator": Tiny(None, {"width": 2, "image_size": 16}),
        "dcgan_discriminator": Tiny(None, {"width": 2, "image_size": 16}),
    }
)

every_model = pytest.mark.parametrize("name", models_zoo.names())


def build_tiny(name: str) -> nn.Module:
    """The tiny model, its weights drawn from seed 0."""
    torch.manual_seed(0)
    return models_zoo.build(name, **TINY[name].options)


def tiny_input(
    name: str, batch_size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Inputs of the tiny model, drawn from seed 1."""
    generator = torch.Generator().manual_seed(1)
    tiny = TINY[name]
    return models_zoo.example_input(
        name, batch_size, size=tiny.size, dtype=dtype, generator=generator, **tiny.options
    )


def step(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The output of one training step and the gradient of every parameter."""
    output = model(*inputs)
    return output, *torch.autograd.grad(output.square().mean(), tuple(model.parameters()))


def test_names_are_unique_and_all_tried_here() -> None:
    names = models_zoo.names()
    assert len(set(names)) == len(names)
    assert set(names) == set(TINY)


@every_model
def test_entry_agrees_with_the_built_model(name: str) -> None:
    entry = models_zoo.entry(name)
    with torch.device("meta"):
        spec = models_zoo.input_spec(models_zoo.build(name))
    assert spec.model == entry.name == entry.builder.__name__ == name
    assert (spec.in_channels, spec.num_spatial_dims) == (entry.in_channels, entry.num_spatial_dims)
    assert spec.fit(entry.size) == entry.size
    assert entry.task in {"classification", "dense", "generator"}


@every_model
def test_the_task_says_the_output(name: str) -> None:
    with torch.device("meta"):
        (x,) = models_zoo.example_input(name, 2)
        output = models_zoo.build(name)(x)
    entry = models_zoo.entry(name)
    assert x.shape == (2, entry.in_channels, *entry.size)
    if entry.task == "classification":
        assert output.ndim == 2
    else:
        assert output.ndim == x.ndim
        assert all(out >= side for out, side in zip(output.shape[2:], entry.size, strict=True))


@every_model
def test_same_seed_same_model_same_output(name: str) -> None:
    first, second = build_tiny(name), build_tiny(name)
    inputs = tiny_input(name, 2)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    for one, two in zip(step(first, inputs), step(second, inputs), strict=True):
        assert torch.equal(one, two)


@every_model
def test_eval_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    model = build_tiny(name).double().eval()
    (x,) = tiny_input(name, 3, torch.float64)
    with torch.no_grad():
        # The kernel may sum in another order at another batch size: float64 rounding only.
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        # 121 weight layers; test_densenet.py compiles the same net with fewer.
        pytest.param(name, marks=pytest.mark.slow) if name == "densenet121" else name
        for name in models_zoo.names()
    ],
)
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiles_whole_and_agrees_with_eager(name: str) -> None:
    model = build_tiny(name).double()
    inputs = tiny_input(name, 2, torch.float64)
    expected = step(copy.deepcopy(model), inputs)
    actual = step(torch.compile(model, backend="aot_eager", fullgraph=True), inputs)
    # The decompositions sum in another order; batch norm over a few elements amplifies
    # float64 rounding by some orders of magnitude.
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_an_unknown_model_is_refused_with_a_suggestion_and_all_names() -> None:
    with pytest.raises(models_zoo.UnknownModelError) as caught:
        models_zoo.build("resnet19")
    text = str(caught.value)
    assert text.startswith("unknown model 'resnet19' (did you mean 'resnet18'?); known models: ")
    assert text.endswith(", ".join(models_zoo.names()))


def test_an_unlike_name_gets_no_suggestion() -> None:
    with pytest.raises(models_zoo.UnknownModelError, match="unknown model 'zzz'; known models"):
        models_zoo.example_input("zzz", 1)


def test_an_unknown_option_is_refused_with_a_suggestion() -> None:
    text = (
        "resnet18: no option 'widht' (did you mean 'width'?); "
        "its options: num_classes, in_channels, width, small_input"
    )
    with pytest.raises(models_zoo.ModelOptionError, match=re.escape(text)):
        models_zoo.build("resnet18", widht=32)


@every_model
def test_no_channels_are_refused(name: str) -> None:
    option = "latent_channels" if name == "dcgan_generator" else "in_channels"
    text = f"{name}: {option} must be an integer of at least 1, got 0"
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        models_zoo.build(name, **{option: 0})


def test_input_spec_refuses_a_foreign_module() -> None:
    with pytest.raises(models_zoo.ModelOptionError, match="Linear has no input_spec"):
        models_zoo.input_spec(nn.Linear(2, 2))


def test_example_input_obeys_size_dtype_device_and_options() -> None:
    (x,) = models_zoo.example_input("unet2d", 3, size=(32, 48), dtype=torch.bfloat16)
    assert (x.shape, x.dtype) == ((3, 3, 32, 48), torch.bfloat16)
    (x,) = models_zoo.example_input("resnet18", 2, size=16, small_input=True, in_channels=1)
    assert x.shape == (2, 1, 16, 16)
    (x,) = models_zoo.example_input("unet3d", 1, num_stages=6)
    assert x.shape == (1, 1, 64, 64, 64)
    (x,) = models_zoo.example_input("mnist_net", 1, image_size=(20, 24), device="meta")
    assert (x.shape, x.device.type) == ((1, 1, 20, 24), "meta")


def test_example_input_draws_from_the_generator_given() -> None:
    before = torch.get_rng_state()
    one = models_zoo.example_input("mnist_net", 2, generator=torch.Generator().manual_seed(3))
    two = models_zoo.example_input("mnist_net", 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(one[0], two[0])
    assert torch.equal(before, torch.get_rng_state())


def test_example_input_refuses_a_size_below_the_least() -> None:
    text = "resnet18: spatial size (16, 16) is too small for the downsampling: the least size is 32"
    with pytest.raises(models_zoo.InputShapeError, match=re.escape(text)):
        models_zoo.example_input("resnet18", 2, size=16)


def test_example_input_refuses_no_batch_and_integer_dtypes() -> None:
    text = "vgg11: batch_size must be an integer of at least 1, got 0"
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        models_zoo.example_input("vgg11", 0)
    text = "vgg11: dtype must be a floating dtype, got torch.int64"
    with pytest.raises(models_zoo.ModelOptionError, match=text):
        models_zoo.example_input("vgg11", 1, dtype=torch.int64)
