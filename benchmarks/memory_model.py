"""The memory model against the allocator: predicted and measured bytes of whole training steps.

Run as ``python -m benchmarks.memory_model``. Every zoo model, at several batch sizes and with both
inner compilers, is compiled together with its loss, so that the step is one graph; what its report
predicts is set against the allocator's own record (`benchmarks.measure`): live between forward and
backward, and the peak. Both are above what is allocated before the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import models_zoo
import xconv_fx
from benchmarks.measure import step_memory
from benchmarks.saved_bytes import loss_of
from demos.devices import device_option, device_text
from xconv_fx.backend import xconv
from xconv_fx.options import INNERS

BATCH_SIZES = (2, 4, 8)
# Image sides where activations are not dwarfed by weights and compiling still takes longest.
_SIZES = {"resnet18": 64, "resnet50": 64, "vgg11": 64, "vgg11_bn": 64, "vgg16": 64}


@dataclass(frozen=True)
class Prediction:
    """One model at one batch size under one inner compiler, in bytes.

    Attributes:
        model: of the zoo.
        inner: the inner compiler.
        input_shape: of the batch.
        predicted_live_nbytes: predicted to be live between forward and backward.
        measured_live_nbytes: live there by the allocator's record.
        predicted_peak_nbytes: predicted peak of the step.
        measured_peak_nbytes: the allocator's peak of the step.
    """

    model: str
    inner: str
    input_shape: tuple[int, ...]
    predicted_live_nbytes: int
    measured_live_nbytes: int
    predicted_peak_nbytes: int
    measured_peak_nbytes: int

    @property
    def live_ratio(self) -> float:
        """Predicted over measured bytes between forward and backward."""
        return self.predicted_live_nbytes / self.measured_live_nbytes

    @property
    def peak_ratio(self) -> float:
        """Predicted over measured peak."""
        return self.predicted_peak_nbytes / self.measured_peak_nbytes


class WithLoss(nn.Module):
    """A model and a loss that depends on every element of its outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        return loss_of(self.model(*inputs))


def predict(name: str, batch_size: int, inner: str, device: str = "cpu") -> Prediction:
    """Predict and measure one step.

    Args:
        name: a model of the zoo.
        batch_size: samples.
        inner: the inner compiler.
        device: where the step runs, ``cpu`` or ``cuda``.

    Raises:
        RuntimeError: the model is compiled as several graphs, or a prediction failed.
    """
    torch.manual_seed(0)
    torch.compiler.reset()
    model = WithLoss(models_zoo.build(name)).to(device)
    inputs = models_zoo.example_input(name, batch_size, size=_SIZES.get(name), device=device)
    options: dict[str, Any] = {"inner": inner}
    compiled = torch.compile(model, backend=xconv, options=options)
    for _ in range(2):
        compiled(*inputs).backward()
        model.zero_grad(set_to_none=True)
    measured = step_memory(lambda: compiled(*inputs), device=device)
    reports = xconv_fx.all_reports()
    predicted = reports[0].memory
    if len(reports) != 1 or predicted is None:
        raise RuntimeError(
            f"{name}: expected one graph with a prediction, got {len(reports)} graphs; "
            "the logger xconv_fx says why a prediction failed"
        )
    return Prediction(
        model=name,
        inner=inner,
        input_shape=tuple(inputs[0].shape),
        predicted_live_nbytes=predicted.live_after_forward_nbytes,
        measured_live_nbytes=measured.live_after_forward_nbytes,
        predicted_peak_nbytes=predicted.peak_nbytes,
        measured_peak_nbytes=measured.peak_nbytes,
    )


def results_table(rows: Iterable[Prediction]) -> Table:
    """Render predictions, as multiples of what was measured."""
    table = Table(title="predicted over measured bytes of a step", title_justify="left")
    for heading in ("model", "inner", "input"):
        table.add_column(heading, no_wrap=True)
    for heading in ("live MB", "live", "peak MB", "peak"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            row.inner,
            "x".join(map(str, row.input_shape)),
            f"{row.measured_live_nbytes / 1e6:.2f}",
            f"{row.live_ratio:.3f}",
            f"{row.measured_peak_nbytes / 1e6:.2f}",
            f"{row.peak_ratio:.3f}",
        )
    return table


def summary(rows: Sequence[Prediction]) -> str:
    """Return the worst of all rows in a sentence."""
    live = max(rows, key=lambda row: abs(row.live_ratio - 1))
    low, high = (pick(rows, key=lambda row: row.peak_ratio) for pick in (min, max))
    return (
        f"{len(rows)} steps; furthest off between forward and backward: {live.live_ratio:.3f} "
        f"({live.model}, {live.inner}); peaks from {low.peak_ratio:.3f} ({low.model}, {low.inner}) "
        f"to {high.peak_ratio:.3f} ({high.model}, {high.inner}) of the measured ones"
    )


@click.command(context_settings={"show_default": True})
@click.argument("models", nargs=-1)
@click.option("--inner", "inners", type=click.Choice(INNERS), multiple=True, default=INNERS)
@click.option(
    "--batch-size", "batch_sizes", type=click.IntRange(1), multiple=True, default=BATCH_SIZES
)
@device_option
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(
    models: tuple[str, ...],
    inners: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    device: str,
    json_path: Path | None,
) -> None:
    """Set predicted against measured memory for MODELS (default: all of the zoo's)."""
    console = Console(width=120)
    rows: list[Prediction] = []
    for name in models or models_zoo.names():
        for inner in inners:
            for batch_size in batch_sizes:
                row = predict(name, batch_size, inner, device)
                rows.append(row)
                console.print(
                    f"{name} {inner} {batch_size}: live {row.live_ratio:.3f}, "
                    f"peak {row.peak_ratio:.3f}"
                )
                if json_path is not None:  # after each, since a run over all takes long
                    json_path.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    console.print(results_table(rows))
    console.print(summary(rows), highlight=False)
    console.print(device_text(device))


if __name__ == "__main__":
    main()
