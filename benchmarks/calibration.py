"""What calibrating buys at an equal budget: noise of gradients, planned from shapes or measured.

Run as ``python -m benchmarks.calibration``. A small net is trained for some steps on crops of real
photographs (`benchmarks.trained_nets`), calibrated on one batch, and compiled for budgets of
memory with and without the calibration. The noise is that of another batch, measured as in
`benchmarks.gradient_noise`: per parameter the error that sketches add beside the mini-batch noise,
and of those ratios the root mean square over the weights of convolutions and linear layers, and
over all parameters. A parameter with an exact gradient counts as 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.gradient_noise import NetNoise, TrainedStep, measure_step, prepare_step
from benchmarks.gradient_statistics import geometric_mean, root_mean_square
from benchmarks.parameter_noise import ParameterNoise
from benchmarks.trained_nets import LabelledBatch, draw_batch, find_net, net_option
from demos.texture_data import TextureData, load_photographs, split
from xconv_fx.calibration import Calibration
from xconv_fx.calibration_run import calibrate

_DEFAULT_NETS = ("resnet18", "unet2d", "cifar_net", "unet2d_group")
_DEFAULT_BUDGETS = (0.10, 0.06, 0.05, 0.04)


@dataclass(frozen=True)
class PlanNoise:
    """The noise of one plan.

    Attributes:
        share_of_bytes: bytes kept for backward over those of torch's own partition.
        weights: root mean square, over the weights of convolutions and linear layers, of sketch
            error over mini-batch noise.
        parameters: the same over all parameters.
    """

    share_of_bytes: float
    weights: float
    parameters: float


@dataclass(frozen=True)
class BudgetResult:
    """One net within one budget.

    Attributes:
        net: its name.
        budget: the share of memory asked for; None for the default price of noise.
        modelled: planned from shapes.
        measured: planned with the calibration.
    """

    net: str
    budget: float | None
    modelled: PlanNoise
    measured: PlanNoise

    @property
    def gain(self) -> float:
        """Noise of the weights' gradients planned from shapes, over that with a calibration."""
        return self.modelled.weights / self.measured.weights if self.measured.weights else math.inf

    @property
    def gain_of_all(self) -> float:
        """The same of all parameters."""
        measured = self.measured.parameters
        return self.modelled.parameters / measured if measured else math.inf


def measure_budgets(
    step: TrainedStep,
    calibration: Calibration,
    budgets: Sequence[float | None],
    *,
    num_samples: int,
    inner: str = "aot_eager",
) -> list[BudgetResult]:
    """Measure the noise of a net's step within each budget, both ways.

    Args:
        step: the net, with a batch that the calibration has not seen.
        calibration: of the net.
        budgets: shares of memory; None for the default price.
        num_samples: compiled steps a plan; at least 2.
        inner: compiler of the graphs, the one calibrated for.
    """
    results = []
    for budget in budgets:
        options: dict[str, Any] = {"inner": inner}
        if budget is not None:
            options["memory_budget"] = budget
        noises = [
            summarise_plan(measure_step(step, num_samples=num_samples, options=given))
            for given in (options, {**options, "calibration": calibration})
        ]
        results.append(BudgetResult(step.net.name, budget, *noises))
    return results


def summarise_plan(noise: NetNoise) -> PlanNoise:
    """Take the root mean squares over the weights and over all parameters."""
    weights = [p for p in noise.parameters if p.kind == "weight"]
    return PlanNoise(noise.share_of_bytes, _rms_ratio(weights), _rms_ratio(noise.parameters))


def _rms_ratio(parameters: Sequence[ParameterNoise]) -> float:
    return root_mean_square(p.error / p.noise if p.estimated else 0.0 for p in parameters)


def calibrate_step(
    step: TrainedStep, batch: LabelledBatch, *, inner: str = "aot_eager"
) -> Calibration:
    """Calibrate a net on a batch with the loss that it is trained by.

    Args:
        step: the net.
        batch: another batch than the step's.
        inner: compiler of the graphs.
    """

    def loss(output: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(output, batch.labels)

    return calibrate(step.model, batch.images, loss=loss, options={"inner": inner})


def results_table(results: Sequence[BudgetResult]) -> Table:
    """Render a row for each net and budget, and the geometric mean of the gains."""
    table = Table(
        title="sketch noise / mini-batch noise, rms over parameters", title_justify="left"
    )
    table.add_column("net")
    for heading in ("budget", "bytes: shapes", "calibrated"):
        table.add_column(heading, justify="right")
    for kind in ("weights", "all"):
        for heading in (f"{kind}: shapes", "calibrated", "gain"):
            table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            r.net,
            "default" if r.budget is None else f"{r.budget:g}",
            f"{r.modelled.share_of_bytes:.3f}",
            f"{r.measured.share_of_bytes:.3f}",
            f"{r.modelled.weights:.3f}",
            f"{r.measured.weights:.3f}",
            f"{r.gain:.2f}",
            f"{r.modelled.parameters:.3f}",
            f"{r.measured.parameters:.3f}",
            f"{r.gain_of_all:.2f}",
        )
    equal = [r for r in results if r.budget is not None]
    if equal:
        table.add_section()
        means = (
            geometric_mean(g) for g in ([r.gain for r in equal], [r.gain_of_all for r in equal])
        )
        of_weights, of_all = (f"{mean:.2f}" for mean in means)
        table.add_row("geometric mean", "", "", "", "", "", of_weights, "", "", of_all)
    return table


def measure_nets(
    names: Sequence[str],
    budgets: Sequence[float | None],
    data: TextureData,
    *,
    num_steps: int,
    num_samples: int,
) -> list[BudgetResult]:
    """Train, calibrate and measure nets by name.

    Args:
        names: of nets in `benchmarks.trained_nets`.
        budgets: shares of memory; None for the default price.
        data: photographs.
        num_steps: training steps before.
        num_samples: compiled steps a plan, and batches for the mini-batch noise.
    """
    results = []
    for name in names:
        net = find_net(name)
        step = prepare_step(net, data, num_steps=num_steps, num_samples=num_samples)
        batch = draw_batch(net, data, torch.Generator().manual_seed(1))
        calibration = calibrate_step(step, batch)
        results += measure_budgets(step, calibration, budgets, num_samples=num_samples)
    return results


@click.command(context_settings={"show_default": True})
@net_option(_DEFAULT_NETS)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True),
    default=_DEFAULT_BUDGETS,
    help="Share of memory; may be given several times.",
)
@click.option("--steps", type=click.IntRange(min=0), default=60, help="Training steps before.")
@click.option("--samples", type=click.IntRange(min=2), default=6, help="Seeds, and batches.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
def main(
    net_names: tuple[str, ...],
    budgets: tuple[float, ...],
    steps: int,
    samples: int,
    json_path: Path | None,
) -> None:
    """Compare plans from shapes with calibrated plans, within budgets and at the default price."""
    results = measure_nets(
        net_names,
        [None, *budgets],
        split(load_photographs()),
        num_steps=steps,
        num_samples=samples,
    )
    console = Console(width=140)
    console.print(results_table(results))
    settings = {"steps": steps, "samples": samples, "inner": "aot_eager"}
    console.print(f"torch {torch.__version__}, CPU, fp32, {settings}")
    if json_path is not None:
        figures = {
            "torch": torch.__version__,
            "settings": settings,
            "results": [
                {**asdict(r), "gain": r.gain, "gain_of_all": r.gain_of_all} for r in results
            ],
        }
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
