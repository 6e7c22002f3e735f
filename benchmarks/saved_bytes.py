"""Bytes kept for backward, model by model: eager, torch's partition, and xconv.

Run as ``python -m benchmarks.saved_bytes``. One joint graph a model gives both figures: what
torch's default partition keeps of it (as ``backend="inductor"`` does) and what xconv keeps;
graph inputs, parameters and buffers are left out of both. ``--measure`` also compiles with
Inductor and reads the CPU allocator's own record of a step, weights' copies and all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
from benchmarks.measure import StepMemory, saved_nbytes, step_memory
from xconv_fx.backend import xconv
from xconv_fx.options import parse_options

# Batch and image size of each model; the zoo's defaults where it is not named.
_SIZES = {"resnet18": (4, 224), "resnet50": (4, 224), "vgg16": (4, 224), "vgg11": (4, 224)}
_DEFAULT_BATCH = 4


@dataclass(frozen=True)
class Row:
    """Bytes kept by one model, in bytes; None where not measured."""

    model: str
    input_shape: tuple[int, ...]
    eager_nbytes: int
    stock_nbytes: int
    xconv_nbytes: int
    num_sketched: int
    num_exact: int
    stock_memory: StepMemory | None = None
    xconv_memory: StepMemory | None = None


def loss_of(output: Any) -> Tensor:
    """Return a scalar that depends on every element of a model's output."""
    tensors = [output] if isinstance(output, Tensor) else list(output)
    return torch.stack([t.float().square().mean() for t in tensors]).sum()


def count(name: str, batch_size: int, size: int | None, options: dict[str, Any]) -> Row:
    """Count what a model keeps, without generating code."""
    model, inputs = _build(name, batch_size, size)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=xconv, options={**options, "inner": "aot_eager"})
    loss_of(compiled(*inputs))
    reports = xconv_fx.all_reports()
    held = [*model.parameters(), *model.buffers(), *inputs]
    return Row(
        model=name,
        input_shape=tuple(inputs[0].shape),
        eager_nbytes=saved_nbytes(lambda: loss_of(model(*inputs)), exclude=held),
        stock_nbytes=sum(report.stock_nbytes for report in reports),
        xconv_nbytes=sum(report.kept_nbytes for report in reports),
        num_sketched=sum(report.num_sketched_convolutions for report in reports),
        num_exact=sum(len(report.exact_convolutions) for report in reports),
    )


def measure(
    name: str, batch_size: int, size: int | None, options: dict[str, Any] | None
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


def results_table(rows: list[Row]) -> Table:
    """Render the rows."""
    table = Table(title="bytes kept for backward", title_justify="left")
    table.add_column("model")
    table.add_column("input")
    headings = ["eager MB", "inductor MB", "xconv MB", "xconv / inductor", "sketched", "exact"]
    measured = any(row.stock_memory for row in rows)
    if measured:
        headings += ["live after forward, measured ratio", "peak of a step, measured ratio"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [
            row.model,
            "x".join(map(str, row.input_shape)),
            *(f"{n / 1e6:.2f}" for n in (row.eager_nbytes, row.stock_nbytes, row.xconv_nbytes)),
            f"{row.xconv_nbytes / row.stock_nbytes:.3f}",
            str(row.num_sketched),
            str(row.num_exact),
        ]
        if row.stock_memory and row.xconv_memory:
            ours, stock = row.xconv_memory, row.stock_memory
            live = ours.live_after_forward_nbytes / stock.live_after_forward_nbytes
            cells += [f"{live:.3f}", f"{ours.peak_nbytes / stock.peak_nbytes:.3f}"]
        table.add_row(*cells)
    return table


def _build(name: str, batch_size: int, size: int | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = models_zoo.build(name)
    return model, models_zoo.example_input(name, batch_size, size=size)


@click.command()
@click.argument("models", nargs=-1)
@click.option("--batch-size", type=click.IntRange(min=1), default=None)
@click.option("--size", type=click.IntRange(min=1), default=None, help="Image side.")
@click.option("--noise-price", type=float, default=None, help="The plan's lambda.")
@click.option("--measure", "measured", is_flag=True, help="Also compile with Inductor and measure.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(
    models: tuple[str, ...],
    batch_size: int | None,
    size: int | None,
    noise_price: float | None,
    measured: bool,
    json_path: Path | None,
) -> None:
    """Count the bytes that MODELS of the zoo (default: all) keep for backward."""
    options = {} if noise_price is None else {"noise_price": noise_price}
    parse_options(options)
    console = Console(width=160)
    rows = []
    for name in models or models_zoo.names():
        default_batch, default_size = _SIZES.get(name, (_DEFAULT_BATCH, None))
        chosen = (name, batch_size or default_batch, size or default_size)
        row = count(*chosen, options)
        if measured:
            stock, ours = measure(*chosen, None), measure(*chosen, options)
            row = replace(row, stock_memory=stock, xconv_memory=ours)
        rows.append(row)
        console.print(f"{row.model}: {row.xconv_nbytes / row.stock_nbytes:.3f}")
    console.print(results_table(rows))
    console.print(f"torch {torch.__version__}, CPU, fp32, options {options or 'default'}")
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
