"""Peaks under falling budgets: what `memory_budget` promises, against the allocator's record.

Run as ``python -m benchmarks.budget_peaks``. Zoo models, compiled together with their loss, are
trained for a step under shares and under bytes, the latter as shares of the peak that the exact
plan is measured to have. Two things are checked: a budget in bytes that is within reach holds, and
a smaller budget within reach gives no larger peak, but for seeds of a few hundred bytes. A budget
out of reach, by default an error, is taken as ``strict=False`` takes it.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

import models_zoo
import xconv_fx
from benchmarks.measure import step_memory
from benchmarks.memory_model import WithLoss
from xconv_fx.backend import xconv
from xconv_fx.options import INNERS

SHARES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
PEAK_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# A rise of less than such a part of the peak is not counted.
SEEDS = 1000
# Batch and image side: activations are no less than the weights, as far as that compiles fast.
MODELS = MappingProxyType(
    {
        "mnist_net": (64, 28),
        "cifar_net": (16, 32),
        "squeezenet1_1": (8, 64),
        "resnet18": (8, 64),
        "unet2d": (4, 32),
        "unet3d": (1, 32),
        "mobilenet_v2": (8, 32),
        "densenet_small": (4, 32),
        "dcgan_generator": (8, None),
    }
)


@dataclass(frozen=True)
class BudgetedStep:
    """One model under one budget.

    Attributes:
        model: of the zoo.
        inner: the inner compiler.
        kind: ``share`` of the bytes that torch keeps, or ``bytes`` of the step's peak.
        budget: the share; or the bytes, as a share of the peak of the exact plan.
        budget_nbytes: the bytes; None for a share.
        is_reached: whether the budget is within reach.
        kept_nbytes: kept between forward and backward.
        predicted_nbytes: predicted peak, with parameters, buffers and the batch.
        measured_nbytes: the allocator's peak, likewise.
    """

    model: str
    inner: str
    kind: str
    budget: float
    budget_nbytes: int | None
    is_reached: bool
    kept_nbytes: int
    predicted_nbytes: int
    measured_nbytes: int

    @property
    def exceeds(self) -> bool:
        """Whether the measured peak is above a budget that was said to be reached."""
        limit = self.budget_nbytes
        return limit is not None and self.is_reached and self.measured_nbytes > limit


def budgeted_steps(
    name: str, inner: str, shares: Sequence[float], peak_shares: Sequence[float]
) -> list[BudgetedStep]:
    """Measure one model under falling budgets.

    Args:
        name: a model of the zoo.
        inner: the inner compiler.
        shares: budgets as shares of kept bytes; the first has to be 1, for the exact plan.
        peak_shares: budgets in bytes, as shares of the exact plan's peak.

    Raises:
        RuntimeError: the model is compiled as several graphs, or the passes failed.
    """
    rows = [_step(name, inner, "share", share, None) for share in shares]
    exact_nbytes = rows[0].measured_nbytes
    for share in peak_shares:
        rows.append(_step(name, inner, "bytes", share, int(share * exact_nbytes)))
    return rows


def _step(
    name: str, inner: str, kind: str, budget: float, budget_nbytes: int | None
) -> BudgetedStep:
    torch.manual_seed(0)
    torch.compiler.reset()
    batch_size, size = MODELS.get(name, (None, None))
    model = WithLoss(models_zoo.build(name))
    inputs = models_zoo.example_input(name, batch_size or 4, size=size)
    given = budget if budget_nbytes is None else budget_nbytes
    options: dict[str, Any] = {"inner": inner, "memory_budget": given, "strict": False}
    compiled = torch.compile(model, backend=xconv, options=options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            compiled(*inputs).backward()
            model.zero_grad(set_to_none=True)
    measured = step_memory(lambda: compiled(*inputs))
    reports = xconv_fx.all_reports()
    if len(reports) != 1 or reports[0].exact is not None or reports[0].memory is None:
        raise RuntimeError(
            f"{name}: expected one planned graph, got {len(reports)} graphs, the first of them "
            f"compiled exactly because {reports[0].exact if reports else 'there is none'}"
        )
    resident = sum(t.nbytes for t in [*model.parameters(), *model.buffers(), *inputs])
    return BudgetedStep(
        model=name,
        inner=inner,
        kind=kind,
        budget=budget,
        budget_nbytes=budget_nbytes,
        is_reached=not any("xconv: memory_budget" in str(w.message) for w in caught),
        kept_nbytes=reports[0].kept_nbytes,
        predicted_nbytes=resident + reports[0].memory.peak_nbytes,
        measured_nbytes=resident + measured.peak_nbytes,
    )


def violations(rows: Iterable[BudgetedStep]) -> list[str]:
    """Say which budgets did not hold and where a smaller one gave a larger peak, a line each."""
    found = []
    for (model, inner, kind), group in groupby(rows, key=lambda r: (r.model, r.inner, r.kind)):
        steps = list(group)
        found += [
            f"{model} {inner}: {step.measured_nbytes} bytes exceed {step.budget_nbytes} "
            f"({step.measured_nbytes / (step.budget_nbytes or 1) - 1:+.2%})"
            for step in steps
            if step.exceeds
        ]
        found += [
            f"{model} {inner}: the peak rises from {kind} {before.budget:g} to {after.budget:g} "
            f"({after.measured_nbytes / before.measured_nbytes - 1:+.2%})"
            for before, after in pairwise(steps)
            if after.is_reached and after.measured_nbytes > before.measured_nbytes * (1 + 1 / SEEDS)
        ]
    return found


def results_table(rows: Sequence[BudgetedStep]) -> Table:
    """Render measured peaks, a line a model and kind of budget, as shares of the exact plan's."""
    table = Table(title="measured peak, of the exact plan's", title_justify="left")
    for heading in ("model", "inner", "budget: peak (* out of reach)"):
        table.add_column(heading, overflow="fold")
    exact = {(r.model, r.inner): r.measured_nbytes for r in reversed(rows) if r.kind == "share"}
    for (model, inner, kind), group in groupby(rows, key=lambda r: (r.model, r.inner, r.kind)):
        cells = [
            f"{row.budget:g}: {row.measured_nbytes / exact[model, inner]:.3f}"
            f"{'' if row.is_reached else '*'}"
            for row in group
        ]
        table.add_row(model, inner, f"{kind} " + ", ".join(cells))
    return table


@click.command(context_settings={"show_default": True})
@click.argument("models", nargs=-1)
@click.option("--inner", "inners", type=click.Choice(INNERS), multiple=True, default=INNERS)
@click.option(
    "--share",
    "shares",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    multiple=True,
    default=SHARES,
    help="Of what torch keeps; falling from 1, the exact plan. May be given several times.",
)
@click.option(
    "--peak-share",
    "peak_shares",
    type=click.FloatRange(0.0, min_open=True),
    multiple=True,
    default=PEAK_SHARES,
    help="Bytes, as a share of the exact plan's peak; falling. May be given several times.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(
    models: tuple[str, ...],
    inners: tuple[str, ...],
    shares: tuple[float, ...],
    peak_shares: tuple[float, ...],
    json_path: Path | None,
) -> None:
    """Measure MODELS (default: nine of the zoo's) under falling budgets."""
    if shares[0] != 1.0:
        text = f"expected 1 first, the exact plan, got {shares[0]:g}"
        raise click.BadParameter(text, param_hint="--share")
    for option, given in (("--share", shares), ("--peak-share", peak_shares)):
        if not all(after < before for before, after in pairwise((math.inf, *given))):
            text = f"expected falling numbers, got {', '.join(f'{b:g}' for b in given)}"
            raise click.BadParameter(text, param_hint=option)
    console = Console(width=140)
    rows: list[BudgetedStep] = []
    for name in models or MODELS:
        for inner in inners:
            rows += budgeted_steps(name, inner, shares, peak_shares)
            console.print(f"{name} {inner}: {len(violations(rows))} violations so far")
            if json_path is not None:  # after each, since a run over all takes long
                json_path.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    console.print(results_table(rows))
    found = violations(rows)
    console.print(f"{len(rows)} steps, {len(found)} violations", *found, sep="\n", highlight=False)


if __name__ == "__main__":
    main()
