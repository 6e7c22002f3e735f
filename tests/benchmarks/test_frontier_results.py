import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.frontier_results import (
    Figures,
    ModelResult,
    Row,
    beaten_recomputations,
    dominated,
    load_results,
    rivals_over,
    save_results,
)


def row(
    way: str, family: str, peak: int, time: float, noise: float = 0.0, convolutions: int = 4
) -> Row:
    exact = family in ("stock", "budget")
    figures = Figures(peak, peak, time * 1e3, time, noise, noise, noise, convolutions)
    return Row(way, family, "a way", exact, figures)


BASE = row("inductor", "stock", 100, 1.0)
FAILED = Row("fp8", "fp8", "a way", False, None, "RuntimeError: no such kernel")


def result(model: str, *rows: Row) -> ModelResult:
    return ModelResult(model, (2, 3, 8, 8), 40, 0.5, 1e-3, {"torch": "2"}, {"num_steps": 1}, rows)


def test_a_way_is_dominated_by_one_no_worse_in_any_and_better_in_one() -> None:
    rows = [
        BASE,
        row("slower", "budget", 100, 1.5),
        row("smaller", "budget", 60, 1.2),
        row("noisy", "xconv", 50, 1.1, 0.1),
        row("noisier", "paper", 50, 1.1, 0.2),
    ]

    assert dominated(rows) == {"slower": ("inductor", "smaller"), "noisier": ("noisy",)}


def test_equal_ways_do_not_dominate_each_other() -> None:
    assert dominated([BASE, dataclasses.replace(BASE, way="twin")]) == {}


def test_the_rounding_of_exact_ways_counts_as_no_noise_and_that_of_others_does() -> None:
    rows = [
        row("a", "stock", 100, 1.0, 7e-3),
        row("b", "budget", 100, 1.0, 1e-7),
        row("c", "xconv", 100, 1.0, 4e-3),
    ]

    assert dominated(rows) == {"c": ("a", "b")}


def test_a_way_that_failed_takes_no_part() -> None:
    assert dominated([FAILED, BASE]) == {}


def test_rivals_are_of_other_families() -> None:
    rows = [
        row("xconv", "xconv", 50, 1.2, 0.2),
        row("xconv-0.1", "xconv", 40, 1.1, 0.1),
        row("fp8", "fp8", 45, 1.1, 0.1),
    ]

    assert dominated(rows)["xconv"] == ("xconv-0.1", "fp8")
    assert rivals_over(rows) == {"xconv": ("fp8",)}
    assert rivals_over(rows[:2]) == {}


def test_the_target_is_to_beat_each_budget_that_computes_a_convolution_again() -> None:
    rows = [
        BASE,
        row("budget-0.7", "budget", 80, 1.01),
        row("budget-0.5", "budget", 60, 1.2, convolutions=5),
        row("budget-0.1", "budget", 30, 1.6, convolutions=7),
        row("xconv", "xconv", 60, 1.1, 0.2),
        row("too noisy", "xconv", 20, 1.1, 0.25),
        row("too slow", "xconv", 30, 1.6, 0.1),
    ]

    assert beaten_recomputations(rows, "inductor") == {"budget-0.5": ("xconv",), "budget-0.1": ()}
    assert beaten_recomputations(rows[1:], "inductor") == {}


def test_one_model_s_results_leave_those_of_others(tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    save_results([result("b", BASE, FAILED), result("a", BASE)], path)
    renewed = result("a", row("inductor", "stock", 90, 1.0))
    save_results([renewed], path)

    assert load_results(path) == (renewed, result("b", BASE, FAILED))
    assert list(json.loads(path.read_text())["models"]) == ["a", "b"]


@pytest.mark.parametrize("text", ["no json", "[]", '{"models": {"a": {"rows": []}}}'])
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)

    with pytest.raises(ValueError, match=r"other\.json does not hold results of benchmarks"):
        save_results([result("a", BASE)], path)
    assert path.read_text() == text
