"""Minimum cut on plain edge lists: the solver, with no knowledge of graphs of tensors.

Flows are scipy's (``scipy.sparse.csgraph.maximum_flow``, Dinic), compiled: a budget takes some
twenty cuts of thousands of edges each, which in Python took longer than any other pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

SOURCE = -1
SINK = -2

# Flows are int32 there: capacities are kept below a little more than this, so that one of them and
# a flow of its size the other way add up.
_MOST = 2**29
# So that thousands of them add up in int64.
_LARGEST = 2**50


class Edge(NamedTuple):
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
    so that the result is the same on every machine. It is exact where cutting off what infinite
    edges tie to the sink costs less than 2**29; above, capacities are rounded up to multiples of
    ``cost // 2**29 + 1``, so that the cut is within one such unit an edge of the minimum. A
    capacity above 2**50 counts as that.

    Raises:
        UnboundedCutError: if every cut has an infinite edge; the text names the path.
    """
    # The vertices, then source and sink: an index of -1 or -2 would count from the end.
    count = max((max(edge.tail, edge.head) for edge in edges), default=-1) + 3
    tails, heads = (np.array([edge[i] for edge in edges], np.int64) % count for i in (0, 1))
    source, sink = SOURCE % count, SINK % count
    endless = np.array([edge.capacity is None for edge in edges], bool)
    finite = np.array([min(edge.capacity or 0, _LARGEST) for edge in edges], np.int64)

    def crossing(sink_side: Any) -> Any:
        inside = np.zeros(count, bool)
        inside[sink_side] = True
        return ~inside[tails] & inside[heads]

    tied = _reachable(_matrix(heads, tails, endless.astype(np.int64), count), sink)
    if source in tied:
        raise UnboundedCutError(_contradiction(edges))
    known = crossing(tied)
    rounded = -(-finite // (int(finite[known].sum()) // _MOST + 1))
    # No edge that alone costs more than a known cut is part of a minimum cut.
    most = int(rounded[known].sum()) + 1
    capacity = _matrix(tails, heads, np.where(endless, most, rounded), count)
    capacity.data = np.minimum(capacity.data, most).astype(np.int32)
    left = capacity - maximum_flow(capacity, source, sink).flow
    sink_side = _reachable(csr_array(left.T > 0), sink)
    value = int(finite[crossing(sink_side)].sum())
    return value, frozenset(int(v) for v in sink_side if v < count - 2)


def _matrix(tails: Any, heads: Any, weights: Any, count: int) -> Any:
    """Sum parallel edges; edges of weight 0 and loops are left out."""
    kept = (weights > 0) & (tails != heads)
    ends = (tails[kept].astype(np.int32), heads[kept].astype(np.int32))
    return csr_array(coo_array((weights[kept], ends), shape=(count, count)))


def _reachable(matrix: Any, start: int) -> Any:
    """Return the vertices that edges lead to from ``start``, itself included."""
    return breadth_first_order(matrix, start, return_predecessors=False)


def _contradiction(edges: Sequence[Edge]) -> str:
    graph = nx.DiGraph(sorted((e.tail, e.head) for e in edges if e.capacity is None))
    path = nx.shortest_path(graph, SOURCE, SINK)
    return f"no finite cut: the infinite edges {path} join source and sink"
