"""*step report*: totals over the graphs of a step, which add up.

Comes in: the graphs of a :class:`xconv_fx.ledger.Step`. Goes out: a frozen :class:`StepReport`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from xconv_fx.audit import format_nbytes, plain_text
from xconv_fx.ledger import Step, StepGraph
from xconv_fx.step_memory import GraphMemory, resident_nbytes, step_peak_nbytes


@dataclass(frozen=True)
class GraphRow:
    """One graph of a step, all in bytes.

    Attributes:
        name: of the function that the graph was traced from.
        kind: ``sketched``, ``exact`` or ``inference``.
        kept_nbytes: kept for the backward, as in the graph's report.
        stock_nbytes: what torch's own partition of it keeps; nothing for inference.
        live_nbytes: predicted to be live between forward and backward: kept and returned.
        peak_nbytes: predicted peak of the graph by itself, above its inputs; None if it was not
            predicted, and what is kept and returned stands for it in the step's.
    """

    name: str
    kind: str
    kept_nbytes: int
    stock_nbytes: int
    live_nbytes: int
    peak_nbytes: int | None


@dataclass(frozen=True)
class StepReport:
    """Totals over the graphs of one compiled model, each in its latest version.

    Attributes:
        graphs: a row each, in the order of their forwards.
        resident_nbytes: parameters and buffers, each once, and the batch.
        predicted_peak_nbytes: of the step, ``resident_nbytes`` included, by the formula of
            :mod:`xconv_fx.step_memory`; what ``memory_budget`` in bytes bounds.
        limit_nbytes: that budget; None without one.
    """

    graphs: tuple[GraphRow, ...]
    resident_nbytes: int
    predicted_peak_nbytes: int
    limit_nbytes: int | None

    @property
    def kept_nbytes(self) -> int:
        """Bytes that all graphs keep for their backwards."""
        return sum(row.kept_nbytes for row in self.graphs)

    @property
    def stock_nbytes(self) -> int:
        """Bytes that torch's own partitions of the same graphs keep."""
        return sum(row.stock_nbytes for row in self.graphs)

    @property
    def excess_nbytes(self) -> int:
        """By how much the predicted peak is above the budget; 0 within it and without one."""
        limit = self.limit_nbytes
        return 0 if limit is None else max(0, self.predicted_peak_nbytes - limit)

    def __str__(self) -> str:
        """Render the report as plain text."""
        return plain_text(self.print)

    def print(self, console: Console | None = None) -> None:
        """Print a row a graph, and the totals."""
        console = console or Console()
        table = Table(title="graphs of a step", title_justify="left")
        for heading in ("graph", "kind"):
            table.add_column(heading, overflow="fold")
        for heading in ("kept", "stock partition", "kept and returned", "peak by itself"):
            table.add_column(heading, justify="right")
        for row in self.graphs:
            sizes = (row.kept_nbytes, row.stock_nbytes, row.live_nbytes)
            peak = "unknown" if row.peak_nbytes is None else format_nbytes(row.peak_nbytes)
            table.add_row(row.name, row.kind, *map(format_nbytes, sizes), peak)
        console.print(table)
        for line in self.summary():
            console.print(line, highlight=False, markup=False)

    def summary(self) -> list[str]:
        """The totals, a line each."""
        peak = (
            f"predicted peak of a step: {format_nbytes(self.predicted_peak_nbytes)}, of which "
            f"parameters, buffers and batch {format_nbytes(self.resident_nbytes)}"
        )
        if self.limit_nbytes is not None:
            peak += f"; memory_budget {format_nbytes(self.limit_nbytes)}"
        if self.excess_nbytes:
            peak += f", exceeded by {format_nbytes(self.excess_nbytes)}"
        unknown = sum(row.peak_nbytes is None for row in self.graphs)
        return [
            f"kept for backward: {format_nbytes(self.kept_nbytes)} in {len(self.graphs)} graphs, "
            f"stock partition {format_nbytes(self.stock_nbytes)}",
            peak,
            *([f"note: the peak of {unknown} graphs is not predicted"] if unknown else []),
        ]


def make_step_report(step: Step) -> StepReport:
    """Sum up a step; predicts the memory of graphs of which nobody asked for it yet."""
    memories = [graph.memory for graph in step.graphs]
    limits = [g.limit_nbytes for g in step.graphs if g.limit_nbytes is not None]
    return StepReport(
        graphs=tuple(map(_row, step.graphs, memories)),
        resident_nbytes=resident_nbytes(memories, step.held),
        predicted_peak_nbytes=step_peak_nbytes(memories, step.held),
        limit_nbytes=limits[-1] if limits else None,
    )


def _row(graph: StepGraph, memory: GraphMemory) -> GraphRow:
    report, peak = graph.report, max(memory.forward_peak_nbytes, memory.backward_peak_nbytes)
    exact = report is not None and report.exact is not None
    return GraphRow(
        name=graph.place.name,
        kind="inference" if report is None else "exact" if exact else "sketched",
        kept_nbytes=0 if report is None else report.kept_nbytes,
        stock_nbytes=0 if report is None else report.stock_nbytes,
        live_nbytes=memory.live_nbytes,
        peak_nbytes=peak if graph.is_predicted else None,
    )
