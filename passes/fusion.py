"""Which buffers Inductor computes in one kernel, and in which order it runs the kernels.

Comes in: a forward or backward graph as Inductor gets it. Goes out: its
:class:`passes.kernels.Program`. A model of ``torch/_inductor/scheduler.py`` (2.13) without
scheduling or code generation: units with the same loops and nothing between them share a
kernel, and what only that kernel reads is no buffer at all.

Two units must not share a kernel where something has to be complete in between: an extern call,
a reduction over more than rows, loops of other sizes. Each such barrier on a path adds one to a
unit's *level*; units are joined within a level only, so that the kernels have no cycle.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from passes.inlining import Unit, find_units, kind_of
from passes.joint import output_node, tensor_nbytes, tensor_val
from passes.kernels import Kernel, Program
from passes.workspace import Workspaces, workspace_nbytes


def fuse(
    graph: fx.Graph, *, channels_last: bool = False, workspaces: Workspaces | None = None
) -> Program:
    """Return the kernels that Inductor is expected to run for a graph.

    Args:
        graph: a lowered forward or backward.
        channels_last: whether Inductor lays convolutions out channels-last.
        workspaces: what ops that are not torch's need while they run.
    """
    units, buffers = find_units(graph)
    group_of = _groups(units, channels_last)
    returned = {buffers.get(node, node) for node in output_node(graph).all_input_nodes}
    kernels = _kernels(units, group_of, returned)
    kernels = [_with_workspace(k, channels_last, workspaces) for k in kernels]
    inputs = graph.find_nodes(op="placeholder")
    values = [*inputs, *(value for kernel in kernels for value in kernel.outputs)]
    nbytes = {v: tensor_nbytes(val) for v in values if (val := tensor_val(v)) is not None}
    base = {node: buffers.get(node, node) for node in graph.nodes}
    return Program(tuple(_in_order(kernels)), base, nbytes)


def _groups(units: Sequence[Unit], channels_last: bool) -> list[int]:
    """Number the kernel of each unit."""
    maker = {value: index for index, unit in enumerate(units) for value in unit.outputs}
    loops: list[int] = []
    edges: list[dict[int, bool]] = []
    for index, unit in enumerate(units):
        before = [maker[value] for value in unit.reads if value in maker]
        loops.append(_loops(unit, [(units[i], loops[i]) for i in before]))
        can_join = {i: _can_join(units[i], unit, channels_last) for i in before}
        edges.append({i: can_join[i] and loops[i] == loops[index] for i in before})
    levels = _levels(units, edges)
    parent = list(range(len(units)))
    sharing: dict[tuple[int, int, fx.Node], int] = {}
    for index, unit in enumerate(units):
        for other, joins in edges[index].items():
            if joins and levels[other] == levels[index]:
                _join(parent, other, index)
        if unit.kind in ("pointwise", "reduction"):
            for value in unit.reads:
                if _num_elements(value) == loops[index]:
                    key = (levels[index], loops[index], value)
                    _join(parent, sharing.setdefault(key, index), index)
    return [_root(parent, index) for index in range(len(units))]


def _levels(units: Sequence[Unit], edges: Sequence[dict[int, bool]]) -> list[int]:
    """Count the barriers before each unit.

    What is larger than all it is made of, such as random numbers of a seed, is computed where
    it is first read, as far as that is later.
    """
    levels: list[int] = []
    for before in edges:
        levels.append(max((levels[i] + (not joins) for i, joins in before.items()), default=0))
    latest: list[int | None] = [None] * len(units)
    for index in reversed(range(len(units))):
        unit, bound = units[index], latest[index]
        made_of = sum(_nbytes(value) for value in unit.reads)
        grows = unit.kind == "pointwise" and made_of < sum(map(_nbytes, unit.outputs))
        if grows and bound is not None:
            levels[index] = max(levels[index], bound)
        for source, joins in edges[index].items():
            limit = levels[index] - (not joins)
            known = latest[source]
            latest[source] = limit if known is None else min(limit, known)
    return levels


def _loops(unit: Unit, before: Sequence[tuple[Unit, int]]) -> int:
    """Elements of the loops a unit can share: those of a reduction whose rows it is made of."""
    if unit.kind != "pointwise":
        return unit.num_elements
    rows = [
        loops
        for other, loops in before
        if loops > unit.num_elements
        and other.outputs
        and _num_elements(other.outputs[0]) == unit.num_elements
    ]
    return rows[0] if rows else unit.num_elements


def _can_join(first: Unit, second: Unit, channels_last: bool) -> bool:
    """Whether a unit can be computed in the loops of one that it reads, if those are the same."""
    if second.kind not in ("pointwise", "reduction"):
        return False
    if first.kind == "reduction":
        return _reduces_rows(first, channels_last)
    return first.kind in ("pointwise", "window")


def _reduces_rows(unit: Unit, channels_last: bool) -> bool:
    """Whether a reduction runs over the innermost part of the memory."""
    x = unit.node.args[0]
    val = tensor_val(x) if isinstance(x, fx.Node) else None
    dims = unit.node.args[1] if len(unit.node.args) > 1 else None
    if val is None or not isinstance(dims, (list, tuple)):
        return False
    reduced = sorted(int(d) % val.dim() for d in dims if isinstance(d, int))
    trailing = reduced == list(range(val.dim() - len(reduced), val.dim()))
    return trailing and not (channels_last and val.dim() == 4 and len(reduced) < 3)


def _join(parent: list[int], first: int, second: int) -> None:
    parent[_root(parent, second)] = _root(parent, first)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _kernels(
    units: Sequence[Unit], group_of: Sequence[int], returned: set[fx.Node]
) -> list[Kernel]:
    """One kernel a group, in the order of their last units."""
    members: dict[int, list[Unit]] = {}
    readers: dict[fx.Node, set[int]] = {}
    for unit, group in zip(units, group_of, strict=True):
        members.setdefault(group, []).append(unit)
        for value in unit.reads:
            readers.setdefault(value, set()).add(group)
    last = {group: index for index, group in enumerate(group_of)}
    kernels = []
    for group in sorted(members, key=lambda g: last[g]):
        own = [value for unit in members[group] for value in unit.outputs]
        outputs = [v for v in own if v in returned or readers.get(v, set()) != {group}]
        reads = dict.fromkeys(v for unit in members[group] for v in unit.reads)
        node = members[group][-1].node
        kernels.append(
            Kernel(
                node=node,
                outputs=tuple(outputs),
                reads=tuple(v for v in reads if v not in set(own)),
                in_place=all(u.kind in ("pointwise", "reduction") for u in members[group]),
            )
        )
    return kernels


def _nbytes(value: fx.Node) -> int:
    val = tensor_val(value)
    return 0 if val is None else tensor_nbytes(val) or 0


def _num_elements(value: fx.Node) -> int:
    val = tensor_val(value)
    return 0 if val is None else _nbytes(value) // val.dtype.itemsize


def _with_workspace(kernel: Kernel, channels_last: bool, workspaces: Workspaces | None) -> Kernel:
    """Only extern calls run torch's own kernels and need their workspace."""
    if kind_of(kernel.node) != "extern":
        return kernel
    nbytes = workspace_nbytes(kernel.node, channels_last=channels_last, others=workspaces)
    return replace(kernel, workspace_nbytes=nbytes)


def _in_order(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Sort kernels so that each comes after those it reads from, else as they come."""
    maker = {value: index for index, kernel in enumerate(kernels) for value in kernel.outputs}
    sources = [{maker[v] for v in kernel.reads if v in maker} for kernel in kernels]
    followers: list[list[int]] = [[] for _ in kernels]
    for index, before in enumerate(sources):
        for source in before:
            followers[source].append(index)
    waiting = [len(before) for before in sources]
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(kernels[index])
        for follower in followers[index]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heapq.heappush(ready, follower)
    assert len(order) == len(kernels), "the kernels of a graph depend on each other in a circle"
    return order
