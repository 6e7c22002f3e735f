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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import xconv_fx
from benchmarks.gradient_statistics import (
    bias_ratio,
    bias_score,
    minibatch_noise,
    relative_rms_error,
    root_mean_square,
)
from benchmarks.trained_nets import (
    NETS,
    BenchmarkNet,
    LabelledBatch,
    build_net,
    draw_batch,
    find_net,
    loss_of,
    train,
)
from demos.texture_data import TextureData, load_photographs, split
from xconv_fx.backend import xconv
from xconv_fx.options import INNERS, SKETCHES, parse_options

KINDS = ("weight", "norm weight", "bias", "other")
"""Weights of convolutions and linear layers, scales of norms, all biases, and the rest."""

_DEFAULT_NETS = ("resnet18", "unet2d", "cifar_net", "unet2d_group")
# A gradient that is zero but for rounding (of a bias in front of a norm) has elements of some
# 1e-7 of the others'; it has no relative error.
_VANISHING = 1e-5
# The compiled step adds up in another order than eager: 1e-6 or so, in every step alike.
_ROUNDING = 1e-4

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class ParameterNoise:
    """One parameter's gradient.

    Attributes:
        name: of the parameter.
        kind: one of :data:`KINDS`.
        error: relative rms error of the compiled gradient over the seeds.
        noise: mini-batch noise.
        bias_ratio: norm of the mean error over its standard error, 1 without bias; None where the
            error is rounding.
        bias_score: like a standard normal variable without bias; None where the error is rounding.
    """

    name: str
    kind: str
    error: float
    noise: float
    bias_ratio: float | None
    bias_score: float | None

    @property
    def estimated(self) -> bool:
        """Whether the error is more than rounding."""
        return self.bias_score is not None


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


@dataclass(frozen=True)
class Summary:
    """Root mean squares over the estimated parameters of one kind; nan if there are none.

    Attributes:
        kind: one of :data:`KINDS`.
        num_estimated: how many parameters.
        num_exact: how many more have no error but rounding.
        error: of the errors.
        noise: of the mini-batch noises.
        ratio: of the two.
    """

    kind: str
    num_estimated: int
    num_exact: int
    error: float
    noise: float
    ratio: float


def parameter_kinds(model: nn.Module) -> dict[str, str]:
    """Sort the parameters of a model, by name, into :data:`KINDS`."""
    kinds = {}
    for prefix, module in model.named_modules():
        own = {name: "other" for name, _ in module.named_parameters(recurse=False)}
        if "weight" in own and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            own["weight"] = "weight"
        elif "weight" in own and "Norm" in type(module).__name__:
            own["weight"] = "norm weight"
        if "bias" in own:
            own["bias"] = "bias"
        kinds.update({f"{prefix}.{name}" if prefix else name: own[name] for name in own})
    return kinds


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


def compare(
    exact: Gradients,
    estimates: list[Gradients],
    of_batches: list[Gradients],
    kinds: Mapping[str, str],
) -> tuple[tuple[ParameterNoise, ...], tuple[str, ...]]:
    """Compare estimated gradients with exact ones, and batches with each other.

    Args:
        exact: exact gradients of one batch.
        estimates: two or more estimates of them, of independent seeds.
        of_batches: exact gradients of two or more independent batches.
        kinds: of the parameters.

    Returns:
        The parameters that have a gradient, and the names of those where it vanishes.
    """
    vanishing = vanishing_gradients(exact)
    parameters = []
    for name, gradient in exact.items():
        if name in vanishing:
            continue
        samples = [estimate[name] for estimate in estimates]
        error = relative_rms_error(samples, gradient)
        errors = torch.stack([(sample - gradient).flatten() for sample in samples])
        estimated = error > _ROUNDING
        parameters.append(
            ParameterNoise(
                name=name,
                kind=kinds[name],
                error=error,
                noise=minibatch_noise([gradients[name] for gradients in of_batches]),
                bias_ratio=bias_ratio(errors) if estimated else None,
                bias_score=bias_score(errors) if estimated else None,
            )
        )
    return tuple(parameters), vanishing


def vanishing_gradients(exact: Gradients) -> tuple[str, ...]:
    """Name the gradients whose root mean square is below 1e-5 of that of all elements."""
    count = sum(gradient.numel() for gradient in exact.values())
    energy = sum(float(gradient.double().square().sum()) for gradient in exact.values())
    least = _VANISHING**2 * energy / count
    return tuple(
        name
        for name, gradient in exact.items()
        if float(gradient.double().square().mean()) <= least
    )


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
        RuntimeError: the backend compiled a graph exactly; the text has its reason.
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
    torch.compiler.reset()
    compiled = torch.compile(model, backend=xconv, options=dict(options))
    # The seeds of the sketches come from torch's global generator, on from here.
    torch.manual_seed(1)
    estimates = [gradients_of(compiled, parameters, batch) for _ in range(num_samples)]
    reports = xconv_fx.all_reports()
    reasons = [report.exact for report in reports if report.exact is not None]
    if reasons:
        raise RuntimeError(
            f"{net.name}: expected sketches in every graph, but one was compiled exactly: "
            f"{reasons[0]}; gradient_noise would call that no noise"
        )
    compared, vanishing = compare(exact, estimates, of_batches, parameter_kinds(model))
    kept = sum(report.kept_nbytes for report in reports)
    stock = sum(report.stock_nbytes for report in reports)
    return NetNoise(net.name, compared, vanishing, kept / stock)


def summarise(parameters: Iterable[ParameterNoise]) -> tuple[Summary, ...]:
    """Summarise each kind that occurs, in the order of :data:`KINDS`.

    Parameters with an exact gradient are counted, but left out of the mean squares: they would
    lower the error and leave the noise.
    """
    listed = list(parameters)
    summaries = []
    for kind in KINDS:
        of_kind = [parameter for parameter in listed if parameter.kind == kind]
        estimated = [parameter for parameter in of_kind if parameter.estimated]
        error = root_mean_square(parameter.error for parameter in estimated)
        noise = root_mean_square(parameter.noise for parameter in estimated)
        num_exact = len(of_kind) - len(estimated)
        if of_kind:
            ratio = error / noise
            summaries.append(Summary(kind, len(estimated), num_exact, error, noise, ratio))
    return tuple(summaries)


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
        figures = [f"{s.error:.3g}", f"{s.noise:.3f}", f"{s.ratio:.3f}"]
        table.add_row(name, s.kind, *(figures if s.num_estimated else []))
    ratios = [p.bias_ratio for p in result.parameters if p.bias_ratio is not None]
    scores = [p.bias_score for p in result.parameters if p.bias_score is not None]
    if scores:
        table.add_row("largest", "", "", "", "", _two(max(ratios)), _two(max(scores)))
    if result.vanishing:
        table.caption = f"Zero but for rounding: {', '.join(result.vanishing)}."
    return table


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@click.command(context_settings={"show_default": True})
@click.option(
    "--net",
    "net_names",
    multiple=True,
    type=click.Choice([net.name for net in NETS]),
    default=_DEFAULT_NETS,
    help="May be given several times.",
)
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
