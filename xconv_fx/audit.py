"""*audit*: what was kept, packed, sketched and left exact in a compiled graph, and why.

Comes in: the passes' outcome for one joint graph. Goes out: a frozen :class:`Report`, the
last of which :func:`last_report` returns, and a log under the logger ``xconv_fx``.
"""

from __future__ import annotations

import functools
import io
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from passes import Action, Decision, Outcome, PlanRecord, Rules, ValueCost, record_plan
from passes.joint import JointGraph, tensor_nbytes, tensor_val
from passes.liveness import MemoryEstimate
from passes.partition import Partition
from passes.provenance import module_of, source_of
from xconv_fx import _torch

log = logging.getLogger("xconv_fx")

# As many graphs as a model with graph breaks and recompiles is likely to have.
_MAX_REPORTS = 64
_reports: deque[Report] = deque(maxlen=_MAX_REPORTS)


@dataclass(frozen=True)
class ValueRow:
    """One value that the backward pass keeps.

    Attributes:
        name: its name in the joint graph.
        module: path of the module that computes it, as in ``model.named_modules()``.
        source: file, line and text of the model's source.
        shape: its shape; symbolic sizes as their names.
        dtype: its dtype.
        decision: ``keep``, ``pack``, ``sketch``, ``derive``, or ``recompute`` of what is not cheap
            to compute again.
        codec: name of the codec; None when kept as it is.
        nbytes: bytes before; None where the size is unknown when the graph is compiled.
        kept_nbytes: bytes after.
        noise: relative squared error of the value that the backward reads: modelled, or measured
            where a calibration covers the graph.
    """

    name: str
    module: str
    source: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    decision: str
    codec: str | None
    nbytes: int | None
    kept_nbytes: int
    noise: float


@dataclass(frozen=True)
class ExactRow:
    """One convolution whose weight gradient stays exact, and why."""

    name: str
    module: str
    source: str
    dtype: torch.dtype
    reason: str


@dataclass(frozen=True)
class Report:
    """What the backend did to one graph.

    Attributes:
        values: one row for each value kept between forward and backward, the seeds left out, then
            one for each that a weight gradient or norm reads derived from the sketch of another,
            and one for each convolution, product or reduction that is computed again.
        exact_convolutions: the convolutions that were left exact.
        num_sketched_convolutions: convolutions whose weight gradient is estimated.
        kept_nbytes: bytes kept between forward and backward; parameters, buffers and batch data
            left out.
        num_recomputed: values recomputed in the backward.
        notes: remarks about the graph as a whole.
        exact: why the graph was compiled exactly; None if it was not.
        plan: the plan, to be saved or compared; None for a graph compiled exactly.
        recomputed_time: modelled time of the recomputed convolutions, products and reductions, as a
            share of a step's.
    """

    values: tuple[ValueRow, ...]
    exact_convolutions: tuple[ExactRow, ...]
    num_sketched_convolutions: int
    kept_nbytes: int
    num_recomputed: int
    notes: tuple[str, ...]
    exact: str | None
    _count_stock: Callable[[], int] = field(repr=False, compare=False)
    _predict_memory: Callable[[], MemoryEstimate | None] = field(
        repr=False, compare=False, default=lambda: None
    )
    plan: PlanRecord | None = field(repr=False, default=None)
    recomputed_time: float = 0.0

    @functools.cached_property
    def memory(self) -> MemoryEstimate | None:
        """Predicted memory of a step of this graph; None where it could not be predicted.

        Read off the schedules that Inductor made when it compiled the graphs; where it did not,
        it schedules them once more, on first use.
        """
        return self._predict_memory()

    @functools.cached_property
    def stock_nbytes(self) -> int:
        """Bytes that torch's default partition of the same graph keeps, counted alike.

        Has torch cut the graph once more, on first use.
        """
        return self._count_stock()

    def stock_nbytes_at(self, memory_budget: float) -> int:
        """Bytes that torch's partition of the same graph keeps at an activation memory budget.

        Torch recomputes to stay within it, exactly. Has torch cut the graph once more; a graph that
        was compiled exactly is not cut again.

        Args:
            memory_budget: torch's ``activation_memory_budget``, from 0 to 1.
        """
        with _torch.activation_memory_budget(memory_budget):
            return self._count_stock()

    @property
    def predicted_peak_nbytes(self) -> int | None:
        """Predicted peak of a step above what is allocated before it; None if not predicted."""
        return None if self.memory is None else self.memory.peak_nbytes

    @property
    def ratio(self) -> float:
        """Bytes kept, as a share of what the stock partition keeps (1.0 if that is 0)."""
        return self.kept_nbytes / self.stock_nbytes if self.stock_nbytes else 1.0

    def __str__(self) -> str:
        """Render the report as plain text."""
        return plain_text(self.print)

    def print(self, console: Console | None = None) -> None:
        """Print the report as tables."""
        console = console or Console()
        console.print(_value_table(self.values))
        if self.exact_convolutions:
            console.print(_exact_table(self.exact_convolutions))
        for line in self.summary():
            console.print(line, highlight=False, markup=False)

    def summary(self) -> list[str]:
        """The totals and notes, a line each."""
        lines = [
            f"kept for backward: {format_nbytes(self.kept_nbytes)}, stock partition "
            f"{format_nbytes(self.stock_nbytes)}, ratio {self.ratio:.3f}",
            f"convolutions: {self.num_sketched_convolutions} sketched, "
            f"{len(self.exact_convolutions)} exact",
            f"values recomputed: {self.num_recomputed}, about {self.recomputed_time:.1%} of the "
            "time of a step",
        ]
        if self.memory is not None:
            lines.append(_memory_line(self.memory))
        if self.exact is not None:
            lines.append(f"compiled exactly: {self.exact}")
        return [*lines, *(f"note: {note}" for note in self.notes)]


def last_report() -> Report | None:
    """Return the report of the graph compiled last, or None if there is none."""
    return _reports[-1] if _reports else None


def all_reports() -> tuple[Report, ...]:
    """Return the reports of all graphs compiled since the last ``torch.compiler.reset()``."""
    return tuple(_reports)


def clear_reports() -> None:
    """Forget all reports."""
    _reports.clear()


def annotate_report(report: Report, note: str) -> Report:
    """Return a report with one more note, and put it in the place of one that was published."""
    noted = replace(report, notes=(*report.notes, note))
    for i, known in enumerate(_reports):
        if known is report:
            _reports[i] = noted
    return noted


def publish(report: Report) -> None:
    """Make a report the last one, and log it."""
    _reports.append(report)
    if report.exact is not None:
        log.info("compiled exactly: %s", report.exact)
    log.info("%d values kept, %d bytes", len(report.values), report.kept_nbytes)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("\n%s", report)


def make_report(
    outcome: Outcome,
    rules: Rules,
    count_stock: Callable[[], int],
    predict_memory: Callable[[], MemoryEstimate | None],
    *,
    remarks: Sequence[str] = (),
) -> Report:
    """Describe what the passes did to one joint graph.

    Args:
        outcome: what the passes produced.
        rules: the rules they were given.
        count_stock: counts the bytes that torch's default partition of the same graph keeps.
        predict_memory: predicts the memory of a step.
        remarks: put in front of the notes.
    """
    joint = outcome.exposed
    nodes = {node.name: node for node in joint.graph.nodes}
    made = (Action.RECOMPUTE, Action.DERIVE)
    kept = [
        d
        for d in outcome.plan.decisions
        if d.kept_nbytes or (d.nbytes is None and d.action not in made)
    ]
    read = {value.node for value in outcome.costs.values if value.linear_users}
    derived = [d for d in outcome.plan.decisions if d.action is Action.DERIVE and d.node in read]
    times = {v.node: v.recompute_time or 0.0 for v in outcome.costs.values}
    again = [d for d in outcome.plan.decisions if d.action is Action.RECOMPUTE and times[d.node]]
    computed = [d for d in again if tensor_val(nodes[d.node]) is not None]
    gradients = [n for n in joint.graph.nodes if n.target in rules.audited]
    exact = _exact_rows(joint, gradients, outcome, rules)
    unknown = sum(d.nbytes is None for d in kept)
    notes = [
        *remarks,
        *([] if gradients else ["no convolution weight gradient in this graph"]),
        *([f"{unknown} kept values of unknown size are not counted"] if unknown else []),
    ]
    return Report(
        values=tuple(_value_row(nodes[d.node], d) for d in [*kept, *derived, *computed]),
        exact_convolutions=(*exact, *_frozen_rows(joint, gradients)),
        num_sketched_convolutions=len(gradients) - len(exact),
        kept_nbytes=kept_nbytes(outcome.split.kept_nodes(), joint.held_inputs()),
        num_recomputed=outcome.plan.counts().get(Action.RECOMPUTE.value, 0),
        recomputed_time=sum(times[d.node] for d in again),
        notes=tuple(notes),
        exact=None,
        _predict_memory=predict_memory,
        _count_stock=count_stock,
        plan=record_plan(joint, outcome.plan),
    )


def make_exact_report(
    split: Partition,
    held_inputs: frozenset[str],
    reason: str,
    predict_memory: Callable[[], MemoryEstimate | None],
) -> Report:
    """Describe a graph that was compiled exactly, and why."""
    nbytes = kept_nbytes(split.kept_nodes(), held_inputs)
    return Report(
        values=(),
        exact_convolutions=(),
        num_sketched_convolutions=0,
        kept_nbytes=nbytes,
        num_recomputed=0,
        notes=(),
        exact=reason,
        _predict_memory=predict_memory,
        _count_stock=lambda: nbytes,
    )


def kept_nbytes(kept: Iterable[fx.Node], held_inputs: frozenset[str]) -> int:
    """Bytes of the tensors kept between forward and backward.

    Parameters, buffers and batch data are left out: they are alive anyway. An input that gets a
    gradient counts, being an activation of an earlier graph.

    Args:
        kept: nodes with fake tensors; one that is there twice counts once.
        held_inputs: names of what is left out.
    """
    vals = [tensor_val(node) for node in dict.fromkeys(kept) if node.name not in held_inputs]
    return sum(tensor_nbytes(val) or 0 for val in vals if val is not None)


def _value_row(node: fx.Node, decision: Decision) -> ValueRow:
    val = node.meta["val"]
    return ValueRow(
        name=node.name,
        module=module_of(node),
        source=source_of(node),
        shape=tuple(s if isinstance(s, int) else str(s) for s in val.shape),
        dtype=val.dtype,
        decision=decision.action.value,
        codec=None if decision.codec is None else decision.codec.name,
        nbytes=decision.nbytes,
        kept_nbytes=decision.kept_nbytes,
        noise=decision.noise,
    )


def _exact_rows(
    joint: JointGraph, gradients: Sequence[fx.Node], outcome: Outcome, rules: Rules
) -> list[ExactRow]:
    decisions = {d.node: d for d in outcome.plan.decisions}
    costs = {value.node: value for value in outcome.costs.values}
    backward = joint.backward_nodes()
    rows = []
    for gradient in gradients:
        for use in rules.linear[gradient.target]:
            value = gradient.args[use.arg]
            assert isinstance(value, fx.Node)
            reason = rules.asked_exact(gradient) or (
                "its input depends on the gradient itself"
                if value in backward
                else _why_exact(costs[value.name], decisions.get(value.name))
            )
            if reason is not None:
                rows.append(_exact_row(gradient, reason))
    return rows


def _why_exact(cost: ValueCost, decision: Decision | None) -> str | None:
    """Return why a linear use reads the exact value, or None if it reads a sketch."""
    if decision is not None and decision.action in (Action.SKETCH, Action.DERIVE):
        return None
    if cost.unsketchable is not None and (cost.nbytes or not cost.size_known):
        return f"{cost.node} cannot be sketched: {cost.unsketchable}"
    if cost.is_input and not cost.nbytes:
        return f"its input {cost.node} is an input of the graph, which the caller holds anyway"
    if decision is not None and decision.action is Action.RECOMPUTE:
        made_from = ", ".join(cost.inputs)
        return f"its input {cost.node} is rebuilt exactly in the backward, from {made_from}"
    if cost.raw_users:
        users = ", ".join(cost.raw_users)
        return f"its input {cost.node} is kept because the backward needs its values ({users})"
    return f"its input {cost.node} is kept: exact recomputation or a cheaper cut needs it"


def _exact_row(node: fx.Node, reason: str) -> ExactRow:
    return ExactRow(node.name, module_of(node), source_of(node), node.meta["val"].dtype, reason)


def _frozen_rows(joint: JointGraph, gradients: Sequence[fx.Node]) -> list[ExactRow]:
    """Forward convolutions that have no weight gradient."""
    trained = {gradient.meta.get("seq_nr") for gradient in gradients}
    backward = joint.backward_nodes()
    return [
        _exact_row(node, "its weight needs no gradient: nothing is kept for it")
        for node in joint.graph.find_nodes(
            op="call_function", target=torch.ops.aten.convolution.default
        )
        if node not in backward and node.meta.get("seq_nr") not in trained
    ]


def _value_table(rows: Sequence[ValueRow]) -> Table:
    table = Table(title="kept for backward", title_justify="left")
    for heading in ("module", "source", "value", "shape", "dtype", "decision", "codec"):
        table.add_column(heading, overflow="fold")
    for heading in ("before", "after", "noise"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.module,
            _short_source(row.source),
            row.name,
            "x".join(map(str, row.shape)),
            str(row.dtype).removeprefix("torch."),
            row.decision,
            row.codec or "",
            "unknown" if row.nbytes is None else format_nbytes(row.nbytes),
            format_nbytes(row.kept_nbytes),
            f"{row.noise:.2g}",
        )
    return table


def _exact_table(rows: Sequence[ExactRow]) -> Table:
    table = Table(title="convolutions left exact", title_justify="left")
    for heading in ("module", "source", "gradient", "dtype", "reason"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        dtype = str(row.dtype).removeprefix("torch.")
        table.add_row(row.module, _short_source(row.source), row.name, dtype, row.reason)
    return table


def _memory_line(memory: MemoryEstimate) -> str:
    line = (
        f"predicted step: live after forward {format_nbytes(memory.live_after_forward_nbytes)}, "
        f"peak {format_nbytes(memory.peak_nbytes)}"
    )
    if memory.peak is not None:
        line += f" in the {memory.peak.phase} at {memory.peak.kernel} ({memory.peak.module})"
    if memory.unknown:
        line += f"; without {len(memory.unknown)} values of unknown size"
    return line


def _short_source(source: str) -> str:
    location, _, _ = source.partition(": ")
    return location.rsplit("/", 1)[-1]


def plain_text(print_to: Callable[[Console], None]) -> str:
    """Return what a report prints, as text."""
    buffer = io.StringIO()
    print_to(Console(file=buffer, width=160))
    return buffer.getvalue()


def format_nbytes(nbytes: int) -> str:
    """Return bytes in MiB or KiB, as text."""
    return f"{nbytes / 2**20:.2f} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:.2f} KiB"
