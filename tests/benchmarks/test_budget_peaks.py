import dataclasses
import io
import json

import click.testing
import pytest
from rich.console import Console

import xconv_fx
from benchmarks import budget_peaks
from benchmarks.budget_peaks import BudgetedStep, violations

STEP = BudgetedStep("a", "aot_eager", "bytes", 0.9, 90, True, 10, 85, 88)


def test_a_budget_in_bytes_holds_and_a_smaller_one_gives_no_larger_peak():
    rows = budget_peaks.budgeted_steps("mnist_net", "aot_eager", (1.0, 0.2), (1.0, 0.9))
    assert [(row.kind, row.budget) for row in rows] == [
        ("share", 1.0), ("share", 0.2), ("bytes", 1.0), ("bytes", 0.9),
    ]  # fmt: skip
    exact, share, whole, less = rows
    assert exact.budget_nbytes is None
    assert share.kept_nbytes < exact.kept_nbytes
    assert less.budget_nbytes == int(0.9 * exact.measured_nbytes)
    assert whole.is_reached
    assert not violations(rows[2:])


def test_what_did_not_hold_is_said():
    over = dataclasses.replace(STEP, measured_nbytes=99)
    (text,) = violations([over])
    assert text == "a aot_eager: 99 bytes exceed 90 (+10.00%)"
    assert not violations([dataclasses.replace(over, is_reached=False)])


def test_a_peak_that_rises_is_said():
    smaller = dataclasses.replace(STEP, budget=0.8, budget_nbytes=110, measured_nbytes=99)
    (text,) = violations([STEP, smaller])
    assert text == "a aot_eager: the peak rises from bytes 0.9 to 0.8 (+12.50%)"
    # By default a budget out of reach is an error.
    assert not violations([STEP, dataclasses.replace(smaller, is_reached=False)])
    # Another model, compiler or kind of budget has peaks of its own.
    assert not violations([STEP, dataclasses.replace(smaller, inner="inductor")])


@pytest.mark.parametrize(("risen", "count"), [(900, 0), (1100, 1)])
def test_a_rise_by_seeds_is_none(risen, count):
    before, after = (
        dataclasses.replace(STEP, kind="share", budget_nbytes=None, measured_nbytes=nbytes)
        for nbytes in (10**6, 10**6 + risen)
    )
    assert len(violations([before, after])) == count


def test_several_graphs_are_an_error(monkeypatch):
    report = xconv_fx.last_report
    monkeypatch.setattr(xconv_fx, "all_reports", lambda: (report(), report()))
    with pytest.raises(RuntimeError, match="mnist_net: expected one planned graph, got 2 graphs"):
        budget_peaks.budgeted_steps("mnist_net", "aot_eager", (1.0,), ())


def test_the_table_marks_what_is_out_of_reach():
    exact = dataclasses.replace(STEP, kind="share", budget=1.0, measured_nbytes=100)
    out = io.StringIO()
    rows = [exact, STEP, dataclasses.replace(STEP, budget=0.5, is_reached=False)]
    Console(file=out, width=140).print(budget_peaks.results_table(rows))
    assert "share 1: 1.000" in out.getvalue()
    assert "bytes 0.9: 0.880, 0.5: 0.880*" in out.getvalue()


def test_the_command_writes_what_it_measured(monkeypatch, tmp_path):
    row = dataclasses.replace(STEP, kind="share", budget_nbytes=None)
    asked = []

    def measure(*given):
        asked.append(given)
        return [row]

    monkeypatch.setattr(budget_peaks, "budgeted_steps", measure)
    path = tmp_path / "rows.json"
    budgets = ["--share", "1", "--share", "0.5", "--peak-share", "0.9"]
    args = ["a", "--inner", "aot_eager", *budgets, "--json", str(path)]
    result = click.testing.CliRunner().invoke(budget_peaks.main, args, catch_exceptions=False)
    assert result.exit_code == 0
    assert asked == [("a", "aot_eager", (1.0, 0.5), (0.9,))]
    assert "1 steps, 0 violations" in result.output
    assert json.loads(path.read_text()) == [dataclasses.asdict(row)]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ["--share", "0.5"],
            "for --share: expected 1 first, the exact plan, got 0.5",
        ),
        (
            ["--peak-share", "0.6", "--peak-share", "0.8"],
            "for --peak-share: expected falling numbers, got 0.6, 0.8",
        ),
        (["--share", "1", "--share", "1"], "for --share: expected falling numbers, got 1, 1"),
        (["--peak-share", "nan"], "for --peak-share: expected falling numbers, got nan"),
    ],
)
def test_budgets_that_do_not_fall_are_an_error(args, text):
    result = click.testing.CliRunner().invoke(budget_peaks.main, ["mnist_net", *args])
    assert result.exit_code == 2
    assert text in result.output
