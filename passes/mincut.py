"""Minimum cut on plain edge lists: the solver, with no knowledge of graphs of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov

SOURCE = -1
SINK = -2


@dataclass(frozen=True)
class Edge:
    """A directed edge between integer vertices.

    Attributes:
        tail: where it starts; :data:`SOURCE` for the source.
        head: where it ends; :data:`SINK` for the sink.
        capacity: a non-negative int, or None for infinite.
    """

    tail: int
    head: int
    capacity: int | None


class UnboundedCutError(ValueError):
    """An infinite path joins source and sink: the constraints contradict each other."""


def min_cut(edges: Sequence[Edge]) -> tuple[int, frozenset[int]]:
    """Return the value of a minimum cut and the vertices on its sink side.

    Among minimum cuts the one nearest to the sink is returned, so the answer is unique and
    does not depend on the order of the edges. Parallel edges add up. Capacities are ints,
    so that the result is exact and the same on every machine. What infinite edges tie to the
    source or to the sink is on that side of every finite cut, and is left out of the network.

    Raises:
        UnboundedCutError: if every cut has an infinite edge; the text names the path.
    """
    infinite = [(e.tail, e.head) for e in edges if e.capacity is None]
    source_side = _reachable(infinite, SOURCE)
    sink_side = _reachable([(head, tail) for tail, head in infinite], SINK)
    if SINK in source_side:
        path = nx.shortest_path(nx.DiGraph(infinite), SOURCE, SINK)
        msg = f"no finite cut: the infinite edges {path} join source and sink"
        raise UnboundedCutError(msg)
    network = nx.DiGraph()
    network.add_nodes_from((SOURCE, SINK))
    always_cut = 0
    for edge in edges:
        if edge.tail in sink_side or edge.head in source_side:
            continue
        tail = SOURCE if edge.tail in source_side else edge.tail
        head = SINK if edge.head in sink_side else edge.head
        if (tail, head) == (SOURCE, SINK):
            assert edge.capacity is not None, "an infinite edge puts both its ends on one side"
            always_cut += edge.capacity
        elif edge.capacity != 0:
            _add(network, Edge(tail, head, edge.capacity))
    residual = boykov_kolmogorov(network, SOURCE, SINK)
    reaches_sink = _reachable(_open_edges_reversed(residual), SINK) | sink_side
    return always_cut + int(residual.graph["flow_value"]), frozenset(reaches_sink - {SINK})


def _add(network: nx.DiGraph, edge: Edge) -> None:
    if not network.has_edge(edge.tail, edge.head):
        attributes = {} if edge.capacity is None else {"capacity": edge.capacity}
        network.add_edge(edge.tail, edge.head, **attributes)
        return
    attributes = network.edges[edge.tail, edge.head]
    if edge.capacity is None:
        attributes.pop("capacity", None)
    elif "capacity" in attributes:
        attributes["capacity"] += edge.capacity


def _open_edges_reversed(residual: nx.DiGraph) -> list[tuple[int, int]]:
    """The edges that can take more flow, head first."""
    return [(v, u) for u, v, d in residual.edges(data=True) if d["flow"] < d["capacity"]]


def _reachable(edges: Sequence[tuple[int, int]], start: int) -> set[int]:
    """Return the vertices that edges lead to from ``start``, itself included."""
    followers: dict[int, list[int]] = {}
    for tail, head in edges:
        followers.setdefault(tail, []).append(head)
    found, queue = {start}, [start]
    while queue:
        for vertex in followers.get(queue.pop(), ()):
            if vertex not in found:
                found.add(vertex)
                queue.append(vertex)
    return found
