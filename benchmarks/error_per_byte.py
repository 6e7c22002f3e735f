"""Error of the weight gradient against bytes kept: every codec, and the paper's probings.

Run as ``python -m benchmarks.error_per_byte``. Small nets are trained for some steps on crops of
real photographs (`benchmarks.trained_nets`). Then, in one step on one batch, each convolution's
weight gradient is formed from the decoded input in place of the input. A probing gets on each
convolution the number of vectors whose bytes are nearest to those of the rung it is compared
with, at least one. Errors are relative to the exact gradient of the batch, and stand beside the
mini-batch noise of the same convolutions (`benchmarks.gradient_statistics`). Each convolution's
input is counted for itself; convolutions of the batch itself are left out, as the backend keeps
them exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.charts import figure_class
from benchmarks.codec_errors import PROBINGS, draw_seeds, measure_ladder, measure_probings
from benchmarks.codec_results import (
    CodecResult,
    Layer,
    NetResult,
    beaten_by,
    lower_hull,
    mean_error,
    mean_error_to_noise,
    ratio_to_paper,
    share_of_bytes,
)
from benchmarks.convolution_sites import capture, weight_gradients
from benchmarks.gradient_statistics import geometric_mean, minibatch_noise
from benchmarks.trained_nets import (
    BenchmarkNet,
    LabelledBatch,
    build_net,
    draw_batch,
    find_net,
    net_option,
    train,
)
from demos.texture_data import TextureData, load_photographs, split
from passes.rules import Codec
from xconv_fx.rules import LADDER

_DEFAULT_NETS = ("resnet18", "unet2d_group", "cifar_net", "unet3d")
# Nets of more convolutions show the range of the errors in the table, all of them in the JSON.
_MAX_LAYERS_SHOWN = 6


def measure_net(
    net: BenchmarkNet,
    data: TextureData,
    *,
    num_steps: int,
    num_seeds: int,
    num_batches: int,
    ladder: Sequence[Codec] = LADDER,
    channels_last: bool = False,
) -> NetResult:
    """Train a net and measure every codec on its convolutions.

    Args:
        net: the network.
        data: photographs.
        num_steps: training steps before the step that is looked at.
        num_seeds: seeds of each codec on each convolution.
        num_batches: independent batches for the mini-batch noise, at least 2.
        ladder: the project's codecs.
        channels_last: whether weights, and by them activations, are laid out channels-last.

    Returns:
        Bytes, errors and mini-batch noise.
    """
    generator = torch.Generator().manual_seed(0)
    model = build_net(net, seed=0)
    if channels_last:
        formats = (torch.channels_last, torch.channels_last_3d)
        model = model.to(memory_format=formats[len(net.size) - 2])  # type: ignore[call-overload]
    train(net, model, data, num_steps, generator)

    def draw() -> LabelledBatch:
        return draw_batch(net, data, generator)

    sites = capture(model, draw())
    gradients = weight_gradients(model, [site.name for site in sites], draw, num_batches)
    layers = tuple(
        Layer(site.name, tuple(site.x.shape), site.nbytes, minibatch_noise(gradients[site.name]))
        for site in sites
    )
    seeds = draw_seeds(num_seeds, generator)
    rungs = measure_ladder(sites, ladder, seeds)
    return NetResult(net.name, layers, rungs, measure_probings(sites, rungs, seeds))


def results_table(result: NetResult) -> Table:
    """Render one net: each rung of the ladder, and below it the probings at its bytes."""
    table = Table(
        title=f"{result.net}: relative error of the weight gradients", title_justify="left"
    )
    table.add_column("codec")
    headings = ("compression", "error by convolution", "mean", "/ mini-batch", "/ paper's best")
    for heading in headings:
        table.add_column(heading, justify="right")
    table.add_column("beaten by")
    noises = [layer.noise for layer in result.layers]
    table.add_row(
        "mini-batch noise", "", _spread(noises), f"{geometric_mean(noises):.3g}", "", "", ""
    )
    for rung in result.rungs:
        table.add_section()
        ratio = f"{ratio_to_paper(rung, result.probings):.3g}"
        table.add_row(*_cells(rung, result.layers), ratio, beaten_by(rung, result.rungs) or "")
        for probing in result.probings:
            if probing.rung == rung.name:
                table.add_row(*_cells(probing, result.layers), "", "")
    return table


def plot(results: Sequence[NetResult], path: Path) -> None:
    """Draw error against bytes, a panel a net, both axes logarithmic.

    Args:
        results: the nets.
        path: file to write, of a kind that matplotlib knows by its name.

    Raises:
        click.UsageError: matplotlib is not installed.
    """
    figure = figure_class("--plot")(figsize=(6 * len(results), 5), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        points = plot_points(result.rungs, result.layers)
        axes.plot(*zip(*points, strict=True), "o", color="C0")
        for rung, point in zip(result.rungs, points, strict=True):
            axes.annotate(rung.name, point, xytext=(5, 3), textcoords="offset points")
        # The plan weighs bytes against the squared error.
        hull = [points[i] for i in lower_hull(points, key=lambda error: error * error)]
        axes.plot(*zip(*hull, strict=True), "-", color="C0", label="ladder, hull")
        for number, mode in enumerate(PROBINGS, 1):
            probings = [probing for probing in result.probings if probing.name == mode]
            line = sorted(plot_points(probings, result.layers))
            axes.plot(*zip(*line, strict=True), "s--", color=f"C{number}", label=f"paper, {mode}")
        noise = geometric_mean(layer.noise for layer in result.layers)
        axes.axhline(noise, color="black", linestyle=":", label="mini-batch noise")
        axes.set(
            title=result.net,
            xscale="log",
            yscale="log",
            xlabel="bytes kept / bytes of the inputs",
            ylabel="relative error of the weight gradient",
        )
        # Room for the names of the rungs.
        axes.margins(x=0.25)
        axes.legend()
    figure.savefig(path)


def plot_points(
    results: Sequence[CodecResult], layers: Sequence[Layer]
) -> list[tuple[float, float]]:
    """Return share of bytes and mean error of each result."""
    return [(share_of_bytes(result, layers), mean_error(result)) for result in results]


def _cells(result: CodecResult, layers: Sequence[Layer]) -> list[str]:
    fitting = [layer.error for layer in result.layers if layer is not None]
    partly = "" if len(fitting) == len(layers) else f" ({len(fitting)} of {len(layers)})"
    indent = "" if result.name == result.rung else "  "
    return [
        f"{indent}{result.name}{partly}",
        f"{1 / share_of_bytes(result, layers):.1f}x" if fitting else "",
        _spread(fitting),
        f"{mean_error(result):.3g}",
        f"{mean_error_to_noise(result, layers):.3g}",
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) <= _MAX_LAYERS_SHOWN:
        return " ".join(f"{value:.2g}" for value in values)
    return f"{min(values):.2g} to {max(values):.2g}"


@click.command(context_settings={"show_default": True})
@net_option(_DEFAULT_NETS)
@click.option("--steps", type=click.IntRange(min=0), default=60, help="Training steps before.")
@click.option("--seeds", type=click.IntRange(min=1), default=4, help="Seeds of each codec.")
@click.option("--batches", type=click.IntRange(min=2), default=32, help="For mini-batch noise.")
@click.option("--channels-last", is_flag=True, help="Lay activations out channels-last.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False))
def main(
    net_names: tuple[str, ...],
    steps: int,
    seeds: int,
    batches: int,
    channels_last: bool,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure the error of weight gradients against bytes, for every codec and the paper's."""
    console = Console(width=160)
    data = split(load_photographs())
    results = []
    for name in net_names:
        result = measure_net(
            find_net(name),
            data,
            num_steps=steps,
            num_seeds=seeds,
            num_batches=batches,
            channels_last=channels_last,
        )
        results.append(result)
        console.print(results_table(result))
    settings = {"steps": steps, "seeds": seeds, "batches": batches, "channels_last": channels_last}
    console.print(f"torch {torch.__version__}, CPU, fp32, options {settings}")
    if json_path is not None:
        figures = {
            "torch": torch.__version__,
            "settings": settings,
            "nets": [asdict(result) for result in results],
        }
        json_path.write_text(json.dumps(figures, indent=2) + "\n")
    if plot_path is not None:
        plot(results, plot_path)


if __name__ == "__main__":
    main()
