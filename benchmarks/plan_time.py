"""Time of planning, pass by pass, as a share of the time to compile the same model by Inductor.

Run as ``python -m benchmarks.plan_time``. Each model is compiled by ``backend="inductor"`` with an
empty cache; that is the whole. Then ``xconv`` plans it, without a budget, within a share, and
within bytes, and every second spent in its partition function is charged to a pass. Planning is
what the partition function takes less what torch's own partitioner took under ``inductor``. Without
a budget and within a share compilation under ``xconv`` ends behind the partition function: what
follows generates code. Within bytes it goes on to its end, where the peak is seen: what reading
the schedules takes is charged too, and all of a compilation that had to be given up. Python's
collector is off while planning; a pass of it that is due afterwards is not counted.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import click
import torch
from functorch.compile import min_cut_rematerialization_partition
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import models_zoo
from benchmarks.measure import timed_us
from benchmarks.saved_bytes import loss_of
from benchmarks.step_time import empty_cache
from demos.devices import device_text
from xconv_fx import backend
from xconv_fx._torch import Partitioner
from xconv_fx.audit import Report
from xconv_fx.partition_function import PartitionFunction

# Batch and image side of each model; the zoo's defaults for a model that is not named.
MODELS = MappingProxyType({"resnet50": (4, 224), "densenet121": (4, 64), "unet3d": (4, 32)})
_DEFAULT_BATCH = 4

# Each pass and the functions that are it, as the module that calls them names them.
PASSES: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "expose": (("passes.pipeline", "expose"),),
        "estimate": (("passes.pipeline", "estimate_costs"),),
        "plan": (
            ("passes.pipeline", "make_plan"),
            ("xconv_fx.budget", "plan_within"),
            ("xconv_fx.budget", "plan_within_peak"),
        ),
        "forecast": (("xconv_fx.partition_function", "make_forecast"),),
        "sketch": (("passes.pipeline", "apply_plan"),),
        "partition": (("passes.pipeline", "partition"),),
        "verify": tuple(
            ("passes.pipeline", f"verify_{what}") for what in ("joint", "planned", "partition")
        ),
        "lower": (("passes.pipeline", "lower"),),
        "memory": (
            ("xconv_fx.partition_function", "predict_step_memory"),
            ("xconv_fx.memory", "schedule_of"),
        ),
        "audit": (("xconv_fx.audit", "make_report"), ("xconv_fx.partition_function", "_announce")),
        "exact": tuple(
            ("xconv_fx.partition_function", name) for name in ("partition_exact", "stock_nbytes")
        ),
    }
)
# What the partition function takes outside of all passes.
OTHER = "other"
# Compilations that were given up because they did not keep to the budget, all but their passes.
DISCARDED = "discarded"
PARTS = (*PASSES, OTHER, DISCARDED)

# Compilation around the partition function.
_COMPILATION = "compilation"

_SHARE = 0.1
# A peak that the default plan has room under and the exact one has not, so that the search runs.
_PEAK_SHARE = 1.25


class _PlannedError(BaseException):
    """Ends a compilation behind the partition function; no ``Exception``, so nothing handles it."""


@dataclass(frozen=True)
class PlanTime:
    """Planning of one model.

    Attributes:
        model: its name.
        input_shape: shape of the batch.
        budget: what it was planned for, in words.
        inductor_s: seconds that Inductor alone takes to compile the model.
        stock_s: of those, seconds in torch's own partitioner.
        passes_s: seconds by pass, ``other`` and ``discarded`` included.
        num_plans: plans that were carried out; more than one where a budget has to be searched.
    """

    model: str
    input_shape: tuple[int, ...]
    budget: str
    inductor_s: float
    stock_s: float
    passes_s: dict[str, float]
    num_plans: int

    @property
    def planning_s(self) -> float:
        """Seconds that all of it takes above torch's own partitioner."""
        return sum(self.passes_s.values()) - self.stock_s

    @property
    def share(self) -> float:
        """Planning as a share of the compile time under ``inductor``."""
        return self.planning_s / self.inductor_s


@dataclass
class Stopwatch:
    """Charges time to the innermost of the functions that are running.

    Attributes:
        own_s: seconds by name.
        calls: number of calls by name.
    """

    own_s: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _running: list[str] = field(default_factory=list)
    _since: float = 0.0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is charged to ``name``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._running.append(name)
            self.calls[name] = self.calls.get(name, 0) + 1
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._running.pop()

        return run

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.own_s[name] = self.own_s.get(name, 0.0) + now - self._since
        self._since = now


def plan_times(name: str, batch_size: int | None = None, size: int | None = None) -> list[PlanTime]:
    """Measure one model: no budget, a share of the bytes, and bytes.

    Args:
        name: a model of the zoo that compiles to one graph.
        batch_size: samples in the batch; None for the model's default.
        size: side of the images; None for the model's default.

    Raises:
        RuntimeError: if the passes failed on the model.
    """
    torch.manual_seed(0)
    default_batch, default_size = MODELS.get(name, (_DEFAULT_BATCH, None))
    model = models_zoo.build(name)
    inputs = models_zoo.example_input(name, batch_size or default_batch, size=size or default_size)
    inductor_s, stock_s = inductor_time(model, inputs)
    rows: list[PlanTime] = []

    def add(budget: str, memory_budget: float | int | None) -> Report:
        watch, report = planning(model, inputs, memory_budget)
        passes_s = {part: watch.own_s.get(part, 0.0) for part in PARTS}
        shape, num_plans = tuple(inputs[0].shape), watch.calls["sketch"]
        rows.append(PlanTime(name, shape, budget, inductor_s, stock_s, passes_s, num_plans))
        return report

    default = add("none", None)
    add(f"share {_SHARE:g}", _SHARE)
    held = [*model.parameters(), *model.buffers(), *inputs]
    peak_nbytes = int(_PEAK_SHARE * (default.predicted_peak_nbytes or 0))
    budget_bytes = sum(t.nbytes for t in held) + peak_nbytes
    add(f"{budget_bytes / 1e6:.0f} MB", budget_bytes)
    return rows


def inductor_time(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Compile a training step by Inductor with an empty cache.

    Returns:
        Seconds of the first step above those of a later one, and of these the seconds in torch's
        own partitioner.
    """
    torch.compiler.reset()
    watch = Stopwatch()
    partitioner = Partitioner(watch.timed("stock", min_cut_rematerialization_partition), "stock")
    options: dict[str, Any] = {"custom_partitioner_fn": partitioner}
    compiled = torch.compile(model, backend="inductor", options=options)

    def step() -> None:
        loss_of(compiled(*inputs)).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    with empty_cache():
        first_us, later_us = (timed_us(step, torch.device("cpu")) for _ in range(2))
    return (first_us - later_us) / 1e6, watch.own_s["stock"]


def planning(
    model: nn.Module, inputs: tuple[Tensor, ...], memory_budget: float | int | None
) -> tuple[Stopwatch, Report]:
    """Plan a model under ``xconv``, and compile it where a budget in bytes asks for that.

    Args:
        model: compiles to one graph.
        inputs: its batch.
        memory_budget: see :class:`xconv_fx.options.Options`; where it is out of reach the least
            is planned.

    Returns:
        What planning took, by pass, and the report.

    Raises:
        RuntimeError: if the passes failed on the model.
    """
    torch.compiler.reset()
    watch = Stopwatch()
    whole = watch.timed(OTHER, PartitionFunction.__call__)
    compilation = watch.timed(_COMPILATION, backend._compile)
    reports: list[Report | None] = []

    def plan(partition_function: Any, *args: Any, **kwargs: Any) -> Any:
        split = whole(partition_function, *args, **kwargs)
        reports.append(partition_function.graphs[-1].report)
        if not isinstance(memory_budget, int):
            raise _PlannedError
        return split

    def compile_again(*args: Any) -> Any:
        watch.own_s[DISCARDED] = watch.own_s.get(_COMPILATION, 0.0)
        return compilation(*args)

    options: dict[str, Any] = {"strict": False, "memory_budget": memory_budget}
    with (
        _timed_passes(watch),
        empty_cache(),
        warnings.catch_warnings(),
        contextlib.suppress(_PlannedError),
        mock.patch.object(PartitionFunction, "__call__", plan),
        mock.patch.object(backend, "_compile", compile_again),
    ):
        warnings.filterwarnings("ignore", "xconv: memory_budget")
        torch.compile(model, backend=backend.xconv, options=options)(*inputs)
    report = reports[-1] if reports else None
    if report is None or report.exact is not None:
        reason = "it never reached the partitioner" if report is None else report.exact
        raise RuntimeError(f"nothing was planned for {type(model).__name__}: {reason}")
    return watch, report


@contextlib.contextmanager
def _timed_passes(watch: Stopwatch) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for part, functions in PASSES.items():
            for module, name in functions:
                owner = importlib.import_module(module)
                timed = watch.timed(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
        yield


def results_table(rows: list[PlanTime]) -> Table:
    """Render rows: seconds by pass, and the share of the whole."""
    table = Table(title="seconds of planning by pass", title_justify="left")
    for heading in ("model", "budget"):
        table.add_column(heading, no_wrap=True)
    headings = ("plans", *PARTS, "stock", "planning", "inductor", "share")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        parts = [row.passes_s[part] for part in PARTS]
        seconds = [*parts, row.stock_s, row.planning_s, row.inductor_s]
        table.add_row(
            row.model,
            row.budget,
            str(row.num_plans),
            *(f"{s:.2f}" for s in seconds),
            f"{row.share:.1%}",
        )
    return table


@click.command()
@click.option(
    "--model",
    "models",
    type=click.Choice(models_zoo.names()),
    multiple=True,
    default=tuple(MODELS),
    show_default=True,
    help="May be given several times.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=None)
@click.option("--size", type=click.IntRange(min=1), default=None, help="Image side.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(
    models: tuple[str, ...], batch_size: int | None, size: int | None, json_path: Path | None
) -> None:
    """Time planning beside compilation by Inductor."""
    console = Console(width=200)
    plan_times("cifar_net")  # the first compilation of a process imports and sets up for all
    rows: list[PlanTime] = []
    for name in models:
        rows += plan_times(name, batch_size, size)
        if json_path is not None:  # after each, since a run over all models takes long
            json_path.write_text(json.dumps([_as_json(row) for row in rows], indent=2) + "\n")
    console.print(results_table(rows))
    console.print(device_text("cpu"))


def _as_json(row: PlanTime) -> dict[str, Any]:
    return {**asdict(row), "planning_s": row.planning_s, "share": row.share}


if __name__ == "__main__":
    main()
