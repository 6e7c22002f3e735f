import json

import pytest
from rich.console import Console

from benchmarks.measure import StepMemory, StepTime
from demos.texture_report import format_nbytes, raw_figures, results_table, sentences
from demos.training import Settings, WayResult

SETTINGS = Settings(ways=("inductor", "xconv"))


def result(
    way: str, accuracies: tuple[float, ...], kept: int, peak: int, time_ratio: float
) -> WayResult:
    return WayResult(
        way=way,
        accuracies=accuracies,
        losses=tuple((1.0, 0.5) for _ in accuracies),
        first_step_us=1e6,
        memory=StepMemory(kept, peak),
        time=StepTime(median_us=2e5 * time_ratio, ratio=time_ratio, num_rounds=2),
    )


@pytest.fixture
def results() -> list[WayResult]:
    return [
        result("inductor", (0.90,), 100_000_000, 200_000_000, 1.0),
        result("xconv", (0.92,), 10_000_000, 90_000_000, 1.25),
    ]


def test_the_table_gives_figures_and_ratios(results: list[WayResult]) -> None:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(results_table(results, SETTINGS))
    rows = [" ".join(line.split()) for line in captured.get().splitlines()]

    expected = "│ xconv │ 92.0 % │ 10.0 MB (0.10) │ 90.0 MB (0.45) │ 250 ms (1.25) │"
    assert expected in rows
    assert "In brackets: ratio to inductor." in rows


def test_every_way_gets_one_sentence(results: list[WayResult]) -> None:
    lines = sentences(results, SETTINGS, num_test_crops=800)

    # Two standard errors of the difference of two shares about 0.91 of 800 crops: 2.86 points.
    assert lines == [
        "inductor: the others are compared with it; it keeps 100.0 MB between forward and "
        "backward and gets 90.0 % of the test crops right.",
        "xconv: keeps 0.10 times the bytes of inductor, peaks at 0.45 times its memory and takes "
        "1.25 times its time; accuracy +2.0 points (800 test crops cannot tell less than 2.9 "
        "from chance).",
    ]


def test_several_seeds_give_a_mean_and_a_spread() -> None:
    results = [
        result("inductor", (0.90, 0.92), 10, 20, 1.0),
        result("xconv", (0.90, 0.90), 10, 20, 1.0),
    ]
    line = sentences(results, SETTINGS, num_test_crops=800)[1]

    assert "accuracy -1.0 points (mean of 2 seeds; one seed's difference spreads by 1.4)" in line


def test_raw_figures_can_be_written_as_json(results: list[WayResult]) -> None:
    figures = json.loads(json.dumps(raw_figures(results, SETTINGS, num_test_crops=800)))

    assert figures["settings"]["baseline"] == "inductor"
    assert figures["versions"]["torch"].startswith("2.")
    assert figures["device"]["type"] == "cpu"
    assert figures["ways"][1]["memory"]["peak_nbytes"] == 90_000_000


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (2_340_000, "2.3 MB"),
        (5 * 10**12, "5000.0 GB"),
    ],
)
def test_bytes_are_written_in_decimal_units(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text
