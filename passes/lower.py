"""*lower*: turn the inserted ops of a partitioned graph into aten, for the inner compiler."""

from __future__ import annotations

import torch
from torch import fx

from passes.decompose import DecompositionTable, Inserter, Traces, take_apart
from passes.joint import memory_order, output_node
from passes.merged_sums import merge_sums
from passes.op_traits import COSTLY, recompute_ban
from passes.partition import Partition
from passes.staged_statistics import stage_statistics
from passes.staged_sums import stage_sums
from passes.stored_sums import store_sums
from passes.verify import verify_absent


def lower(
    split: Partition,
    table: DecompositionTable,
    inner_table: DecompositionTable,
    *,
    channels_last: bool = False,
    store: torch._ops.OpOverload | None = None,
    traces: Traces | None = None,
) -> None:
    """Take the calls in ``table`` apart in both graphs, in place.

    Nothing decomposes after partitioning, so this is the last chance for an op to become
    something the inner compiler can fuse; ``inner_table`` takes apart what the table's
    functions are made of. Equal sums are taken once (:mod:`passes.merged_sums`). With
    ``channels_last`` see :func:`_copy_convolution_inputs` and :mod:`passes.staged_sums`; with
    ``store``, for an inner compiler that merges kernels, :func:`_store_before_encodes`,
    :mod:`passes.staged_statistics` and :mod:`passes.stored_sums`; for ``traces``
    :func:`passes.decompose.decompose`.

    Raises:
        passes.verify.VerifierError: if a call of the table is left.
    """
    traces = traces or Traces()
    inserter, plain = Inserter(inner_table, traces), Inserter(traces=traces)
    forward, backward = split.forward, split.backward
    if store is not None:
        _store_before_encodes(forward, table, plain, store, channels_last)
    take_apart(forward, table, inserter)
    if store is not None:
        stage_statistics(forward, inserter)
    if channels_last:
        _copy_convolution_inputs(forward, plain)
    take_apart(backward, table, inserter)
    merge_sums(backward, inserter)
    if channels_last:
        stage_sums(backward, inserter)
    if store is not None:
        store_sums(backward, plain, store)
    for module in (forward, backward):
        verify_absent(module.graph, table.keys(), "lower")


def _store_before_encodes(
    forward: fx.GraphModule,
    table: DecompositionTable,
    inserter: Inserter,
    store: torch._ops.OpOverload,
    channels_last: bool,
) -> None:
    """Store what is encoded in the memory order that a costly reader wants, before either reads it.

    Inductor (2.13) gives a buffer the layout that its first reader asks for, and an encode reads
    views, for which it takes a contiguous one: then a convolution would copy the buffer. Encoded
    behind the convolution, it was in memory beside its result and beside what the encode stores.
    """
    for node in list(forward.graph.nodes):
        if node.op == "placeholder" or recompute_ban(node) == COSTLY:
            continue  # their layout is fixed
        costly = [user for user in node.users if recompute_ban(user) == COSTLY]
        encodes = [user for user in node.users if user.target in table]
        if costly and encodes:
            order = list(memory_order(node.meta["val"], channels_last))
            stored = inserter.call(store, [node, order], node.next, provenance=node)
            for reader in (*costly, *encodes):
                reader.replace_input_with(node, stored)
    forward.graph.lint()
    forward.recompile()


def _copy_convolution_inputs(forward: fx.GraphModule, inserter: Inserter) -> None:
    """Give a convolution a copy of a graph input that is kept, in the layout it wants.

    Inductor (2.13) lays a kept input of a convolution out channels-last in place: the copy is
    returned for the backward, and every weight is held twice until then. It has to make the copy
    in any case; made here, it is gone after the convolution. An ``as_strided`` of the input is
    what makes Inductor leave the input's own layout alone. Its offset is absolute in the storage,
    which a caller may change, so it is a view of no elements, joined in front of the copy.
    """
    kept = {n for n in output_node(forward.graph).all_input_nodes if n.op == "placeholder"}
    for node in forward.graph.find_nodes(
        op="call_function", target=torch.ops.aten.convolution.default
    ):
        for value in node.args[:2]:
            if value in kept and value.meta["val"].dim() == 4:
                copied = inserter.insert(_to_channels_last, [value], node, provenance=node)
                node.replace_input_with(value, copied)
    forward.graph.lint()
    forward.recompile()


def _to_channels_last(x: torch.Tensor) -> torch.Tensor:
    nothing = torch.as_strided(x, [0, *x.shape[1:]], x.stride(), 0)
    return torch.cat([nothing, x]).clone(memory_format=torch.channels_last)
