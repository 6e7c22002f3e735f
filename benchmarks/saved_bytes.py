"""Bytes kept for backward, model by model: eager, torch's partitions, and xconv.

Run as ``python -m benchmarks.saved_bytes``. One joint graph a model gives all figures but eager's:
what torch's default partition keeps of it (as ``backend="inductor"`` does), what it keeps at its
own ``activation_memory_budget``, recomputing the rest, and what xconv keeps at several prices of
noise; graph inputs, parameters and buffers are left out of all. ``--third-party`` counts the models
of ``benchmarks.third_party``. ``--measure`` also compiles with Inductor and reads the CPU
allocator's own record of a step, weights' copies and all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import models_zoo
import xconv_fx
from benchmarks import third_party
from benchmarks.measure import StepMemory, saved_nbytes, step_memory
from xconv_fx.audit import Report
from xconv_fx.backend import xconv
from xconv_fx.options import DEFAULT_NOISE_PRICE, parse_options

# Batch and image size of each model; the zoo's defaults where it is not named.
_SIZES = {"resnet18": (4, 224), "resnet50": (4, 224), "vgg16": (4, 224), "vgg11": (4, 224)}
_DEFAULT_BATCH = 4

# Of torch's activation_memory_budget; the same that anchor what its users can have.
BUDGETS = (0.7, 0.5, 0.3)
NOISE_PRICES = (DEFAULT_NOISE_PRICE, DEFAULT_NOISE_PRICE / 10, DEFAULT_NOISE_PRICE / 100)
_NUM_RAW_VALUES = 8


@dataclass(frozen=True)
class RawValue:
    """One value that xconv keeps as it is."""

    module: str
    name: str
    shape: tuple[int | str, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Row:
    """Bytes kept by one model.

    Attributes:
        model: Its name.
        input_shape: Shape of the batch.
        eager_nbytes: Kept by eager autograd.
        stock_nbytes: Kept by torch's default partition.
        budget_nbytes: By torch's budget, kept by its partition under it.
        xconv_nbytes: By price of noise, kept by xconv; the first is the one that the fields below
            and the measured memory speak of.
        num_sketched: Convolutions whose weight gradient is estimated.
        num_exact: Convolutions left exact.
        raw_nbytes: Of what xconv keeps, that kept as it is.
        raw_values: The largest of those, the largest first.
        stock_memory: Of a step with torch's own backend; None where not measured.
        xconv_memory: Of a step with xconv; None where not measured.
    """

    model: str
    input_shape: tuple[int, ...]
    eager_nbytes: int
    stock_nbytes: int
    budget_nbytes: dict[float, int]
    xconv_nbytes: dict[float, int]
    num_sketched: int
    num_exact: int
    raw_nbytes: int
    raw_values: tuple[RawValue, ...]
    stock_memory: StepMemory | None = None
    xconv_memory: StepMemory | None = None

    def ratio(self, nbytes: int) -> float:
        """Returns bytes as a share of what torch's default partition keeps."""
        return nbytes / self.stock_nbytes

    @property
    def default_nbytes(self) -> int:
        """Bytes that xconv keeps at the first price of noise."""
        return next(iter(self.xconv_nbytes.values()))


def loss_of(output: Any) -> Tensor:
    """Return a scalar that depends on every element of a model's output, a dict of tensors too."""
    tensors = list(output.values()) if isinstance(output, Mapping) else output
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    return torch.stack([t.float().square().mean() for t in tensors]).sum()


def count(
    name: str,
    batch_size: int | None,
    size: int | None,
    noise_prices: Sequence[float] = NOISE_PRICES,
    budgets: Sequence[float] = BUDGETS,
) -> Row:
    """Count what a model keeps, without generating code.

    Args:
        name: A model of the zoo or of ``benchmarks.third_party``.
        batch_size: Samples in the batch; None for the model's default.
        size: Image side; None for the model's default.
        noise_prices: Prices of noise to plan with, at least one.
        budgets: Budgets of torch's own to partition with.
    """
    model, inputs = _build(name, batch_size, size)
    held = [*model.parameters(), *model.buffers(), *inputs]
    reports = {price: _reports(model, inputs, price) for price in noise_prices}
    first = reports[noise_prices[0]]
    raw = [row for report in first for row in report.values if row.decision == "keep"]
    raw.sort(key=lambda row: -row.kept_nbytes)
    return Row(
        model=name,
        input_shape=tuple(inputs[0].shape),
        eager_nbytes=saved_nbytes(lambda: loss_of(model(*inputs)), exclude=held),
        stock_nbytes=sum(report.stock_nbytes for report in first),
        budget_nbytes={b: sum(report.stock_nbytes_at(b) for report in first) for b in budgets},
        xconv_nbytes={
            price: sum(report.kept_nbytes for report in reports[price]) for price in noise_prices
        },
        num_sketched=sum(report.num_sketched_convolutions for report in first),
        num_exact=sum(len(report.exact_convolutions) for report in first),
        raw_nbytes=sum(row.kept_nbytes for row in raw),
        raw_values=tuple(
            RawValue(row.module, row.name, row.shape, str(row.dtype), row.kept_nbytes)
            for row in raw[:_NUM_RAW_VALUES]
        ),
    )


def _reports(
    model: nn.Module, inputs: tuple[Tensor, ...], noise_price: float
) -> tuple[Report, ...]:
    """Trace a model's joint graphs and return what xconv makes of them."""
    torch.compiler.reset()
    options: dict[str, Any] = {"noise_price": noise_price, "inner": "aot_eager"}
    loss_of(torch.compile(model, backend=xconv, options=options)(*inputs))
    reports: tuple[Report, ...] = xconv_fx.all_reports()
    return reports


def measure(
    name: str, batch_size: int | None, size: int | None, options: dict[str, Any] | None
) -> StepMemory:
    """Measure a step compiled with Inductor; without options by torch's own backend."""
    model, inputs = _build(name, batch_size, size)
    torch.compiler.reset()
    if options is None:
        compiled: Callable[..., Any] = torch.compile(model, backend="inductor")
    else:
        compiled = torch.compile(model, backend=xconv, options=options)

    def forward() -> Tensor:
        return loss_of(compiled(*inputs))

    for _ in range(2):
        forward().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
    return step_memory(forward)


def results_table(rows: Sequence[Row]) -> Table:
    """Render rows that were counted at the same prices and budgets, as ratios to stock."""
    table = Table(title="bytes kept for backward, ratios to inductor", title_justify="left")
    for heading in ("model", "input"):
        table.add_column(heading, no_wrap=True)
    headings = ["eager MB", "inductor MB", "xconv MB"]
    headings += [f"budget {budget:g}" for budget in rows[0].budget_nbytes]
    headings += [f"xconv {price:g}" for price in rows[0].xconv_nbytes]
    headings += ["raw", "sketched", "exact"]
    if any(row.stock_memory for row in rows):
        headings += ["live after forward, measured", "peak of a step, measured"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    """Return the cells of a model's row."""
    megabytes = (row.eager_nbytes, row.stock_nbytes, row.default_nbytes)
    ratios = [*row.budget_nbytes.values(), *row.xconv_nbytes.values(), row.raw_nbytes]
    cells = [
        row.model,
        "x".join(map(str, row.input_shape)),
        *(f"{nbytes / 1e6:.2f}" for nbytes in megabytes),
        *(f"{row.ratio(nbytes):.3f}" for nbytes in ratios),
        str(row.num_sketched),
        str(row.num_exact),
    ]
    if row.stock_memory and row.xconv_memory:
        ours, stock = row.xconv_memory, row.stock_memory
        live = ours.live_after_forward_nbytes / stock.live_after_forward_nbytes
        cells += [f"{live:.3f}", f"{ours.peak_nbytes / stock.peak_nbytes:.3f}"]
    return cells


def _build(
    name: str, batch_size: int | None, size: int | None
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    if name in third_party.names():
        return third_party.build(name, batch_size, size)
    default_batch, default_size = _SIZES.get(name, (_DEFAULT_BATCH, None))
    inputs = models_zoo.example_input(name, batch_size or default_batch, size=size or default_size)
    return models_zoo.build(name), inputs


@click.command()
@click.argument("models", nargs=-1)
@click.option("--third-party", is_flag=True, help="Count torchvision's and timm's models.")
@click.option("--batch-size", type=click.IntRange(min=1), default=None)
@click.option("--size", type=click.IntRange(min=1), default=None, help="Image side.")
@click.option(
    "--noise-price",
    "noise_prices",
    type=float,
    multiple=True,
    default=NOISE_PRICES,
    show_default=True,
    help="The plan's lambda; may be given several times.",
)
@click.option("--measure", "measured", is_flag=True, help="Also compile with Inductor and measure.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(
    models: tuple[str, ...],
    third_party: bool,
    batch_size: int | None,
    size: int | None,
    noise_prices: tuple[float, ...],
    measured: bool,
    json_path: Path | None,
) -> None:
    """Count the bytes that MODELS keep for backward (default: all of the zoo's)."""
    for price in noise_prices:
        parse_options({"noise_price": price})
    console = Console(width=200)
    rows: list[Row] = []
    for name in models or _default_models(third_party):
        row = count(name, batch_size, size, noise_prices)
        if measured:
            stock = measure(name, batch_size, size, None)
            ours = measure(name, batch_size, size, {"noise_price": noise_prices[0]})
            row = replace(row, stock_memory=stock, xconv_memory=ours)
        rows.append(row)
        console.print(f"{row.model}: {row.ratio(row.default_nbytes):.3f}")
        if json_path is not None:  # after each, since a run over all models takes long
            json_path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    console.print(results_table(rows))
    console.print(f"torch {torch.__version__}, CPU, fp32")


def _default_models(third_party_models: bool) -> list[str]:
    return third_party.names() if third_party_models else list(models_zoo.names())


if __name__ == "__main__":
    main()
