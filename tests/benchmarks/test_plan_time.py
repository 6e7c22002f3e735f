import dataclasses
import io
import json
import time

import click.testing
import pytest
import torch
from rich.console import Console

import xconv_fx._torch
from benchmarks import plan_time
from benchmarks.plan_time import DISCARDED, OTHER, PARTS, PASSES, PlanTime, Stopwatch
from xconv_fx.partition_function import PartitionFunction

ROW = PlanTime(
    model="cifar_net",
    input_shape=(4, 3, 32, 32),
    budget="none",
    inductor_s=40.0,
    stock_s=0.5,
    passes_s={**dict.fromkeys(PASSES, 0.25), OTHER: 2.0, DISCARDED: 1.0},
    num_plans=1,
)


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture
def no_trace(monkeypatch):
    """With torch's trace on the report is written, which partitions once more."""
    monkeypatch.setattr(xconv_fx._torch, "emit_artifact", lambda *_: None)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))
    return model, (torch.randn(2, 2, 8, 8),)


def test_planning_is_what_torch_does_not_do_and_the_share_is_of_inductors_compilation():
    assert ROW.planning_s == len(PASSES) * 0.25 + 2.0 + 1.0 - 0.5
    assert ROW.share == ROW.planning_s / 40.0


def test_time_is_charged_to_the_innermost_function(clock):
    watch = Stopwatch()
    inner = watch.timed("inner", lambda: clock.spend(2.0))

    def outer():
        clock.spend(1.0)
        inner()
        clock.spend(4.0)
        inner()

    watch.timed("outer", outer)()
    clock.spend(8.0)
    assert watch.own_s == {"outer": 5.0, "inner": 4.0}
    assert watch.calls == {"outer": 1, "inner": 2}


def test_the_time_of_a_function_that_raises_is_charged_too(clock):
    watch = Stopwatch()

    def fails():
        clock.spend(3.0)
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        watch.timed("fails", fails)()
    clock.spend(8.0)
    watch.timed("next", lambda: clock.spend(1.0))()
    assert watch.own_s == {"fails": 3.0, "next": 1.0}


@pytest.mark.usefixtures("no_trace")
def test_every_pass_is_accounted_for(small):
    call = PartitionFunction.__call__
    watch, report = plan_time.planning(*small, None)
    charged = {part for part in PARTS if watch.own_s.get(part)}
    assert charged == {*PASSES, OTHER} - {"exact", "memory", "forecast"}
    assert watch.calls["sketch"] == watch.calls["partition"] == watch.calls["lower"] == 1
    assert report.predicted_peak_nbytes
    assert PartitionFunction.__call__ is call


@pytest.mark.usefixtures("no_trace")
def test_a_share_partitions_exactly_and_a_budget_in_bytes_tries_plans(small):
    share, _ = plan_time.planning(*small, 0.5)
    assert share.calls["exact"] == 1
    searched, report = plan_time.planning(*small, 1)  # out of reach
    # A prediction a plan, and the two schedules of what is compiled in the end.
    assert searched.calls["sketch"] == searched.calls["memory"] - 2 >= 2
    assert report.predicted_peak_nbytes > 1
    assert not searched.own_s[DISCARDED]


@pytest.mark.usefixtures("no_trace")
def test_a_budget_in_bytes_is_seen_to_be_kept_in_the_compilation_itself(small):
    model, inputs = small
    watch, report = plan_time.planning(model, inputs, 2**30)
    assert watch.calls["sketch"] == watch.calls["forecast"] == 1
    assert watch.calls["memory"] == 3  # two schedules, and the prediction made of them
    assert report.predicted_peak_nbytes
    assert not watch.own_s[DISCARDED]


@pytest.mark.usefixtures("no_trace")
def test_a_compilation_that_is_given_up_is_charged_as_a_whole(small, monkeypatch):
    holds = iter([False, True])
    monkeypatch.setattr(PartitionFunction, "holds_budget", lambda _self: next(holds, True))
    watch, _ = plan_time.planning(*small, 2**30)
    assert watch.own_s[DISCARDED] > 0


def test_a_model_that_cannot_be_planned_is_an_error(small):
    model, _ = small
    with pytest.raises(RuntimeError, match="nothing was planned for Linear: no convolution"):
        plan_time.planning(torch.nn.Linear(2, 2), (torch.randn(3, 2),), None)
    with torch.no_grad(), pytest.raises(RuntimeError, match="it never reached the partitioner"):
        plan_time.planning(model, (torch.randn(2, 2, 8, 8),), None)


def test_a_model_has_a_row_for_each_kind_of_budget(monkeypatch):
    monkeypatch.setattr(plan_time, "inductor_time", lambda *_: (50.0, 0.125))
    rows = plan_time.plan_times("mnist_net", 2)
    budgets = [row.budget for row in rows]
    assert budgets[:2] == ["none", "share 0.1"]
    assert budgets[2].endswith(" MB")
    for row in rows:
        assert list(row.passes_s) == list(PARTS)
        assert row.input_shape == (2, 1, 28, 28)
        assert row.planning_s == pytest.approx(sum(row.passes_s.values()) - 0.125)


def test_inductor_is_timed_with_its_own_partitioner(small):
    inductor_s, stock_s = plan_time.inductor_time(*small)
    assert 0 < stock_s < inductor_s


def test_the_table_gives_seconds_and_the_share():
    out = io.StringIO()
    Console(file=out, width=200).print(plan_time.results_table([ROW]))
    text = out.getvalue()
    for heading in (*PARTS, "stock", "planning", "inductor", "share"):
        assert heading in text
    assert f"{ROW.share:.1%}" in text


def run(monkeypatch, *arguments):
    asked = []

    def plan_times(name, batch_size=None, size=None):
        asked.append((name, batch_size, size))
        return [dataclasses.replace(ROW, model=name)]

    monkeypatch.setattr(plan_time, "plan_times", plan_times)
    return click.testing.CliRunner().invoke(plan_time.main, arguments), asked


def test_the_command_writes_rows_as_json(monkeypatch, tmp_path):
    path = tmp_path / "rows.json"
    arguments = ("--model", "vgg11", "--model", "unet2d", "--batch-size", "2", "--json", str(path))
    result, asked = run(monkeypatch, *arguments)
    assert result.exit_code == 0, result.output
    assert asked[1:] == [("vgg11", 2, None), ("unet2d", 2, None)]
    rows = json.loads(path.read_text())
    assert [row["model"] for row in rows] == ["vgg11", "unet2d"]
    assert rows[0]["share"] == ROW.share
    assert rows[0]["passes_s"][OTHER] == 2.0


def test_by_default_the_command_measures_the_three_models_of_the_promise(monkeypatch):
    result, asked = run(monkeypatch)
    assert result.exit_code == 0, result.output
    assert [name for name, *_ in asked[1:]] == ["resnet50", "densenet121", "unet3d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "resnet51"), "'resnet51' is not one of 'mnist_net'"),
        (("--batch-size", "0"), "0 is not in the range x>=1"),
        (("--size", "0"), "0 is not in the range x>=1"),
    ],
)
def test_the_command_rejects_what_it_cannot_measure(monkeypatch, arguments, message):
    result, asked = run(monkeypatch, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not asked
