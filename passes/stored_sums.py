"""Sums of gradients that several kernels read, stored once.

Where a value is read twice its gradient is a sum, and down a chain of residual blocks a sum of
sums. An inner compiler computes an elementwise value again in every kernel that reads it, up to a
threshold that knows nothing of bytes (Inductor counts reads, small ones as well; 2.11 to 2.13).
Each of ``k`` kernels then reads the R bytes that a sum is made of, and these stay in memory for the
last of them. If it is stored by the first, the others read its own W bytes: so it is where

    k R  >=  R + k W + W / 2

after those before it. The last term is what has to be won, for the first kernel may be one that
cannot store it as well. R is to be 3 W / 2 at least: what is made of little more than its own bytes
is no sum, and others may be made of the same (of a byte and a length a tile's eight signed ones).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from passes.decompose import Inserter
from passes.joint import tensor_nbytes, tensor_val
from passes.op_traits import recompute_ban

aten = torch.ops.aten

# Bytes that a kernel reads of each value in memory.
_Reads = Mapping[fx.Node, int]


def store_sums(module: fx.GraphModule, inserter: Inserter, store: torch._ops.OpOverload) -> None:
    """Have elementwise values stored where that moves fewer bytes than all readers computing them.

    Args:
        module: a lowered graph; changed in place.
        inserter: of calls.
        store: the identity, an op that the inner compiler takes for an order to store.
    """
    in_memory = _in_memory(module.graph)
    kernels = _kernels(module.graph, in_memory)
    reads: dict[fx.Node, _Reads] = {}
    for node in list(module.graph.nodes):
        own = tensor_nbytes(val) if (val := tensor_val(node)) is not None else None
        if own is None:
            reads[node] = {}
        elif node in in_memory:
            reads[node] = {node: own}
        else:
            reads[node] = _combined(node, reads)
            if _gains(node, own, sum(reads[node].values()), len(kernels[node])):
                readers = list(node.users)
                result = inserter.call(store, [node], node.next, provenance=node)
                for reader in readers:
                    reader.replace_input_with(node, result)
                reads[node] = reads[result] = {result: own}
    module.graph.lint()
    module.recompile()


def _in_memory(graph: fx.Graph) -> frozenset[fx.Node]:
    """The values that are stored in any case: given, made by a call, or read by one."""
    elementwise = {node for node in graph.nodes if _is_elementwise(node)}
    return frozenset(
        node
        for node in graph.nodes
        if node not in elementwise
        or any(user not in elementwise and not _is_reduction(user) for user in node.users)
    )


def _is_elementwise(node: fx.Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target is not aten.cat.default
        and recompute_ban(node) is None
    )


def _is_reduction(node: fx.Node) -> bool:
    return node.target in (aten.sum.dim_IntList, aten.mean.dim)


def _combined(node: fx.Node, reads: Mapping[fx.Node, _Reads]) -> _Reads:
    """What computing an elementwise value reads: of a value of which it takes parts, those."""
    numel = _numel(node)
    combined: dict[fx.Node, int] = {}
    for arg in node.all_input_nodes:
        for stored, nbytes in reads[arg].items():
            val = stored.meta["val"]
            part = combined.get(stored, 0) + min(nbytes, numel * val.dtype.itemsize)
            combined[stored] = min(part, tensor_nbytes(val) or 0)
    return combined


def _gains(node: fx.Node, own_nbytes: int, read_nbytes: int, count: int) -> bool:
    if 2 * read_nbytes < 3 * own_nbytes or not node.meta["val"].dtype.is_floating_point:
        return False
    if [_numel(user) for user in node.users] == [_numel(node)]:  # that one has the same readers
        return False
    return 2 * count * read_nbytes >= 2 * read_nbytes + (2 * count + 1) * own_nbytes


def _kernels(graph: fx.Graph, in_memory: frozenset[fx.Node]) -> dict[fx.Node, frozenset[Any]]:
    """What stands for the kernels that read a value: sums over it, further sums, stored values."""
    reading = in_memory.union(node for node in graph.nodes if _is_sum(node))
    kernels: dict[fx.Node, frozenset[Any]] = {}
    for node in reversed(graph.nodes):
        found: set[Any] = set()
        for user in node.users:
            if _is_reduction(user):  # those over equal shapes are one kernel
                found.add(tuple(map(str, node.meta["val"].shape)))
            elif user in reading:
                found.add(user)
            else:
                found |= kernels[user]
        kernels[node] = frozenset(found)
    return kernels


def _is_sum(node: fx.Node) -> bool:
    if node.target is not aten.add.Tensor:
        return False
    numel = _numel(node)
    return sum(_numel(arg) == numel for arg in node.all_input_nodes) == 2


def _numel(node: fx.Node) -> int:
    val = tensor_val(node)
    return 0 if val is None else (tensor_nbytes(val) or 0) // val.dtype.itemsize
