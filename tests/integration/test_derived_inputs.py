"""Convolution inputs rebuilt from the sketch of the convolution output before them.

A batch norm and an activation lie between; their result is derived, linearly, from one sketch, so
that its noise reaches both the norm's gradients and the next convolution's weight. Each must be
unbiased still, and no sketch may meet itself in a product.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import passes
import xconv_fx
from xconv_fx import partition_function
from xconv_fx.rules import make_rules

# A price of noise at which sketches have 8 bits: a wrong formula shows soon.
SHARP = {"noise_price": 30.0}


def conv(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)


class Chain(nn.Module):
    """Stem, middle and a last convolution; the middle's result is the input to be derived."""

    def __init__(self, *middle: nn.Module, dims: int = 2) -> None:
        super().__init__()
        make = nn.Conv3d if dims == 3 else nn.Conv2d
        self.before = make(3, 4, 3, padding=1, bias=False)
        self.middle = nn.Sequential(*middle)
        self.after = make(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.middle(self.before(x)))


class Residual(nn.Module):
    """Two basic blocks in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.convs = nn.ModuleList([conv(4, 4) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(5)])
        self.after = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[4](self.stem(x)))
        for i in (0, 2):
            y = torch.relu(self.norms[i](self.convs[i](x)))
            x = torch.relu(self.norms[i + 1](self.convs[i + 1](y)) + x)
        return self.after(x)


class PreActivation(nn.Module):
    """Two pre-activation blocks: norm, relu, convolution, and the sum unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.convs = nn.ModuleList([conv(4, 4) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)])
        self.after = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, convolution in zip(self.norms, self.convs, strict=True):
            x = x + convolution(torch.relu(norm(x)))
        return self.after(x)


class UNet(nn.Module):
    """An encoder's features, concatenated with a decoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 4), nn.BatchNorm2d(4)
        self.down, self.down_norm = conv(4, 4), nn.BatchNorm2d(4)
        self.up = nn.Upsample(scale_factor=2)
        self.after = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.down_norm(self.down(nn.functional.max_pool2d(x, 2))))
        return self.after(torch.cat([x, self.up(y)], 1))


class Dense(nn.Module):
    """Each layer normalises all features before it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4 * (i + 1)) for i in range(3)])
        self.convs = nn.ModuleList([conv(4 * (i + 1), 4) for i in range(2)])
        self.after = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, convolution in zip(self.norms, self.convs, strict=False):
            features.append(convolution(torch.relu(norm(torch.cat(features, 1)))))
        return self.after(torch.relu(self.norms[2](torch.cat(features, 1))))


def eval_norm() -> nn.Module:
    return nn.BatchNorm2d(4).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch-relu": lambda: Chain(nn.BatchNorm2d(4), nn.ReLU()),
    "batch-relu6": lambda: Chain(nn.BatchNorm2d(4), nn.ReLU6()),
    "batch-leaky-relu": lambda: Chain(nn.BatchNorm2d(4), nn.LeakyReLU(0.2)),
    "batch-eval-relu": lambda: Chain(eval_norm(), nn.ReLU()),
    "group-relu": lambda: Chain(nn.GroupNorm(2, 4), nn.ReLU()),
    "instance-relu-3d": lambda: Chain(nn.InstanceNorm3d(4, affine=True), nn.ReLU(), dims=3),
    "residual": Residual,
    "pre-activation": PreActivation,
    "u-net": UNet,
    "dense": Dense,
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """Returns a model, its affine weights moved off 1 and 0, and an input."""
    model = MODELS[name]()
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "num_groups", getattr(module, "num_features", None)) is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    size = (2, 3, 6, 8, 8) if "3d" in name else (4, 3, 12, 16)
    return model, torch.randn(size, requires_grad=True)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_unbiased_through_derived_inputs(
    name, compare, assert_to_rounding, assert_unbiased
):
    comparison = compare(*make(name), **SHARP)
    assert comparison.report.exact is None
    assert_to_rounding(comparison.output, comparison.expected)
    for key, expected in comparison.expected_grads.items():
        # A norm's own term of order 1/n (xconv_fx.ops.derivatives.norm_input_grad): its share of
        # a gradient is Var(h) / n, with Var(h) below (range / 255)**2 / 4, some 2e-4, and n at
        # least 192.
        bound = 1e-5 * expected.norm() * torch.ones_like(expected)
        assert_unbiased(comparison.samples[key], expected, bound)


# The modules of which a value is sketched, the batch aside; all else is derived from these.
STEM_ONLY = ["before"]
SKETCHED = {
    **dict.fromkeys([name for name in MODELS if "-relu" in name], STEM_ONLY),
    # A chain ends after two: the last relu and the norm before it stand alone.
    "residual": ["(root)", "convs.0", "convs.1", "convs.2", "norms.3", "stem"],
    "pre-activation": ["(root)", "(root)", "norms.1", "stem"],
    # The pooled features are a convolution's input; the concatenation is derived.
    "u-net": ["(root)", "down", "stem"],
    # Norms whose gradients feed each other read different sketches of the same features.
    "dense": ["convs.0", "convs.1", "norms.1", "norms.2", "stem"],
}


@pytest.mark.parametrize("name", MODELS)
def test_the_report_tells_what_is_derived(name, compile_xconv):
    model, x = make(name)
    compile_xconv(model, **SHARP)(x).sum().backward()
    report = xconv_fx.last_report()
    assert report.exact_convolutions == ()
    rows = [row for row in report.values if not row.name.startswith("primals")]
    assert sorted(row.module for row in rows if row.decision == "sketch") == SKETCHED[name]
    derived = [row for row in rows if row.decision == "derive"]
    assert {row.kept_nbytes for row in derived} == {0}
    assert all(0 < row.noise < 1e-3 for row in derived)
    assert " derive " in str(report)
    if name == "u-net":
        assert "cat" in {row.name for row in derived}


class Skip(nn.Module):
    """A U-Net's joint: what was upsampled is joined to what was kept, and convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm, self.up = conv(3, 4), nn.BatchNorm2d(4), conv(4, 4)
        self.after = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.norm(self.down(x)))
        return self.after(torch.cat([skip, self.up(skip)], 1))


def test_a_derived_concatenation_is_joined_from_parts_laid_out_as_its_reader_wants(
    monkeypatch, compile_xconv
):
    outcomes = []

    def run(*args, **kwargs):
        outcomes.append(passes.run(*args, **kwargs))
        return outcomes[-1]

    def rules(options, inner, joint):
        del inner, joint
        return make_rules(options, channels_last=True)

    monkeypatch.setattr(
        partition_function, "passes", SimpleNamespace(**{**vars(passes), "run": run})
    )
    monkeypatch.setattr(partition_function, "rules_for", rules)
    compile_xconv(Skip())(torch.randn(2, 3, 16, 16)).square().sum().backward()
    (outcome,) = outcomes
    gradients = outcome.split.backward.graph.find_nodes(
        op="call_function", target=torch.ops.xconv.conv_weight_grad.default
    )
    inputs = [gradient.args[1] for gradient in gradients]
    (joined,) = [n for n in inputs if n.target is torch.ops.aten.cat.default]
    for node in (joined, *joined.args[0]):
        assert node.meta["val"].is_contiguous(memory_format=torch.channels_last)
