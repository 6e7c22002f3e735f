"""Norms and activations between two convolutions, through the whole compiled path.

Masks are packed and stay exact. Norms and smooth activations are sketched, so that every gradient
upstream of them is an estimate too: unbiased, but for a norm's documented term of order 1/n.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import xconv_fx

SIZES = {1: (4, 3, 67), 2: (2, 3, 11, 13), 3: (2, 3, 5, 6, 7)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def sharp(dtype):
    """A price of noise at which sketches have 8 bits: a wrong formula shows soon.

    Half types have no room for it; they are rounded more coarsely than that anyway.
    """
    return {"noise_price": 30.0} if dtype in (torch.float32, torch.float64) else {}


class Net(nn.Module):
    def __init__(self, dims: int, middle: nn.Module) -> None:
        super().__init__()
        self.before = CONVOLUTIONS[dims](3, 4, 3, padding=1)
        self.middle = middle
        self.after = CONVOLUTIONS[dims](4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.middle(self.before(x)))


def make(middle: nn.Module, dims: int, dtype: torch.dtype) -> tuple[Net, Tensor]:
    """Returns a net and an input; affine weights and running statistics are moved off 1 and 0."""
    with torch.no_grad():
        for name, tensor in [*middle.named_parameters(), *middle.named_buffers()]:
            if name in ("weight", "running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name in ("bias", "running_mean"):
                tensor.normal_()
    x = torch.randn(SIZES[dims]).to(dtype).requires_grad_()
    return Net(dims, middle).to(dtype), x


def rows_of(report, module):
    """What became of a module's values; nothing may be kept as it is but statistics."""
    rows = [row for row in report.values if row.module == module]
    assert all(row.nbytes <= 64 for row in rows if row.decision == "keep")
    return sorted(row.decision for row in rows if row.decision not in ("keep", "derive"))


def sketched_of(report):
    """The modules of the values that were sketched, the batch aside."""
    rows = [row for row in report.values if not row.name.startswith("primals")]
    return sorted(row.module for row in rows if row.decision == "sketch")


def check(comparison, assert_to_rounding, assert_unbiased, exact, bias_bounds=None):
    """Output, buffers and the gradients named are eager's; the others are eager's in the mean."""
    report = comparison.report
    assert report.exact is None
    assert report.num_sketched_convolutions == 2
    assert report.exact_convolutions == ()
    assert comparison.grads.keys() == comparison.expected_grads.keys()
    assert_to_rounding(comparison.output, comparison.expected)
    for name, expected in comparison.expected_buffers.items():
        if expected.is_floating_point():
            assert_to_rounding(comparison.buffers[name], expected)
        else:
            assert torch.equal(comparison.buffers[name], expected)
    for name, expected in comparison.expected_grads.items():
        if name in exact:
            assert_to_rounding(comparison.grads[name], expected)
        else:
            bound = None if bias_bounds is None else bias_bounds.get(name)
            assert comparison.samples[name].std(0).max() > 0, name
            assert_unbiased(comparison.samples[name], expected, bound)


@dataclass(frozen=True)
class Norm:
    """A norm of four channels.

    Attributes:
        layer: the layer.
        dims: spatial dims.
        group_shape: how the input is viewed so that statistics run over the last dim; dims of
            batch and channel are swapped first if `by_channel`.
        by_channel: whether the statistics are taken over the batch.
        expected: the modules of which a value is expected to be sketched.
        train: whether it is in training mode.
        dtype: of model and input.
    """

    layer: nn.Module
    dims: int
    group_shape: tuple[int, ...]
    by_channel: bool
    expected: tuple[str, ...]
    train: bool = True
    dtype: torch.dtype = torch.float32


BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

# The modules of which a value is sketched: the convolution before the norm, from whose sketch the
# normalised input and the input of the convolution after it are derived.
BEFORE = ("before",)


def batch(dims=2, *, train=True, dtype=torch.float32, **kwargs):
    # Without affine weight to need the normalised input, the norm's output alone is sketched.
    expected = BEFORE if train or kwargs.get("affine", True) else ("middle",)
    layer = BATCH[dims](4, **kwargs).train(train)
    return Norm(layer, dims, (4, -1), True, expected, train, dtype)


def instance(dims=2, *, train=True, dtype=torch.float32, **kwargs):
    layer = INSTANCE[dims](4, **kwargs).train(train)
    return Norm(layer, dims, (SIZES[dims][0] * 4, -1), False, BEFORE, train, dtype)


def group(dims=2, *, dtype=torch.float32, **kwargs):
    layer = nn.GroupNorm(2, 4, **kwargs)
    return Norm(layer, dims, (SIZES[dims][0] * 2, -1), False, BEFORE, dtype=dtype)


def layer(dims=2, *, dtype=torch.float32, **kwargs):
    norm = nn.LayerNorm([4, *SIZES[dims][2:]], **kwargs)
    # In float32 the normalised input is the source, in half types the smaller value before it.
    expected = ("middle",) if dtype == torch.float32 else BEFORE
    return Norm(norm, dims, (SIZES[dims][0], -1), False, expected, dtype=dtype)


def norms():
    bf16 = torch.bfloat16
    stats = {"affine": True, "track_running_stats": True}
    return {
        **{f"batch-{d}d": (batch, d, {}) for d in (1, 2, 3)},
        "batch-no-affine": (batch, 2, {"affine": False}),
        "batch-no-running-stats": (batch, 2, {"track_running_stats": False}),
        "batch-bfloat16": (batch, 2, {"dtype": bf16}),
        **{f"batch-eval-{d}d": (batch, d, {"train": False}) for d in (1, 2, 3)},
        "batch-eval-no-affine": (batch, 2, {"train": False, "affine": False}),
        "batch-eval-bfloat16": (batch, 2, {"train": False, "dtype": bf16}),
        **{f"group-{d}d": (group, d, {}) for d in (1, 2, 3)},
        "group-no-affine": (group, 2, {"affine": False}),
        "group-bfloat16": (group, 2, {"dtype": bf16}),
        **{f"layer-{d}d": (layer, d, {}) for d in (1, 2, 3)},
        "layer-no-affine": (layer, 2, {"elementwise_affine": False}),
        "layer-no-bias": (layer, 2, {"bias": False}),
        "layer-bfloat16": (layer, 2, {"dtype": bf16}),
        **{f"instance-{d}d": (instance, d, {}) for d in (1, 2, 3)},
        "instance-affine-running-stats": (instance, 2, stats),
        "instance-affine-running-stats-eval": (instance, 2, {"train": False, **stats}),
        "instance-bfloat16": (instance, 2, {"dtype": bf16}),
    }


NORMS = norms()


def norm_bias_bounds(norm: Norm, model: Net, x: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
    """Bounds the bias that a norm's sketch puts into the gradients upstream of it.

    An unbiased stand-in for the normalised input h adds ``rstd * g * Var(h) / n`` to the input
    gradient (see `xconv_fx.ops.derivatives.norm_input_grad`). Stochastic rounding of a range to
    L + 1 codes has ``Var(h) <= (range / L)^2 / 4``. The linear convolution before it turns that
    bound into one for its own gradients: its backward with absolute values everywhere.
    """
    y = model.before(x)
    z = model.middle(y).detach().requires_grad_()
    model.after(z).backward(grad_output)
    stat_view = (y.transpose(0, 1) if norm.by_channel else y).detach().float()
    stat_view = stat_view.reshape(norm.group_shape)
    variance, mean = torch.var_mean(stat_view, 1, correction=0, keepdim=True)
    normalized = (stat_view - mean) / variance.sqrt()
    num_elements = stat_view.shape[1]
    top = 255 if sharp(norm.dtype) else 15
    assert num_elements > 60, "the bound is of order 1/n"
    # What is sketched is the norm's input, whose groups may hold several statistics' elements.
    highest = (stat_view.max() - stat_view.min()) * variance.min().rsqrt()
    widest = torch.maximum(normalized.max() - normalized.min(), highest)
    max_variance = (widest / top) ** 2 / 4
    weight = getattr(norm.layer, "weight", None)
    scale = 1.0 if weight is None else weight.abs().max().float()
    rstd = variance.min().rsqrt()
    bound = rstd * z.grad.float().abs() * scale * max_variance / num_elements
    absolute = Net(norm.dims, nn.Identity()).before
    with torch.no_grad():
        for target, source in zip(absolute.parameters(), model.before.parameters(), strict=True):
            target.copy_(source.abs())
    leaf = x.detach().float().abs().requires_grad_()
    absolute(leaf).backward(bound.detach())
    return {
        "input": leaf.grad,
        "before.weight": absolute.weight.grad,
        "before.bias": absolute.bias.grad,
    }


@pytest.mark.parametrize("name", NORMS)
def test_a_norm(name, compare, assert_to_rounding, assert_unbiased):
    make_norm, dims, kwargs = NORMS[name]
    norm = make_norm(dims, **kwargs)
    model, x = make(norm.layer, dims, norm.dtype)
    comparison = compare(model, x, **sharp(norm.dtype))

    assert sketched_of(comparison.report) == list(norm.expected)
    exact = {"middle.bias", "after.bias"}
    if not norm.train:
        check(comparison, assert_to_rounding, assert_unbiased, {*exact, "before.bias", "input"})
        return
    bounds = norm_bias_bounds(norm, model, x, comparison.grad_output)
    for key in ("input", "before.weight"):
        share = bounds[key].norm() / comparison.expected_grads[key].float().norm()
        assert share < 0.02, "the bias allowed is so large that the check says little"
    check(comparison, assert_to_rounding, assert_unbiased, exact, bounds)


SMOOTH = {
    "gelu": nn.GELU(),
    "gelu-tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "elu": nn.ELU(alpha=0.7),
    "celu": nn.CELU(alpha=0.7),
    "selu": nn.SELU(),
    "hardswish": nn.Hardswish(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(beta=2.0, threshold=1.5),
    "logsigmoid": nn.LogSigmoid(),
    "tanhshrink": nn.Tanhshrink(),
}
MASKED = {
    "relu": nn.ReLU(),
    "relu-inplace": nn.ReLU(inplace=True),
    "leaky-relu": nn.LeakyReLU(0.2),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.5, 0.7),
    "threshold": nn.Threshold(0.1, -0.2),
    "softshrink": nn.Softshrink(0.3),
    "hardshrink": nn.Hardshrink(0.3),
    # Its derivative takes two values: a mask will do.
    "hardsigmoid": nn.Hardsigmoid(),
}


def cases(activations, others):
    """All in 2d float32, and some in other dims and dtypes."""
    plain = [pytest.param(name, 2, torch.float32, id=f"{name}-2d") for name in activations]
    return plain + [
        pytest.param(name, dims, dtype, id=f"{name}-{dims}d-{str(dtype).removeprefix('torch.')}")
        for name, dims, dtype in others
    ]


@pytest.mark.parametrize(
    ("name", "dims", "dtype"),
    cases(
        SMOOTH,
        [
            ("gelu", 2, torch.bfloat16),
            ("silu", 1, torch.bfloat16),
            ("tanh", 3, torch.float32),
            ("softplus", 1, torch.float64),
        ],
    ),
)
def test_a_smooth_activation(name, dims, dtype, compare, assert_to_rounding, assert_unbiased):
    comparison = compare(*make(SMOOTH[name], dims, dtype), **sharp(dtype))

    # The output, for the convolution after it, and the derivative.
    assert rows_of(comparison.report, "middle") == ["sketch", "sketch"]
    check(comparison, assert_to_rounding, assert_unbiased, {"after.bias"})


@pytest.mark.parametrize(
    ("name", "dims", "dtype"),
    cases(
        MASKED,
        [
            ("relu", 2, torch.bfloat16),
            ("leaky-relu", 1, torch.float16),
            ("relu6", 3, torch.float32),
        ],
    ),
)
def test_an_activation_with_a_mask(name, dims, dtype, compare, assert_to_rounding, assert_unbiased):
    comparison = compare(*make(MASKED[name], dims, dtype), **sharp(dtype))

    assert rows_of(comparison.report, "middle") == ["pack", "sketch"]
    check(comparison, assert_to_rounding, assert_unbiased, {"after.bias", "before.bias", "input"})


@pytest.mark.parametrize("num_parameters", [1, 4])
def test_prelu_keeps_a_mask_and_a_sketch_for_its_weight(
    num_parameters, compare, assert_to_rounding, assert_unbiased
):
    comparison = compare(*make(nn.PReLU(num_parameters), 2, torch.float32), **sharp(torch.float32))

    # Its output is derived from the sketch of its input.
    assert rows_of(comparison.report, "middle") == ["pack"]
    assert sketched_of(comparison.report) == ["before"]
    check(comparison, assert_to_rounding, assert_unbiased, {"after.bias", "before.bias", "input"})


class GluNet(Net):
    def __init__(self) -> None:
        super().__init__(2, nn.GLU(dim=1))
        self.after = nn.Conv2d(2, 5, 1)


def test_glu_keeps_its_two_derivatives(compare, assert_to_rounding, assert_unbiased):
    x = torch.randn(SIZES[2], requires_grad=True)
    comparison = compare(GluNet(), x, **sharp(torch.float32))

    # The output, for the convolution after it, and a derivative for either half of the input.
    assert rows_of(comparison.report, "middle") == ["sketch"] * 3
    check(comparison, assert_to_rounding, assert_unbiased, {"after.bias"})


def test_softsign_stays_exact(compare, assert_to_rounding, assert_unbiased):
    """It is written in divisions, of which no rule knows the derivative: its input is kept."""
    comparison = compare(*make(nn.Softsign(), 2, torch.float32), **sharp(torch.float32))

    kept = [row for row in comparison.report.values if row.decision == "keep"]
    assert [(row.module, row.shape) for row in kept] == [("before", (2, 4, 11, 13))]
    (left,) = comparison.report.exact_convolutions
    assert "is rebuilt exactly in the backward, from" in left.reason
    for name in ("input", "before.bias", "after.weight", "after.bias"):
        assert_to_rounding(comparison.grads[name], comparison.expected_grads[name])
    assert_unbiased(comparison.samples["before.weight"], comparison.expected_grads["before.weight"])


class DropoutNet(Net):
    """Returns the dropped activations too: they tell which elements were kept."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dropped = self.middle(self.before(x))
        return self.after(dropped), dropped


def test_dropout(compile_xconv, assert_to_rounding, assert_unbiased):
    """A mask is packed and drawn once: each step's gradients are exact for the step's mask."""
    model = DropoutNet(2, nn.Dropout(0.3))
    x = torch.randn(SIZES[2], requires_grad=True)
    grad_output = torch.randn(2, 5, 11, 13)
    compiled = compile_xconv(model, **sharp(torch.float32))
    errors = []
    masks = []
    for _ in range(40):
        model.zero_grad()
        x.grad = None
        output, dropped = compiled(x)
        output.backward(grad_output)
        mask = (dropped != 0).detach()
        masks.append(mask)
        got = {name: p.grad.clone() for name, p in model.named_parameters()}
        got["input"] = x.grad.clone()
        model.zero_grad()
        x.grad = None
        expected = model.after(model.before(x) * mask / 0.7)
        expected.backward(grad_output)
        assert_to_rounding(output, expected)
        assert_to_rounding(got["input"], x.grad)
        assert_to_rounding(got["before.bias"], model.before.bias.grad)
        assert_to_rounding(got["after.bias"], model.after.bias.grad)
        errors.append((got["after.weight"] - model.after.weight.grad).double().flatten())
    assert not torch.equal(masks[0], masks[1])
    # 40 masks of 1,144 elements: five standard deviations of their share.
    share = torch.stack(masks).float().mean().item()
    assert abs(share - 0.7) < 5 * math.sqrt(0.7 * 0.3 / (40 * 1144))
    assert_unbiased(torch.stack(errors), torch.zeros(len(errors[0])))
    rows = rows_of(xconv_fx.last_report(), "middle")
    assert rows == ["pack", "sketch"]


_LOW_PRICE = {"noise_price": 0.03}


@pytest.mark.parametrize(
    ("middle", "dtype", "options", "expected"),
    [
        pytest.param(nn.BatchNorm2d(4), torch.float32, {}, {"4b"}, id="batch"),
        pytest.param(nn.BatchNorm2d(4), torch.bfloat16, {}, {"4b"}, id="batch-bfloat16"),
        pytest.param(nn.LayerNorm([4, 11, 13]), torch.float32, {}, {"4b"}, id="layer"),
        pytest.param(nn.GELU(), torch.float32, {}, {"4b"}, id="gelu"),
        pytest.param(nn.GELU(), torch.float32, _LOW_PRICE, {"2b", "4b"}, id="gelu-low"),
        pytest.param(nn.SiLU(), torch.bfloat16, _LOW_PRICE, {"2b", "4b"}, id="silu-bfloat16-low"),
        pytest.param(nn.BatchNorm2d(4), torch.float32, _LOW_PRICE, {"4b"}, id="batch-low"),
    ],
)
def test_what_a_price_of_noise_buys(middle, dtype, options, expected, compare, assert_unbiased):
    """4 bits; at a tenth of the default price 2 where the noise stays in one weight's gradient.

    One sketch for a norm and the convolution after it has the norm's 4 bits.
    """
    net, _ = make(middle, 2, dtype)
    # Sixteen samples: weight gradients over few positions would be given more bits.
    x = torch.randn(16, *SIZES[2][1:]).to(dtype).requires_grad_()
    comparison = compare(net, x, **options)

    rows = [row for row in comparison.report.values if not row.name.startswith("primals")]
    codecs = {row.codec for row in rows if row.decision == "sketch"}
    assert codecs == {f"quantize[{bits}]" for bits in expected}
    # The noise is so large here that a norm's bias of order 1/n is no part of what is judged.
    for name in ("before.weight", "after.weight", "input"):
        assert_unbiased(comparison.samples[name], comparison.expected_grads[name])
