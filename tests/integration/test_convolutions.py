"""Every convolution of PyTorch through the whole compiled path.

Each is put behind a frozen convolution, so that its input is an activation. Outputs, input and
bias gradients must equal eager's; the weight gradient must be estimated, without bias.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import xconv_fx

pytestmark = [
    # torch itself warns of the copy that even kernels with padding="same" cost.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

# Non-square, and of no multiple of the quantiser's groups.
SIZES = {1: (2, 3, 67), 2: (2, 3, 11, 13), 3: (2, 3, 5, 6, 7)}
CONVOLUTIONS: dict[tuple[int, bool], type[nn.Module]] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


def make_input(size: tuple[int, ...]) -> Tensor:
    """Noise about 1: a mean gives weight gradients well above what sketches add to them."""
    return 1 + torch.randn(size)


@dataclass(frozen=True)
class Variant:
    """A convolution with four input channels.

    Attributes:
        dims: spatial dims.
        kwargs: the layer's arguments; five output channels and a kernel of 3 by default.
        transposed: whether it is a transposed convolution.
        batched: whether its input has a batch dim.
        channels_last: whether model and input are stored so.
        dtype: of model and input.
    """

    dims: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    transposed: bool = False
    batched: bool = True
    channels_last: bool = False
    dtype: torch.dtype = torch.float32

    def make_layer(self) -> nn.Module:
        arguments = {"in_channels": 4, "out_channels": 5, "kernel_size": 3, **self.kwargs}
        return CONVOLUTIONS[self.dims, self.transposed](**arguments)

    def make(self) -> tuple[nn.Module, Tensor]:
        model = Net(self.make_layer(), self.dims).to(self.dtype)
        size = SIZES[self.dims] if self.batched else SIZES[self.dims][1:]
        x = make_input(size).to(self.dtype)
        if self.channels_last:
            memory_format = torch.channels_last if self.dims == 2 else torch.channels_last_3d
            model, x = model.to(memory_format=memory_format), x.to(memory_format=memory_format)
        return model, x.requires_grad_()


class Net(nn.Module):
    """A convolution whose input is made by a frozen one."""

    def __init__(self, conv: nn.Module, dims: int) -> None:
        super().__init__()
        self.before = CONVOLUTIONS[dims, False](3, 4, 1).requires_grad_(False)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.before(x))


def variants_of(dims: int) -> dict[str, Variant]:
    uneven = {1: 3, 2: (3, 2), 3: (3, 1, 2)}[dims]
    plain: dict[str, dict[str, Any]] = {
        "plain": {},
        "no-bias": {"bias": False},
        "pointwise": {"kernel_size": 1},
        "stride-padding": {"stride": 2, "padding": 1},
        "stride-over-kernel": {"kernel_size": 2, "stride": 3},
        "same-even-kernel": {"kernel_size": 4, "padding": "same"},
        "valid-dilated": {"kernel_size": 2, "dilation": 2, "padding": "valid"},
        "dilated-strided-padded": {"dilation": 2, "stride": 2, "padding": 3},
        "uneven-kernel-groups": {
            "kernel_size": uneven, "padding": 1, "groups": 2, "out_channels": 6,
        },
        "depthwise": {"out_channels": 8, "groups": 4, "padding": 1},
        "circular": {"padding": 1, "padding_mode": "circular"},
        "reflect": {"padding": 1, "padding_mode": "reflect"},
        "replicate": {"padding": 1, "padding_mode": "replicate"},
        "circular-same-even": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    }  # fmt: skip
    transposed: dict[str, dict[str, Any]] = {
        "plain": {},
        "strided-groups": {
            "out_channels": 6, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2,
        },
        "dilated": {"dilation": 2, "padding": 1, "output_padding": 1},
        "depthwise-even": {"out_channels": 8, "kernel_size": 4, "stride": 3, "groups": 4},
    }  # fmt: skip
    return {
        **{f"{dims}d-{name}": Variant(dims, kwargs) for name, kwargs in plain.items()},
        f"{dims}d-unbatched": Variant(dims, {"padding": 1}, batched=False),
        **{
            f"{dims}d-transposed-{name}": Variant(dims, kwargs, transposed=True)
            for name, kwargs in transposed.items()
        },
        f"{dims}d-transposed-unbatched": Variant(
            dims, {"kernel_size": 2, "stride": 2}, transposed=True, batched=False
        ),
    }


STRIDED = {"stride": 2, "padding": 1}
VARIANTS = {
    **variants_of(1),
    **variants_of(2),
    **variants_of(3),
    **{
        f"2d-{'transposed-' if transposed else ''}{str(dtype).removeprefix('torch.')}": Variant(
            2, STRIDED, transposed=transposed, dtype=dtype
        )
        for transposed in (False, True)
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
    },
    "1d-bfloat16": Variant(1, STRIDED, dtype=torch.bfloat16),
    "1d-transposed-float16": Variant(1, STRIDED, transposed=True, dtype=torch.float16),
    "3d-float16": Variant(3, STRIDED, dtype=torch.float16),
    "3d-transposed-bfloat16": Variant(3, STRIDED, transposed=True, dtype=torch.bfloat16),
    **{
        f"{dims}d-channels-last-{name}": Variant(
            dims, kwargs, transposed=name == "transposed", channels_last=True
        )
        for dims in (2, 3)
        for name, kwargs in {
            "padded": {"padding": 1},
            "transposed": {"stride": 2},
            "depthwise": {"out_channels": 8, "groups": 4},
        }.items()
    },
}
PROBINGS = ("independent", "multichannel", "orthogonal")


def check(comparison, assert_to_rounding, assert_unbiased, weights=("conv.weight",)):
    """Everything but the given weights' gradients is exact; those are noisy and unbiased."""
    assert comparison.report.exact is None
    assert comparison.grads.keys() == comparison.expected_grads.keys()
    assert_to_rounding(comparison.output, comparison.expected)
    for name, expected in comparison.expected_grads.items():
        if name not in weights:
            assert_to_rounding(comparison.grads[name], expected)
            continue
        samples = comparison.samples[name]
        spread = (samples - samples.mean(0)).norm(dim=1).mean()
        # A sketch's noise here is a share of the gradient of 0.01 or more, far above rounding.
        assert spread > 0.002 * expected.double().norm(), "the gradient shows no sketch's noise"
        assert comparison.grads[name].dtype == expected.dtype
        assert_unbiased(samples, expected)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_convolution_differs_from_eager_in_its_weight_gradients_noise_alone(
    variant, compare, assert_to_rounding, assert_unbiased, sketched_modules
):
    comparison = compare(*variant.make(), bits=4)

    check(comparison, assert_to_rounding, assert_unbiased)
    assert comparison.report.num_sketched_convolutions == 1
    assert set(sketched_modules(comparison.report).values()) == {"quantize[4b]"}
    (frozen,) = comparison.report.exact_convolutions
    assert frozen.module == "before"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_memory_formats_are_those_of_eager(dims, transposed, compare):
    variant = Variant(dims, STRIDED, transposed=transposed, channels_last=True)
    comparison = compare(*variant.make(), num_steps=1, bits=4)

    assert comparison.output.stride() == comparison.expected.stride()
    for name, grad in comparison.expected_grads.items():
        assert comparison.grads[name].stride() == grad.stride(), name


@pytest.mark.parametrize("sketch", PROBINGS)
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(Variant(1, {"padding": 1}), id="1d"),
        pytest.param(Variant(2, {"padding": 1}), id="2d"),
        pytest.param(Variant(2, {"stride": 2}, transposed=True), id="2d-transposed"),
        pytest.param(Variant(2, {"padding": 1}, channels_last=True), id="2d-channels-last"),
        pytest.param(Variant(3, {"out_channels": 8, "groups": 4}), id="3d-depthwise"),
    ],
)
def test_the_papers_probings(
    variant, sketch, compare, assert_to_rounding, assert_unbiased, sketched_modules
):
    """Regression: with one value to sketch, and so one seed, the seed itself must be kept."""
    # Probing is noisier than quantisation: more steps for a sharp check.
    comparison = compare(*variant.make(), num_steps=150, sketch=sketch, probes=64)

    check(comparison, assert_to_rounding, assert_unbiased)
    assert comparison.report.num_sketched_convolutions == 1
    assert sketched_modules(comparison.report) == {"before": f"{sketch}[r=64]"}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(Variant(1, {"padding": 1}), id="1d"),
        pytest.param(Variant(2, {"stride": 2}, transposed=True), id="2d-transposed"),
        pytest.param(Variant(2, {"padding": 1}, channels_last=True), id="2d-channels-last"),
        pytest.param(Variant(2, {"padding": 1}, dtype=torch.bfloat16), id="2d-bfloat16"),
        pytest.param(Variant(3, {"out_channels": 8, "groups": 4}), id="3d-depthwise"),
    ],
)
def test_tiles(variant, compare, assert_to_rounding, assert_unbiased, sketched_modules):
    """None of the sizes is a multiple of the side of a tile."""
    comparison = compare(*variant.make(), num_steps=60, sketch="tile", side=2, kept=(1,))

    check(comparison, assert_to_rounding, assert_unbiased)
    assert comparison.report.num_sketched_convolutions == 1
    assert sketched_modules(comparison.report) == {"before": "tile[2,1,4b]"}


def test_rademacher_probes(compare, assert_to_rounding, assert_unbiased, sketched_modules):
    model, x = Variant(2).make()
    options = {"sketch": "independent", "probes": 64, "distribution": "rademacher"}
    comparison = compare(model, x, num_steps=150, **options)

    check(comparison, assert_to_rounding, assert_unbiased)
    assert sketched_modules(comparison.report) == {"before": "independent[r=64,rademacher]"}


class Branches(nn.Module):
    """Several convolutions of one number of dims, each of an input of its own, summed up."""

    def __init__(self, variants: list[Variant]) -> None:
        super().__init__()
        dims = variants[0].dims
        self.before = nn.ModuleList(CONVOLUTIONS[dims, False](3, 4, 1) for _ in variants)
        self.before.requires_grad_(False)
        self.conv = nn.ModuleList(variant.make_layer() for variant in variants)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.before, self.conv, strict=True)
        return torch.cat([conv(before(x)).flatten(1) for before, conv in pairs], 1)


@pytest.mark.parametrize(
    "variants",
    [
        pytest.param(
            [
                Variant(2, {"stride": 2, "padding": 1, "groups": 2, "out_channels": 6}),
                Variant(2, {"stride": 2, "output_padding": 1}, True),
                Variant(2, {"padding": 1, "padding_mode": "reflect"}),
            ],
            id="2d",
        ),
        pytest.param(
            [Variant(3, {"out_channels": 8, "groups": 4, "padding": 1}), Variant(3, STRIDED, True)],
            id="3d",
        ),
    ],
)
def test_inductor(variants, compare, assert_to_rounding, assert_unbiased):
    x = make_input(SIZES[variants[0].dims]).requires_grad_()
    comparison = compare(Branches(variants), x, inner="inductor", bits=4)

    weights = [f"conv.{i}.weight" for i in range(len(variants))]
    check(comparison, assert_to_rounding, assert_unbiased, weights)
    assert comparison.report.num_sketched_convolutions == len(variants)


def test_inductor_with_probing(compare, assert_to_rounding, assert_unbiased, sketched_modules):
    model, x = Variant(2, STRIDED).make()
    comparison = compare(
        model, x, num_steps=150, inner="inductor", sketch="multichannel", probes=64
    )

    check(comparison, assert_to_rounding, assert_unbiased)
    assert sketched_modules(comparison.report) == {"before": "multichannel[r=64]"}


class HyperNet(nn.Module):
    """A convolution whose weight is made from its own input by another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 1).requires_grad_(False)
        self.hyper = nn.Conv2d(4, 4, (9, 11), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        return F.conv2d(h, self.hyper(h).view(1, 4, 1, 1))


@pytest.mark.parametrize("options", [{"bits": 4}, {"sketch": "independent", "probes": 8}])
def test_a_sketch_that_would_meet_itself_along_a_path_is_not_made(
    options, compare, assert_to_rounding
):
    """Regression: the two uses' errors correlate, and their product is no unbiased estimate."""
    x = make_input((1, 3, 9, 11)).requires_grad_()
    comparison = compare(HyperNet(), x, num_steps=3, **options)

    report = comparison.report
    assert report.exact is None
    assert report.num_sketched_convolutions == 0
    assert not [row for row in report.values if row.decision == "sketch"]
    reasons = [row.reason for row in report.exact_convolutions if row.module != "before"]
    assert len(reasons) == 2
    for reason in reasons:
        assert "cannot be sketched: one of its uses feeds another" in reason
    for name, expected in comparison.expected_grads.items():
        assert_to_rounding(comparison.grads[name], expected)
        assert torch.equal(comparison.samples[name][0], comparison.samples[name][-1])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolution_of_an_input_that_requires_grad(
    dims, compare, assert_to_rounding, assert_unbiased
):
    """Regression: such an input is an activation, sketched where the graph begins."""
    x = make_input(SIZES[dims]).requires_grad_()
    model = nn.Sequential(CONVOLUTIONS[dims, False](3, 5, 3))
    comparison = compare(model, x, bits=4)

    check(comparison, assert_to_rounding, assert_unbiased, ["0.weight"])
    assert comparison.report.num_sketched_convolutions == 1
    (row,) = [row for row in comparison.report.values if row.decision == "sketch"]
    assert row.shape == SIZES[dims]


def test_a_convolution_of_batch_data_stays_exact(compare, assert_to_rounding):
    """The caller holds the batch anyway: nothing would be freed."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    comparison = compare(model, make_input(SIZES[2]), num_steps=1, bits=4)

    assert comparison.report.num_sketched_convolutions == 0
    assert comparison.report.kept_nbytes == 0
    (row,) = comparison.report.exact_convolutions
    assert "an input of the graph, which the caller holds anyway" in row.reason
    for name, expected in comparison.expected_grads.items():
        assert_to_rounding(comparison.grads[name], expected)


def test_two_convolutions_of_one_value_share_its_sketch(
    compare, assert_to_rounding, assert_unbiased
):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Conv2d(3, 4, 1).requires_grad_(False)
            self.left = nn.Conv2d(4, 5, 3, padding=1)
            self.right = nn.Conv2d(4, 5, (1, 3), padding="same")

        def forward(self, x: Tensor) -> Tensor:
            h = self.before(x)
            return self.left(h) + self.right(h)

    comparison = compare(Shared(), make_input(SIZES[2]).requires_grad_(), bits=4)

    check(comparison, assert_to_rounding, assert_unbiased, ["left.weight", "right.weight"])
    assert comparison.report.num_sketched_convolutions == 2
    assert [row.decision for row in comparison.report.values] == ["sketch"]


def test_one_convolution_applied_twice(compare, assert_to_rounding, assert_unbiased):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Conv2d(3, 4, 1).requires_grad_(False)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(self.before(x)))

    comparison = compare(Twice(), make_input(SIZES[2]).requires_grad_(), bits=4)

    check(comparison, assert_to_rounding, assert_unbiased)
    assert comparison.report.num_sketched_convolutions == 2
    assert xconv_fx.last_report() is comparison.report


class Tokens(nn.Module):
    """Two convolutions, between them the positions as rows, as in a codebook or a mixer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        h = self.first(x)
        rows = h.permute(0, 2, 3, 1).reshape(-1, 8).tanh()
        return self.second(rows.view(h.shape[0], *h.shape[2:], 8).permute(0, 3, 1, 2)).flatten(1)


def test_a_gradient_laid_out_otherwise_than_torchs_own_can_still_be_viewed(compile_xconv):
    x = torch.randn(2, 3, 12, 12)
    net = Tokens()
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    compile_xconv(net, inner="aot_eager", exact_modules="*")(x).square().sum().backward()
    for parameter, exact in zip(net.parameters(), expected, strict=True):
        # The same products, summed in another order.
        assert torch.allclose(parameter.grad, exact, rtol=1e-4, atol=1e-4)
