"""Which kernels Inductor may merge: those that sum up or encode, never those that decode.

Inductor merges kernels that read the same value, however far apart their results are needed. Of a
packed value that is how the decoded values of several layers come to be alive at once. What only
makes less than is read, the statistics and sums of a norm or an encoder, holds next to nothing, and
merging spares a pass over an activation. Checked on 2.13.
"""

from __future__ import annotations

from typing import Any

from torch._inductor.choices import InductorChoices
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.scheduler import BaseSchedulerNode, Scheduler
from torch._inductor.virtualized import V

# Kernels are merged for what both read if each writes at most this share of it.
_WRITTEN_SHARE = 2


class DecodingApart(InductorChoices):
    """Inductor's heuristics, but for merging kernels that write as much as they share."""

    @staticmethod
    def can_fuse_horizontal(
        scheduler: Scheduler,
        node1: BaseSchedulerNode,
        node2: BaseSchedulerNode,
        shared_data_score: int,
    ) -> bool:
        """Say whether two kernels, neither of which needs the other, may be one.

        Args:
            scheduler: of the graph.
            node1: a kernel.
            node2: another.
            shared_data_score: bytes that both read or write.
        """
        written = max(_written_nbytes(scheduler, node) for node in (node1, node2))
        return written * _WRITTEN_SHARE <= shared_data_score and (
            InductorChoices.can_fuse_horizontal(scheduler, node1, node2, shared_data_score)
        )


def compile_inner(*args: Any, **kwargs: Any) -> Any:
    """Compile one graph as ``compile_fx_inner`` does, with decoding kernels apart."""
    with V.set_choices_handler(DecodingApart()):
        return compile_fx_inner(*args, **kwargs)


def _written_nbytes(scheduler: Scheduler, node: BaseSchedulerNode) -> int:
    return sum(scheduler.dep_size_hint(dep) for dep in node.read_writes.writes)
