"""What torch's own partitioner makes of a graph in which we had asked for ops to be left whole.

Comes in: a joint graph. Goes out: the exact fallback, and the bytes that a share is of.
"""

from __future__ import annotations

from typing import Any

import passes
from passes import JointGraph, Partition
from passes.collection import without_collection
from passes.decompose import DecompositionTable
from xconv_fx import _torch, audit
from xconv_fx.rules import exact_decompositions


@without_collection()
def partition_exact(joint: JointGraph, kwargs: dict[str, Any]) -> Partition:
    """Partition as torch would: its own decompositions for the ops we asked to have whole."""
    return passes.partition_exact(joint, (), *_exact_tables(), **kwargs)


@without_collection()
def stock_nbytes(joint: JointGraph, kwargs: dict[str, Any]) -> int:
    """Count the bytes that torch's own partition keeps, see :func:`audit.kept_nbytes`."""
    kept = passes.kept_exactly(joint, (), *_exact_tables(), **kwargs)
    return audit.kept_nbytes(kept, joint.held_inputs())


def _exact_tables() -> tuple[DecompositionTable, DecompositionTable]:
    return exact_decompositions(), _torch.inductor_decompositions()
