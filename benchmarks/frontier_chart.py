"""Draws the frontier: peak memory against time, and against the noise of the gradients.

In: results of `benchmarks.frontier_results`. Out: a PNG a model. Run as ``python -m
benchmarks.frontier_chart RESULTS.json FOLDER`` to draw what was measured before.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from benchmarks.charts import figure_class
from benchmarks.frontier_results import (
    SHARE_OF_NOISE,
    Figures,
    ModelResult,
    load_results,
)
from benchmarks.frontier_ways import BASELINE

_COLORS = {
    "stock": "black",
    "budget": "C0",
    "checkpoint": "C9",
    "fp8": "C1",
    "rounding": "C4",
    "paper": "C2",
    "xconv": "C3",
}
_LABEL_OFFSETS = ((5, 4), (5, -10), (5, 13), (5, -19))
WANTED_BY = "a chart"
# Where the noise of exact ways is drawn, on an axis that has no zero.
_EXACT_LEVEL = 1e-3


def draw_charts(results: Iterable[ModelResult], folder: Path) -> list[Path]:
    """Draw a PNG a model, ``frontier_MODEL.png``.

    Args:
        results: the models, each with its baseline.
        folder: to write into; made where it does not exist.

    Returns:
        The files.

    Raises:
        click.UsageError: matplotlib is not installed.
    """
    figure_type = figure_class(WANTED_BY)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        figure = figure_type(figsize=(14, 6), layout="constrained")
        time_axes, noise_axes = figure.subplots(1, 2)
        _draw_time(time_axes, result)
        _draw_noise(noise_axes, result)
        shape = "x".join(map(str, result.input_shape))
        figure.suptitle(f"{result.model}, batch {shape}: lower and further left is better")
        paths.append(folder / f"frontier_{result.model}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths


def _draw_time(axes: Any, result: ModelResult) -> None:
    _draw_points(axes, result, {way: f.time_ratio for way, f in _measured(result).items()})
    axes.set(
        xlabel=f"peak of a step / {BASELINE}'s",
        ylabel=f"time of a step / {BASELINE}'s",
        yscale="log",
    )
    axes.margins(x=0.15)
    axes.legend()


def _draw_noise(axes: Any, result: ModelResult) -> None:
    noise = {
        row.way: _EXACT_LEVEL if row.exact else max(_EXACT_LEVEL, row.figures.noise_share)
        for row in result.rows
        if row.figures is not None
    }
    _draw_points(axes, result, noise)
    axes.axhline(1.0, color="grey", linestyle=":", label="mini-batch noise")
    axes.axhline(SHARE_OF_NOISE, color="grey", linestyle="--", label="a quarter of it")
    axes.set(
        xlabel=f"peak of a step / {BASELINE}'s",
        ylabel="error of the gradients / mini-batch noise (exact ways at the bottom)",
        yscale="log",
    )
    axes.margins(x=0.15)
    axes.legend()


def _draw_points(axes: Any, result: ModelResult, heights: dict[str, float]) -> None:
    measured = _measured(result)
    base = measured[BASELINE].peak_nbytes
    labelled: set[str] = set()
    for index, row in enumerate(result.rows):
        if row.way not in measured:
            continue
        point = (measured[row.way].peak_nbytes / base, heights[row.way])
        label = row.family if row.family not in labelled else None
        labelled.add(row.family)
        marker = "*" if row.family == "xconv" else "o"
        axes.plot(*point, marker, color=_COLORS[row.family], label=label)
        # Neighbours in the list are often neighbours in the picture: above and below in turn.
        offset = _LABEL_OFFSETS[index % len(_LABEL_OFFSETS)]
        axes.annotate(row.way, point, xytext=offset, textcoords="offset points", fontsize=8)


def _measured(result: ModelResult) -> dict[str, Figures]:
    return {row.way: row.figures for row in result.rows if row.figures is not None}


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(results: Path, folder: Path) -> None:
    """Draw the models in RESULTS into FOLDER."""
    try:
        loaded = load_results(results)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for path in draw_charts(loaded, folder):
        click.echo(path)


if __name__ == "__main__":
    main()
