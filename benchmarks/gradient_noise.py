"""The noise that a whole compiled step adds to every gradient, beside mini-batch noise.

Run as ``python -m benchmarks.gradient_noise``. A small net is trained for some steps on crops of
real photographs (`benchmarks.trained_nets`). At those weights, on one batch, the step compiled
with ``backend="xconv"`` is run with many seeds and compared with eager's exact gradients; exact
gradients of as many independent batches give the mini-batch noise. Both are defined in
`benchmarks.gradient_statistics`; norms are in training mode. As a check of unbiasedness the mean
error is set against its standard error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import xconv_fx
from benchmarks.parameter_noise import (
    Gradients,
    ParameterNoise,
    Summary,
    compare,
    parameter_kinds,
    summarise,
)
from benchmarks.trained_nets import (
    BenchmarkNet,
    LabelledBatch,
    build_net,
    draw_batch,
    find_net,
    loss_of,
    net_option,
    train,
)
from demos.texture_data import TextureData, load_photographs, split
from xconv_fx.backend import xconv
from xconv_fx.options import INNERS, SKETCHES, parse_options

_DEFAULT_NETS = ("resnet18", "unet2d", "cifar_net", "unet2d_group")


@dataclass(frozen=True)
class NetNoise:
    """One net.

    Attributes:
        net: its name.
        parameters: those with a gradient.
        vanishing: names of parameters whose exact gradient is zero but for rounding.
        share_of_bytes: bytes kept for backward over those of torch's own partition.
    """

    net: str
    parameters: tuple[ParameterNoise, ...]
    vanishing: tuple[str, ...]
    share_of_bytes: float


def gradients_of(
    run: Callable[[Tensor], Tensor], parameters: Mapping[str, nn.Parameter], batch: LabelledBatch
) -> Gradients:
    """Compute the gradients of one step.

    Args:
        run: the model, perhaps compiled.
        parameters: its parameters by name; their ``grad`` stays as it is.
        batch: images and labels.

    Returns:
        Gradients by name.
    """
    gradients = torch.autograd.grad(loss_of(run, batch), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


@dataclass(frozen=True)
class TrainedStep:
    """A trained net, and exact gradients at its weights.

    Attributes:
        net: which it is.
        model: in training mode.
        batch: the batch whose step is looked at.
        exact: its gradients.
        of_batches: gradients of independent batches.
    """

    net: BenchmarkNet
    model: nn.Module
    batch: LabelledBatch
    exact: Gradients
    of_batches: list[Gradients]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name."""
        return dict(self.model.named_parameters())


def prepare_step(
    net: BenchmarkNet, data: TextureData, *, num_steps: int, num_samples: int
) -> TrainedStep:
    """Train a net and compute exact gradients.

    Args:
        net: the network.
        data: photographs.
        num_steps: training steps before the step that is looked at.
        num_samples: batches for the mini-batch noise; at least 2.
    """
    generator = torch.Generator().manual_seed(0)
    model = build_net(net, seed=0)
    train(net, model, data, num_steps, generator)
    parameters = dict(model.named_parameters())
    batch = draw_batch(net, data, generator)
    exact = gradients_of(model, parameters, batch)
    of_batches = [
        gradients_of(model, parameters, draw_batch(net, data, generator))
        for _ in range(num_samples)
    ]
    return TrainedStep(net, model, batch, exact, of_batches)


def measure_step(step: TrainedStep, *, num_samples: int, options: Mapping[str, Any]) -> NetNoise:
    """Measure the noise of a compiled step.

    Args:
        step: from :func:`prepare_step`.
        num_samples: compiled steps; at least 2.
        options: of the backend.

    Returns:
        Noise of every parameter.

    Raises:
        RuntimeError: the backend compiled a graph exactly; the text has its reason.
    """
    torch.compiler.reset()
    compiled = torch.compile(step.model, backend=xconv, options=dict(options))
    # The seeds of the sketches come from torch's global generator, on from here.
    torch.manual_seed(1)
    estimates = [gradients_of(compiled, step.parameters, step.batch) for _ in range(num_samples)]
    reports = xconv_fx.all_reports()
    reasons = [report.exact for report in reports if report.exact is not None]
    if reasons:
        raise RuntimeError(
            f"{step.net.name}: expected sketches in every graph, but one was compiled exactly: "
            f"{reasons[0]}; gradient_noise would call that no noise"
        )
    kinds = parameter_kinds(step.model)
    compared, vanishing = compare(step.exact, estimates, step.of_batches, kinds)
    kept = sum(report.kept_nbytes for report in reports)
    stock = sum(report.stock_nbytes for report in reports)
    return NetNoise(step.net.name, compared, vanishing, kept / stock)


def measure_net(
    net: BenchmarkNet,
    data: TextureData,
    *,
    num_steps: int,
    num_samples: int,
    options: Mapping[str, Any],
) -> NetNoise:
    """Train a net and measure the noise of its compiled step.

    Args:
        net: the network.
        data: photographs.
        num_steps: training steps before the step that is looked at.
        num_samples: compiled steps, and batches for the mini-batch noise; at least 2.
        options: of the backend.

    Returns:
        Noise of every parameter.

    Raises:
        RuntimeError: as :func:`measure_step`.
    """
    step = prepare_step(net, data, num_steps=num_steps, num_samples=num_samples)
    return measure_step(step, num_samples=num_samples, options=options)


def results_table(result: NetNoise) -> Table:
    """Render every parameter of a net, and the root mean squares of each kind."""
    table = Table(
        title=f"{result.net}: relative noise of the gradients, "
        f"{result.share_of_bytes:.3f} of the bytes kept",
        title_justify="left",
    )
    table.add_column("parameter")
    table.add_column("kind")
    headings = ("sketches", "mini-batch", "ratio", "|mean error| / its s.e.", "z of bias")
    for heading in headings:
        table.add_column(heading, justify="right")
    for p in result.parameters:
        ratio = f"{p.error / p.noise:.3f}"
        checks = ["exact", ""] if p.bias_score is None else [_two(p.bias_ratio), _two(p.bias_score)]
        table.add_row(p.name, p.kind, f"{p.error:.3g}", f"{p.noise:.3f}", ratio, *checks)
    table.add_section()
    for s in summarise(result.parameters):
        name = f"rms of {s.num_estimated} ({s.num_exact} exact)"
        table.add_row(name, s.kind, *_mean_figures(s))
    ratios = [p.bias_ratio for p in result.parameters if p.bias_ratio is not None]
    scores = [p.bias_score for p in result.parameters if p.bias_score is not None]
    if scores:
        table.add_row("largest", "", "", "", "", _two(max(ratios)), _two(max(scores)))
    if result.vanishing:
        table.caption = f"Zero but for rounding: {', '.join(result.vanishing)}."
    return table


def _mean_figures(summary: Summary) -> list[str]:
    if summary.error is None or summary.noise is None or summary.ratio is None:
        return []
    return [f"{summary.error:.3g}", f"{summary.noise:.3f}", f"{summary.ratio:.3f}"]


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@click.command(context_settings={"show_default": True})
@net_option(_DEFAULT_NETS)
@click.option("--steps", type=click.IntRange(min=0), default=60, help="Training steps before.")
@click.option("--samples", type=click.IntRange(min=2), default=32, help="Seeds, and batches.")
@click.option(
    "--inner", type=click.Choice(INNERS), default="aot_eager", help="Compiler of the graphs."
)
@click.option("--noise-price", type=float, help="The plan's lambda.")
@click.option("--sketch", type=click.Choice(SKETCHES), help="Of the inputs of weight gradients.")
@click.option("--bits", type=int, help="Of the quantisation of inputs of weight gradients.")
@click.option("--probes", type=int, help="Number of probing vectors.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
def main(
    net_names: tuple[str, ...],
    steps: int,
    samples: int,
    inner: str,
    noise_price: float | None,
    sketch: str | None,
    bits: int | None,
    probes: int | None,
    json_path: Path | None,
) -> None:
    """Measure the noise of the compiled step's gradients beside mini-batch noise."""
    given = {"noise_price": noise_price, "sketch": sketch, "bits": bits, "probes": probes}
    options = {"inner": inner, **{key: value for key, value in given.items() if value is not None}}
    try:
        parse_options(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    console = Console(width=160)
    data = split(load_photographs())
    results = []
    for name in net_names:
        net = find_net(name)
        result = measure_net(net, data, num_steps=steps, num_samples=samples, options=options)
        results.append(result)
        console.print(results_table(result))
    settings = {"steps": steps, "samples": samples}
    console.print(f"torch {torch.__version__}, CPU, fp32, options {options}, {settings}")
    if json_path is not None:
        figures = {
            "torch": torch.__version__,
            "settings": settings,
            "options": options,
            "nets": [
                {**asdict(result), "summaries": [asdict(s) for s in summarise(result.parameters)]}
                for result in results
            ],
        }
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
