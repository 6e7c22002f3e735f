"""*lower*: turn the inserted ops of a partitioned graph into aten, for the inner compiler."""

from __future__ import annotations

from passes.decompose import DecompositionTable, decompose
from passes.partition import Partition
from passes.verify import verify_absent


def lower(
    split: Partition, table: DecompositionTable, inner_table: DecompositionTable
) -> Partition:
    """Return both graphs with the calls in ``table`` taken apart.

    Nothing decomposes after partitioning, so this is the last chance for an op to become
    something the inner compiler can fuse; ``inner_table`` takes apart what the table's
    functions are made of.

    Raises:
        passes.verify.VerifierError: if a call of the table is left.
    """
    forward = decompose(split.forward, table, inner_table)
    backward = decompose(split.backward, table, inner_table)
    for module in (forward, backward):
        verify_absent(module.graph, table.keys(), "lower")
    return Partition(forward, backward, split.num_fwd_outputs)
