"""Says what the ways of training reached: a table, a sentence for each way, and raw figures.

Comes in: the results of `demos.training`. Goes out: rich renderables, text, and a dictionary for
JSON. Where they are written is left to `demos.textures`.
"""

import dataclasses
import math
import platform
import statistics
from importlib import metadata
from typing import Any

import torch
from rich.table import Table

from demos.devices import device_name
from demos.training import Settings, WayResult

_PACKAGES = ("torch", "xconv-fx", "networkx", "numpy", "scipy", "scikit-image")


def results_table(results: list[WayResult], settings: Settings) -> Table:
    """Makes the table of all ways, with ratios to the baseline.

    Args:
        results: One for each way.
        settings: What was trained.

    Returns:
        A table with one row for each way.
    """
    base = _baseline_of(results, settings)
    crop = f"{settings.batch_size}x3x{settings.image_size}x{settings.image_size}"
    table = Table(
        title=f"{settings.model}, {crop}, {settings.steps} steps, {settings.device}",
        caption=f"In brackets: ratio to {settings.baseline}.",
    )
    table.add_column("way")
    headings = ("accuracy", "kept for backward", "peak of a step", "time a step")
    for heading in headings:
        # Together narrow enough for a terminal of 80 columns.
        table.add_column(heading, justify="right")
    for result in results:
        memory, base_memory = result.memory, base.memory
        kept = memory.live_after_forward_nbytes
        table.add_row(
            result.way,
            _accuracy_text(result),
            _with_ratio(format_nbytes(kept), kept, base_memory.live_after_forward_nbytes),
            _with_ratio(
                format_nbytes(memory.peak_nbytes), memory.peak_nbytes, base_memory.peak_nbytes
            ),
            _with_ratio(f"{result.time.median_us / 1000:.0f} ms", result.time.ratio, 1.0),
        )
    return table


def sentences(results: list[WayResult], settings: Settings, num_test_crops: int) -> list[str]:
    """Says in one line for each way what its row means.

    Args:
        results: One for each way.
        settings: What was trained.
        num_test_crops: Number of crops that each accuracy is taken over.

    Returns:
        As many lines as there are ways.
    """
    base = _baseline_of(results, settings)
    lines = []
    for result in results:
        memory = result.memory
        if result is base:
            kept = format_nbytes(memory.live_after_forward_nbytes)
            lines.append(
                f"{result.way}: the others are compared with it; it keeps {kept} between forward "
                f"and backward and gets {100 * _mean(result):.1f} % of the test crops right."
            )
            continue
        base_memory = base.memory
        kept_ratio = memory.live_after_forward_nbytes / base_memory.live_after_forward_nbytes
        lines.append(
            f"{result.way}: keeps {kept_ratio:.2f} times the bytes of {base.way}, peaks at "
            f"{memory.peak_nbytes / base_memory.peak_nbytes:.2f} times its memory and takes "
            f"{result.time.ratio:.2f} times its time; accuracy "
            f"{_difference_text(result, base, num_test_crops)}."
        )
    return lines


def raw_figures(
    results: list[WayResult], settings: Settings, num_test_crops: int
) -> dict[str, Any]:
    """Collects everything measured, with the versions and the device it was measured on.

    Args:
        results: One for each way.
        settings: What was trained.
        num_test_crops: Number of crops that each accuracy is taken over.

    Returns:
        A dictionary of plain values that `json` can write.
    """
    return {
        "settings": {**dataclasses.asdict(settings), "baseline": settings.baseline},
        "num_test_crops": num_test_crops,
        "ways": [dataclasses.asdict(result) for result in results],
        "versions": {"python": platform.python_version(), **_package_versions()},
        "device": {
            "type": settings.device,
            "name": device_name(settings.device),
            "num_threads": torch.get_num_threads(),
        },
    }


def format_nbytes(nbytes: int) -> str:
    """Writes a number of bytes in decimal units, as `12.3 MB`."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _baseline_of(results: list[WayResult], settings: Settings) -> WayResult:
    return next(result for result in results if result.way == settings.baseline)


def _mean(result: WayResult) -> float:
    return statistics.fmean(result.accuracies)


def _accuracy_text(result: WayResult) -> str:
    text = f"{100 * _mean(result):.1f} %"
    if len(result.accuracies) == 1:
        return text
    return f"{text} ± {100 * statistics.stdev(result.accuracies):.1f}"


def _with_ratio(text: str, value: float, base: float) -> str:
    return f"{text} ({value / base:.2f})"


def _difference_text(result: WayResult, base: WayResult, num_test_crops: int) -> str:
    difference = 100 * (_mean(result) - _mean(base))
    text = f"{difference:+.1f} points"
    num_seeds = len(result.accuracies)
    if num_seeds > 1:
        pairs = zip(result.accuracies, base.accuracies, strict=True)
        spread = 100 * statistics.stdev(ours - theirs for ours, theirs in pairs)
        return f"{text} (mean of {num_seeds} seeds; one seed's difference spreads by {spread:.1f})"
    # Two standard errors of a difference of shares, the test crops taken as independent.
    share = (_mean(result) + _mean(base)) / 2
    chance = 200 * math.sqrt(2 * share * (1 - share) / num_test_crops)
    return f"{text} ({num_test_crops} test crops cannot tell less than {chance:.1f} from chance)"


def _package_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions
