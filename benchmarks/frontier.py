"""The frontier of memory, time and noise: every way to train with fewer activations, side by side.

Run as ``python -m benchmarks.frontier --model unet2d --json frontier.json --chart charts``. One run
measures all ways of a model (`benchmarks.frontier_ways`) at the same weights on the same batch:
the allocator's record of the peak, the time in turn, and the error of the weights' gradients
beside mini-batch noise (on a GPU without tf32). Under the table stands what
`benchmarks.frontier_results` finds: which ways are dominated by which, whether any dominates xconv,
and whether xconv is faster, at no higher peak, than each of torch's budgets that computes a
convolution again.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.charts import figure_class
from benchmarks.frontier_chart import WANTED_BY, draw_charts
from benchmarks.frontier_measure import measure_model
from benchmarks.frontier_nets import NETS, net_at
from benchmarks.frontier_reference import Settings
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
from benchmarks.frontier_ways import BASELINE, SKETCHED_FAMILIES, WAYS, find_ways
from demos.devices import device_option
from demos.texture_data import load_photographs, split

_HEADINGS = (
    "peak MB",
    "peak",
    "live",
    "time ms",
    "time",
    "error",
    "/ mini-batch",
    "worst",
    "convolutions again",
)


def results_table(result: ModelResult) -> Table:
    """Render a model: peak, bytes live after forward and time as ratios to the baseline."""
    shape = "x".join(map(str, result.input_shape))
    weights = f"weights {result.weights_nbytes / 1e6:.1f} MB"
    noise = f"mini-batch noise {result.minibatch_noise:.3f}"
    kinks = f"eager and {BASELINE} differ by {result.kink_error:.1g}"
    title = f"{result.model} {shape}, ratios to {BASELINE}; {weights}, {noise}, {kinks}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = (
        "noise: to the nearer of eager's and the baseline's exact gradients; exact ways differ by "
        "rounding at kinks. rounding: eager kernels, which a compiler would fuse."
    )
    table.add_column("way", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    table.add_column("dominated by")
    rivals = dominated(result.rows)
    (base,) = (row.figures for row in result.rows if row.way == BASELINE)
    for row in result.rows:
        if row.figures is None or base is None:
            table.add_row(row.way, *("" for _ in _HEADINGS), f"failed: {row.failure}")
        else:
            table.add_row(
                row.way, *_cells(row, row.figures, base), " ".join(rivals.get(row.way, ()))
            )
    return table


def verdicts(result: ModelResult) -> list[str]:
    """Say in words whether xconv is dominated, and whether it beats torch's recomputation."""
    rivals = rivals_over(result.rows)
    lines = [f"{way} is dominated by {', '.join(others)}" for way, others in rivals.items()]
    if not rivals:
        lines = ["nothing dominates xconv"]
    for budget, ours in beaten_recomputations(result.rows, BASELINE).items():
        if ours:
            lines.append(f"{budget} computes convolutions again: beaten by {', '.join(ours)}")
        else:
            lines.append(f"{budget} computes convolutions again: NOT beaten by any xconv")
    return [f"{result.model}: {line}" for line in lines]


def _cells(row: Row, figures: Figures, base: Figures) -> list[str]:
    again = figures.num_convolutions - base.num_convolutions
    noise = (f"{figures.error:.3g}", f"{figures.noise_share:.3f}", f"{figures.worst_share:.2f}")
    if row.exact:
        noise = (f"{figures.error:.1g}", "exact", "")
    return [
        f"{figures.peak_nbytes / 1e6:.1f}",
        f"{figures.peak_nbytes / base.peak_nbytes:.3f}",
        f"{figures.live_nbytes / base.live_nbytes:.3f}",
        f"{figures.time_us / 1e3:.0f}",
        f"{figures.time_ratio:.2f}",
        *noise,
        "" if row.family in SKETCHED_FAMILIES else str(again),
    ]


@click.command(context_settings={"show_default": True})
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice([net.name for net in NETS]),
    default=[net.name for net in NETS],
    help="May be given several times.",
)
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice([way.name for way in WAYS]),
    help=f"May be given several times, default all; {BASELINE} is always measured.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Default by model.")
@click.option("--size", type=click.IntRange(min=1), help="Image side; default by model.")
@click.option("--steps", type=click.IntRange(min=0), default=20, help="Training steps before.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Timed rounds.")
@click.option("--seeds", type=click.IntRange(min=1), default=4, help="Of the random ways.")
@click.option("--batches", type=click.IntRange(min=2), default=8, help="For mini-batch noise.")
@device_option
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--chart", "folder", type=click.Path(path_type=Path, file_okay=False))
def main(
    models: tuple[str, ...],
    ways: tuple[str, ...],
    batch_size: int | None,
    size: int | None,
    steps: int,
    rounds: int,
    seeds: int,
    batches: int,
    device: str,
    json_path: Path | None,
    folder: Path | None,
) -> None:
    """Measure memory, time and gradient noise of every way to train each model."""
    console = Console(width=180)
    data = split(load_photographs())
    try:  # before hours of measuring
        nets = [net_at(model, data, batch_size, size) for model in models]
        if json_path is not None and json_path.exists():
            load_results(json_path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if folder is not None:
        figure_class(WANTED_BY)
    settings = Settings(steps, rounds, seeds, batches, device)
    for net in nets:
        start = time.perf_counter()
        result = measure_model(net, data, find_ways(ways), settings, console.print)
        console.print(results_table(result))
        for line in verdicts(result):
            console.print(line)
        console.print(f"{result.environment}, took {time.perf_counter() - start:.0f} s")
        if json_path is not None:  # after each, since a run over all models takes long
            save_results([result], json_path)
        if folder is not None:
            draw_charts([result], folder)


if __name__ == "__main__":
    main()
