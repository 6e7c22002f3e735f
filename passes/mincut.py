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
    so that the result is exact and the same on every machine.

    Raises:
        UnboundedCutError: if every cut has an infinite edge; the text names the path.
    """
    network = nx.DiGraph()
    network.add_nodes_from((SOURCE, SINK))
    for edge in edges:
        _add(network, edge)
    infinite = nx.DiGraph()
    infinite.add_nodes_from((SOURCE, SINK))
    infinite.add_edges_from((e.tail, e.head) for e in edges if e.capacity is None)
    if nx.has_path(infinite, SOURCE, SINK):
        path = nx.shortest_path(infinite, SOURCE, SINK)
        msg = f"no finite cut: the infinite edges {path} join source and sink"
        raise UnboundedCutError(msg)
    residual = boykov_kolmogorov(network, SOURCE, SINK)
    reaches_sink = _vertices_reaching_sink(residual)
    return int(residual.graph["flow_value"]), reaches_sink


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


def _vertices_reaching_sink(residual: nx.DiGraph) -> frozenset[int]:
    open_edges = nx.DiGraph()
    open_edges.add_node(SINK)
    open_edges.add_edges_from(
        (u, v) for u, v, d in residual.edges(data=True) if d["flow"] < d["capacity"]
    )
    return frozenset(nx.ancestors(open_edges, SINK) - {SOURCE, SINK})
