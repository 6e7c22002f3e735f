import copy

import pytest
import torch
from torch import nn

from xconv_fx.errors import OptionError
from xconv_fx.nn import SKETCHES, XConv1d, XConv2d, XConv3d, convert

SIZES = {1: [21], 2: [8, 7], 3: [5, 4, 6]}
PAIRS = {1: (nn.Conv1d, XConv1d), 2: (nn.Conv2d, XConv2d), 3: (nn.Conv3d, XConv3d)}


def pair(dims: int, sketch: str = "independent", **options):
    exact_class, class_ = PAIRS[dims]
    exact = exact_class(4, 6, 3, **options)
    layer = class_(4, 6, 3, sketch=sketch, probes=8, **options)
    layer.load_state_dict(exact.state_dict())
    return exact, layer


def step(layer: nn.Module, x: torch.Tensor, seed: int = 0):
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(torch.ones_like(y).cumsum(-1))
    grads = [x.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad]
    layer.zero_grad()
    return y, grads


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_all_but_the_weight_gradient_is_that_of_torch(sketch, dims, padding_mode, padding):
    exact, layer = pair(dims, sketch, padding=padding, padding_mode=padding_mode)
    x = torch.randn(2, 4, *SIZES[dims])
    expected_y, expected = step(exact, x)
    y, got = step(layer, x)
    # Sums of up to 108 products in float32.
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-4, atol=1e-3)
    assert not torch.allclose(got[1], expected[1], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_even_kernels_with_same_padding(dims):
    exact_class, class_ = PAIRS[dims]
    exact = exact_class(4, 6, 4, padding="same", dilation=1)
    layer = class_(4, 6, 4, padding="same", dilation=1, probes=8)
    layer.load_state_dict(exact.state_dict())
    x = torch.randn(2, 4, *SIZES[dims])
    torch.testing.assert_close(layer(x), exact.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sketch", SKETCHES)
def test_the_weight_gradient_is_unbiased(sketch):
    exact, layer = pair(2, sketch, stride=2, groups=2, bias=False)
    x = torch.randn(2, 4, 8, 7)
    _, expected = step(exact, x)
    errors = torch.stack([step(layer, x, seed)[1][1] - expected[1] for seed in range(60)])
    # 108 entries: the squared error of the mean over its expectation is 1 on average.
    ratio = 60 * errors.mean(0).square().sum() / errors.square().mean(0).sum()
    assert float(ratio) < 4


def test_unbatched_input():
    exact, layer = pair(2, padding=1)
    x = torch.randn(4, 8, 7)
    torch.testing.assert_close(layer(x), exact(x), rtol=1e-4, atol=1e-4)
    assert layer(x).shape == (6, 8, 7)


def test_manual_seed_reproduces_and_seeds_differ():
    _, layer = pair(2)
    x = torch.randn(2, 4, 8, 7)
    first, again, other = (step(layer, x, seed)[1][1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def without_probing(layer: XConv2d) -> None:
    layer.probing = False


def frozen(layer: XConv2d) -> None:
    layer.weight.requires_grad_(False)


@pytest.mark.parametrize("change", [without_probing, frozen, XConv2d.eval])
def test_exact_when_no_sketch_is_wanted(change):
    exact, layer = pair(2)
    change(layer)
    exact.weight.requires_grad_(layer.weight.requires_grad)
    x = torch.randn(2, 4, 8, 7)
    state = torch.get_rng_state()
    y = layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    y.sum().backward()
    expected = exact(x)
    expected.sum().backward()
    assert torch.equal(y, expected)
    if layer.weight.requires_grad:
        assert torch.equal(layer.weight.grad, exact.weight.grad)


def test_exact_without_grad_and_where_a_sketch_would_not_be_smaller():
    _, layer = pair(2)
    state = torch.get_rng_state()
    with torch.no_grad():
        layer(torch.randn(2, 4, 8, 7, generator=torch.Generator().manual_seed(0)))
    small = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    nn.functional.pad(small, [1, 1])
    wide = XConv2d(4, 6, 1, probes=7)
    state = torch.get_rng_state()
    wide(small)
    assert torch.equal(torch.get_rng_state(), state)


def test_state_dicts_are_interchangeable():
    exact, layer = pair(2)
    assert list(exact.state_dict()) == list(layer.state_dict())
    exact.load_state_dict(layer.state_dict())


@pytest.mark.parametrize("sketch", SKETCHES)
def test_autocast_is_respected(sketch):
    exact, layer = pair(2, sketch)
    x = torch.randn(2, 4, 8, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), exact(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_channels_last_is_kept():
    _, layer = pair(2, "quantize", padding=1)
    x = torch.randn(2, 4, 8, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_compiled_layer_gives_the_same_gradients():
    _, layer = pair(2, padding=1)
    x = torch.randn(2, 4, 8, 7)
    y, grads = step(layer, x, 5)
    compiled_y, compiled = step(torch.compile(layer, backend="aot_eager"), x, 5)
    torch.testing.assert_close(compiled_y, y)
    for got, expected in zip(compiled, grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_description():
    _, layer = pair(2, "quantize")
    assert repr(layer) == ("XConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), sketch=quantize[2b])")
    layer.probing = False
    assert repr(layer).endswith("sketch=off)")


def small_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten())
    )


def test_convert_keeps_objects_parameters_and_hooks():
    model = small_model()
    before = dict(model.named_modules())
    parameters = list(model.parameters())
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    assert convert(model, sketch="quantize", bits=4) is model
    after = dict(model.named_modules())
    assert all(after[name] is module for name, module in before.items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert type(model[0]) is XConv2d
    assert type(model[2][0]) is XConv2d
    assert (model[2][0].sketch, model[2][0].bits) == ("quantize", 4)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert calls == [1]
    copy.deepcopy(model)
    convert(model, probes=4)
    assert (model[0].sketch, model[0].probes) == ("independent", 4)


def test_convert_of_a_layer_itself():
    assert type(convert(nn.Conv1d(2, 3, 3))) is XConv1d
    assert type(convert(nn.Conv3d(2, 3, 3))) is XConv3d


class OtherConv(nn.Conv2d):
    pass


def test_convert_names_what_it_leaves_alone(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), OtherConv(4, 4, 3), nn.ConvTranspose2d(4, 4, 3))
    convert(model)
    assert type(model[1]) is OtherConv
    assert [record.getMessage() for record in caplog.records] == [
        "convert left a layer exact, no sketching layer matches it: 1: OtherConv",
        "convert left a layer exact, no sketching layer matches it: 2: ConvTranspose2d",
    ]


def test_convert_refuses_a_model_without_convolutions():
    with pytest.raises(ValueError, match=r"convert found no nn.Conv1d.*in Sequential; .*: none"):
        convert(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"other classes: \(the model itself\): OtherConv"):
        convert(OtherConv(3, 4, 3))


def test_bad_options_change_nothing():
    model = small_model()
    with pytest.raises(OptionError) as error:
        convert(model, sketch="sketchy")
    assert str(error.value) == (
        "option 'sketch' got 'sketchy'; allowed: independent, multichannel, orthogonal, quantize"
    )
    assert type(model[0]) is nn.Conv2d
    with pytest.raises(OptionError, match="option 'probes' got 0"):
        XConv2d(3, 4, 3, probes=0)
    with pytest.raises(OptionError, match="option 'bits' got 3"):
        XConv1d(3, 4, 3, sketch="quantize", bits=3)
    with pytest.raises(OptionError, match="option 'distribution' got 'flat'"):
        XConv3d(3, 4, 3, distribution="flat")
