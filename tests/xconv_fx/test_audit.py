"""What the report of a compiled graph says, and how reports come and go."""

import dataclasses
import inspect
import logging
import re

import pytest
import torch
from torch import fx, nn
from torch._dynamo import config as dynamo_config  # noqa: TID251
from torch._subclasses.fake_tensor import FakeTensorMode

import passes
from passes.liveness import MemoryEstimate, Peak
from xconv_fx import audit
from xconv_fx.audit import all_reports, clear_reports, last_report
from xconv_fx.backend import xconv

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _no_reports_of_other_tests():
    clear_reports()


def conv(channels, out_channels, size=3):
    return nn.Conv2d(channels, out_channels, size, padding=size // 2)


class Two(nn.Module):
    """A stem that reads the caller's data, and a second convolution of its activation."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.body = nn.Sequential(nn.ReLU(), conv(8, 8))

    def forward(self, x):
        return self.body(self.stem(x)).sum()


def compiled(model, **options):
    return torch.compile(model, backend=xconv, options={"inner": "aot_eager", **options})


def report_of(model, *inputs, **options):
    """Compile a model, take one step, and return its report."""
    compiled(model, **options)(*(inputs or (torch.randn(2, 3, 8, 8),))).backward()
    return last_report()


def reasons(report):
    return {row.module: row.reason for row in report.exact_convolutions}


@pytest.fixture(scope="module")
def report():
    """The report of ``Two`` at two bits; read only."""
    return report_of(Two(), bits=2)


class TestRows:
    """One row for each value kept, with where it comes from and what became of it."""

    def test_a_sketched_input_and_a_packed_mask(self, report):
        rows = {row.decision: row for row in report.values}
        assert len(report.values) == len(rows) == 2
        sketch, mask = rows["sketch"], rows["pack"]
        assert (sketch.shape, sketch.dtype) == ((2, 8, 8, 8), torch.float32)
        assert (sketch.codec, sketch.nbytes) == ("quantize[2b]", 4096)
        # 1,024 elements at 2 bits, and two float32 of range for each channel: groups of 128
        assert sketch.kept_nbytes == 1024 // 4 + 8 * 8
        assert 0.1 < sketch.noise < 1.0
        assert (mask.shape, mask.dtype) == ((2, 8, 8, 8), torch.bool)
        assert (mask.nbytes, mask.kept_nbytes, mask.noise) == (1024, 128, 0.0)

    def test_modules_are_named_as_in_named_modules(self, report):
        assert {row.module for row in report.values} == {"body.0"}
        assert list(reasons(report)) == ["stem"]
        names = dict(Two().named_modules())
        assert {"body.0", "stem"} <= set(names)

    def test_sources_are_lines_of_the_model(self, report):
        lines, first = inspect.getsourcelines(Two.forward)
        expected = f"{__file__}:{first + 1}: {lines[1].strip()}"
        rows = (*report.values, *report.exact_convolutions)
        assert {row.source for row in rows} == {expected}

    def test_totals(self, report):
        assert sum(row.kept_nbytes for row in report.values) == 320 + 128
        # and the one sketch's row of the key schedule, 40 int32
        assert report.kept_nbytes == 320 + 128 + 160
        assert report.num_sketched_convolutions == 1
        assert len(report.exact_convolutions) == 1
        # the stock partition keeps the result of relu, which gives the mask too
        assert report.stock_nbytes == 4096
        assert report.ratio == report.kept_nbytes / 4096
        assert report.exact is None
        assert report.notes == ()

    def test_the_stock_partition_under_torchs_own_budget(self, report):
        assert report.stock_nbytes_at(1.0) == report.stock_nbytes
        assert report.stock_nbytes_at(0.0) == 0
        assert report.stock_nbytes_at(1.0) == report.stock_nbytes

    def test_the_stock_partition_is_counted_once_and_when_asked_for(self, report):
        calls = []

        def count_stock():
            calls.append(None)
            return report._count_stock()

        fresh = dataclasses.replace(report, _count_stock=count_stock)
        assert calls == []
        assert [fresh.stock_nbytes, fresh.stock_nbytes] == [4096, 4096]
        assert len(calls) == 1

    def test_the_text_has_rows_reasons_and_totals(self, report):
        text = str(report)
        for row in report.values:
            cells = next(line for line in text.splitlines() if f" {row.name} " in line)
            shape = "x".join(map(str, row.shape))
            for cell in (row.module, "test_audit.py:", shape, row.decision, row.codec):
                assert cell in cells
            assert f"{row.nbytes / 1024:.2f} KiB" in cells
            assert f"{row.kept_nbytes / 1024:.2f} KiB" in cells
        (exact,) = report.exact_convolutions
        assert f" {exact.name} " in text
        assert exact.reason in text
        assert "kept for backward: 0.59 KiB, stock partition 4.00 KiB, ratio 0.148" in text
        assert "convolutions: 1 sketched, 1 exact" in text
        assert "values recomputed: " in text
        assert "compiled exactly" not in text

    def test_large_sizes_are_told_in_mebibytes(self):
        report = audit.Report((), (), 0, 3 * 2**20, 0, ("a remark",), None, lambda: None)
        report.__dict__["stock_nbytes"] = 6 * 2**20
        assert report.summary() == [
            "kept for backward: 3.00 MiB, stock partition 6.00 MiB, ratio 0.500",
            "convolutions: 0 sketched, 0 exact",
            "values recomputed: 0, about 0.0% of the time of a step",
            "note: a remark",
        ]

    def test_the_predicted_memory_is_a_line_of_the_totals(self):
        peak = Peak("backward", "mm_1", "head", 0, ())
        memory = MemoryEstimate(2**20, 2**20, 2**20, 3 * 2**20, 0, peak, ("u",))
        report = audit.Report(
            (), (), 0, 0, 0, (), None, lambda: None, _predict_memory=lambda: memory
        )
        report.__dict__["stock_nbytes"] = 0
        assert report.predicted_peak_nbytes == 3 * 2**20
        assert report.summary()[3] == (
            "predicted step: live after forward 1.00 MiB, peak 3.00 MiB in the backward at mm_1 "
            "(head); without 1 values of unknown size"
        )

    def test_a_compiled_graph_has_a_prediction(self):
        report = report_of(conv_sum(conv(3, 4)))
        assert report.memory.peak_nbytes >= report.memory.live_after_forward_nbytes > 0


class TestReasons:
    """Why each kind of convolution keeps its exact weight gradient."""

    def test_data_of_the_caller(self):
        report = report_of(conv_sum(conv(3, 4)))
        assert report.num_sketched_convolutions == 0
        (row,) = report.exact_convolutions
        assert row.reason.startswith("its input primals_")
        assert row.reason.endswith("is an input of the graph, which the caller holds anyway")
        assert row.dtype == torch.float32

    def test_a_frozen_weight(self):
        model = Two()
        model.body[1].weight.requires_grad_(False)
        report = report_of(model)
        assert reasons(report)["body.1"] == "its weight needs no gradient: nothing is kept for it"
        assert report.num_sketched_convolutions == 0

    def test_a_value_too_small_for_a_sketch(self):
        report = report_of(Two(), torch.randn(1, 3, 1, 1))
        assert reasons(report)["body.1"].endswith(
            "cannot be sketched: a sketch of 66 bytes is no smaller than the value's 32 bytes"
        )

    def test_a_value_that_the_codec_refuses(self):
        report = report_of(Two(), sketch="independent", probes=100)
        assert (
            "cannot be sketched: a probing count larger than makes sense"
            in reasons(report)["body.1"]
        )

    def test_a_value_that_is_rebuilt_from_what_is_kept(self):
        class Model(Two):
            def forward(self, x):
                y = self.stem(x)
                return (self.body(y) * y.atan()).sum()

        reason = reasons(report_of(Model()))["body.1"]
        assert reason == "its input relu is rebuilt exactly in the backward, from convolution"

    def test_a_value_whose_exact_values_the_backward_needs(self):
        class Model(Two):
            def forward(self, x):
                y = self.stem(x)
                return (self.body[1](y) + y.log()).sum()

        reason = reasons(report_of(Model()))["body.1"]
        assert re.fullmatch(
            r"its input convolution is kept because the backward needs its values \(div\)",
            reason,
        )

    def test_a_value_that_others_are_rebuilt_from(self):
        class Model(Two):
            def forward(self, x):
                y = self.stem(x)
                z = y + 1
                return (self.body[1](y) + z.atan() + (y - 1).atan()).sum()

        assert reasons(report_of(Model()))["body.1"] == (
            "its input convolution is kept: exact recomputation or a cheaper cut needs it"
        )

    @dynamo_config.patch(capture_dynamic_output_shape_ops=True)
    def test_a_value_of_unknown_size(self):
        class Model(Two):
            def forward(self, x, chosen):
                y = self.stem(x)[torch.nonzero(chosen).squeeze(1)]
                return self.body[1](y).sum()

        report = report_of(Model(), torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
        assert "its size is unknown at compile time" in reasons(report)["body.1"]
        assert "index" in [row.name for row in report.values]

    def test_an_input_that_is_a_gradient_itself(self):
        mode = FakeTensorMode()
        graph = fx.Graph()
        vals = {"primals_1": (4, 3, 3, 3), "tangents_1": (2, 4, 8, 8), "tangents_2": (2, 3, 8, 8)}
        weight, grad, x = (graph.placeholder(name) for name in vals)
        with mode:
            for node, size in zip((weight, grad, x), vals.values(), strict=True):
                node.meta["val"] = torch.empty(size)
        geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        target = torch.ops.xconv.conv_weight_grad.default
        gradient = graph.call_function(target, (grad, x, weight, *geometry))
        gradient.meta["val"] = weight.meta["val"]
        graph.output([weight, gradient])
        joint = passes.JointGraph(fx.GraphModule({}, graph), 1, (0,))
        rules = passes.Rules(linear={target: (passes.LinearUse(1),)}, audited=frozenset({target}))
        outcome = passes.run(joint, rules, passes.at_price(0.0), None)
        report = audit.make_report(outcome, rules, lambda: 0, lambda: None)
        (row,) = report.exact_convolutions
        assert row.reason == "its input depends on the gradient itself"
        assert (report.num_sketched_convolutions, row.module, row.source) == (
            0, "unknown", "unknown",
        )  # fmt: skip


def conv_sum(module):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = module

        def forward(self, x):
            return self.conv(x).sum()

    return Model()


class TestExact:
    """Graphs that are compiled as torch would."""

    def test_without_a_convolution(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(8, 8)

            def forward(self, x):
                return self.linear(x).relu().sum()

        report = report_of(Model(), torch.randn(2, 8))
        assert report.exact == "no convolution in this graph"
        assert (report.values, report.exact_convolutions) == ((), ())
        assert report.ratio == 1.0
        assert "compiled exactly: no convolution in this graph" in str(report)

    def test_where_a_pass_fails_the_step_is_exact_and_the_report_says_why(self, monkeypatch):
        def fail(*args, **kwargs):
            del args, kwargs
            raise ValueError("boom")

        monkeypatch.setattr(passes, "run", fail)
        model, x = Two(), torch.randn(2, 3, 8, 8)
        report = report_of(model, x)
        got = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        model(x).backward()
        for grad, parameter in zip(got, model.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad)
        assert report.exact == "ValueError: boom"
        assert report.kept_nbytes == report.stock_nbytes == 4096

    def test_a_note_where_no_weight_is_trained(self):
        model = conv_sum(conv(3, 4).requires_grad_(False))
        report = report_of(model, torch.randn(2, 3, 8, 8, requires_grad=True))
        assert report.notes == ("no convolution weight gradient in this graph",)
        assert "note: no convolution weight gradient in this graph" in str(report)


class TestReports:
    """Reports of all graphs since the last reset."""

    def test_one_for_each_graph_in_order(self):
        assert last_report() is None
        assert all_reports() == ()
        first = report_of(conv_sum(conv(3, 4)))
        second = report_of(Two())
        assert all_reports() == (first, second)
        assert last_report() is second

    def test_a_second_step_compiles_nothing(self):
        model = compiled(Two())
        for _ in range(2):
            model(torch.randn(2, 3, 8, 8)).backward()
        assert len(all_reports()) == 1

    def test_a_reset_of_the_compiler_forgets_them(self):
        report_of(Two())
        assert len(all_reports()) == 1
        torch.compiler.reset()
        assert all_reports() == ()
        assert last_report() is None

    def test_old_ones_make_room(self):
        report = audit.Report((), (), 0, 0, 0, (), None, lambda: None)
        for _ in range(audit._MAX_REPORTS + 3):
            audit.publish(report)
        assert len(all_reports()) == audit._MAX_REPORTS

    def test_they_are_logged(self, caplog):
        with caplog.at_level(logging.INFO, logger="xconv_fx"):
            report = report_of(Two())
        assert f"{len(report.values)} values kept, {report.kept_nbytes} bytes" in caplog.messages
        assert "kept for backward" not in caplog.text
        with caplog.at_level(logging.DEBUG, logger="xconv_fx"):
            audit.publish(report)
        assert str(report) in caplog.text


def test_a_prediction_that_fails_leaves_the_sketches(monkeypatch, caplog):
    def fail(*args, **kwargs):
        del args, kwargs
        raise RuntimeError("a call the model of memory does not know")

    monkeypatch.setattr("xconv_fx.partition_function.predict_step_memory", fail)
    report = report_of(Two())
    assert report.exact is None
    assert report.num_sketched_convolutions == 1
    assert report.memory is None
    assert "the memory of this graph could not be predicted" in caplog.text
