"""Regions that the user keeps exact: by a context manager, and by patterns of module paths."""

import copy

import pytest
import torch
from torch import nn
from torch.fx import traceback
from torch.utils.checkpoint import checkpoint

import xconv_fx
from xconv_fx.audit import clear_reports, last_report
from xconv_fx.backend import xconv
from xconv_fx.rules.regions import KeepExact, matches

# At this price no noise is worth its bytes: everything the backward reads is exact.
NO_NOISE = 1e9


@pytest.fixture(autouse=True)
def _no_reports_of_other_tests():
    clear_reports()


def conv(channels, out_channels):
    return nn.Conv2d(channels, out_channels, 3, padding=1)


class Blocks(nn.Module):
    """A stem, a block that may be a region (norm, gelu, convolution), and a head."""

    def __init__(self, region=None):
        super().__init__()
        self.region = region
        self.stem = conv(3, 8)
        self.neck = nn.Sequential(nn.BatchNorm2d(8), nn.GELU(), conv(8, 8))
        self.mid = nn.Sequential(nn.ReLU(), conv(8, 8))
        self.head = conv(8, 8)

    def forward(self, x):
        x = self.stem(x)
        x = self.neck(x) if self.region is None else self.region(self.neck, x)
        # A sum, for the gradient of a square reads its factor, and from a sketch.
        return self.head(self.mid(x)).sum()


def plainly(module, x):
    with xconv_fx.exact():
        return module(x)


def nested(module, x):
    with xconv_fx.exact():
        with xconv_fx.exact():
            x = module[0](x)
        return module[1:](x)


@xconv_fx.exact()
def decorated(module, x):
    return module(x)


def inside_a_checkpoint(module, x):
    return checkpoint(plainly, module, x, use_reentrant=False)


def around_a_checkpoint(module, x):
    with xconv_fx.exact():
        return checkpoint(module, x, use_reentrant=False)


REGIONS = (plainly, nested, decorated, inside_a_checkpoint, around_a_checkpoint)


def gradients(model, x, **options):
    """One step compiled without graph breaks; the gradients by parameter name."""
    model = copy.deepcopy(model)
    options = {"inner": "aot_eager", **options}
    torch.compile(model, backend=xconv, options=options, fullgraph=True)(x).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def sketched(report):
    return {row.module for row in report.values if row.decision == "sketch"}


def reasons(report):
    return {row.module: row.reason for row in report.exact_convolutions}


def check_neck_alone_is_exact(model, **options):
    """Gradients of the neck as without noise, to the bit; of the others not."""
    x = torch.randn(2, 3, 16, 16)
    with_noise = gradients(model, x, bits=2, **options)
    report = last_report()
    without = gradients(model, x, noise_price=NO_NOISE)
    assert last_report().num_sketched_convolutions == 0
    equal = {name for name in without if torch.equal(with_noise[name], without[name])}
    assert {name for name in equal if name.startswith("neck.")} == {
        name for name in without if name.startswith("neck.")
    }
    # Its input is sketched, while the gradient that flows through it stays exact.
    assert "head.weight" not in equal
    assert report.num_sketched_convolutions >= 1
    assert not sketched(report) & {"neck.0", "neck.1"}
    return report


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_is_exact_and_the_rest_sketched(region):
    report = check_neck_alone_is_exact(Blocks(region))
    assert reasons(report)["neck.2"] == "the user asked for it: inside xconv_fx.exact()"


@pytest.mark.parametrize("patterns", ["neck", ["neck.*"], ("nothing", "n?ck.[0-9]")])
def test_modules_named_by_a_pattern_are_exact_and_the_rest_sketched(patterns):
    report = check_neck_alone_is_exact(Blocks(), exact_modules=patterns)
    assert reasons(report)["neck.2"].startswith("the user asked for it: exact_modules='n")


def test_a_region_that_is_the_whole_model_equals_eager():
    class Whole(Blocks):
        def forward(self, x):
            with xconv_fx.exact():
                return super().forward(x)

    model, x = Whole(), torch.randn(2, 3, 16, 16)
    got = gradients(model, x, bits=1)
    model(x).backward()
    # Sums of up to 512 products in float32, added up in another order; a bias before a norm has
    # a gradient of rounding errors alone, so the largest of all gradients is the measure.
    scale = max(p.grad.abs().max().item() for p in model.parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=0, atol=1e-5 * scale)
    assert last_report().num_sketched_convolutions == 0
    assert {row.decision for row in last_report().values} <= {"keep", "pack"}


def test_masks_of_a_region_are_still_packed():
    class Masked(Blocks):
        def forward(self, x):
            with xconv_fx.exact():
                return self.mid(self.stem(x)).sum()

    gradients(Masked(), torch.randn(2, 3, 16, 16))
    decisions = {row.decision for row in last_report().values}
    assert "sketch" not in decisions
    gradients(Masked(), torch.randn(2, 3, 16, 16), exact_modules="mid.1")
    assert last_report().num_sketched_convolutions == 0


def test_a_value_derived_from_a_sketch_does_not_serve_a_region():
    """Outside, the input of ``mid.1`` is made from the sketch of the norm and the relu's mask."""

    class Derived(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = conv(3, 8)
            self.mid = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8))

        def forward(self, x):
            return self.mid(self.stem(x)).sum()

    model, x = Derived(), torch.randn(2, 3, 16, 16)
    gradients(model, x, bits=2)
    assert last_report().num_sketched_convolutions == 1
    got = gradients(model, x, bits=2, exact_modules="mid.2")
    assert last_report().num_sketched_convolutions == 0
    expected = gradients(model, x, noise_price=NO_NOISE)
    assert torch.equal(got["mid.2.weight"], expected["mid.2.weight"])


class TestHarmless:
    """Nothing happens where there is nothing to keep exact."""

    def test_in_eager_mode(self):
        before = dict(traceback.get_current_meta())
        with xconv_fx.exact():
            assert traceback.get_current_meta() == before
        assert traceback.get_current_meta() == before

    def test_an_error_inside_passes_through(self):
        with pytest.raises(KeyError, match="mine"), xconv_fx.exact():
            raise KeyError("mine")

    def test_under_another_backend(self):
        model, x = Blocks(plainly), torch.randn(2, 3, 8, 8)
        expected = model(x)
        got = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(got, expected)
        assert last_report() is None

    def test_compiling_leaves_no_annotation_behind(self):
        before = dict(traceback.get_current_meta())
        gradients(Blocks(plainly), torch.randn(2, 3, 8, 8))
        assert traceback.get_current_meta() == before


class TestPatterns:
    """Paths as the audit shows them."""

    @pytest.mark.parametrize(
        ("pattern", "path", "expected"),
        [
            ("layer1", "layer1", True),
            ("layer1", "layer1.0.conv1", True),
            ("layer1", "layer10", False),
            ("layer?", "layer1.0", True),
            ("*.conv1", "layer1.0.conv1", True),
            ("*.conv1", "layer1.0.conv2", False),
            ("*.0", "layer1.0.conv1", True),
            ("Layer1", "layer1", False),
            ("*", "(root)", True),
            ("(root)", "layer1", False),
        ],
    )
    def test_a_pattern_takes_a_module_and_what_is_in_it(self, pattern, path, expected):
        assert matches(pattern, path) is expected

    def test_a_pattern_without_a_module_is_noted(self):
        gradients(Blocks(), torch.randn(2, 3, 8, 8), exact_modules=["neck", "tail*"])
        assert last_report().notes == (
            "exact_modules='tail*' matches no module of this graph, which has (root), head, "
            "mid.0, mid.1, neck.0, neck.1, neck.2, stem",
        )

    def test_a_note_lists_a_few_modules(self):
        model = nn.Sequential(*(conv(3, 3) for _ in range(10)))
        out = torch.compile(
            model, backend=xconv, options={"inner": "aot_eager", "exact_modules": "x"}
        )(torch.randn(1, 3, 8, 8))
        out.sum().backward()
        (note,) = last_report().notes
        assert note.endswith(", 7 and 2 more")

    def test_nodes_without_provenance_are_not_asked_for(self):
        node = torch.fx.Graph().placeholder("x")
        assert KeepExact()(node) is None
        assert KeepExact(("layer1",))(node) is None
