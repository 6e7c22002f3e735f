"""Minimum cut on plain edge lists: the solver, with no knowledge of graphs of tensors.

Flows are scipy's (``scipy.sparse.csgraph.maximum_flow``, Dinic), in C: within a compilation, where
Dynamo evaluates every Python frame, a solver in Python takes seconds a cut on a large network.
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

# Capacities are int32 there; all finite ones together are kept below a little more than this.
_MOST = 2**30


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
    so that the result is the same on every machine. It is exact where all finite ones add up to at
    most 2**30; above, they are rounded up to multiples of ``total // 2**30 + 1``, so that the cut
    is within one such unit an edge of the minimum.

    Raises:
        UnboundedCutError: if every cut has an infinite edge; the text names the path.
    """
    # The vertices, then source and sink: an index of -1 or -2 would count from the end.
    count = max((max(edge.tail, edge.head) for edge in edges), default=-1) + 3
    tails, heads = (np.array([edge[i] for edge in edges], np.int64) % count for i in (0, 1))
    given = np.array([-1 if e.capacity is None else e.capacity for e in edges], np.int64)
    source, sink = SOURCE % count, SINK % count
    endless = given < 0
    tied = _matrix(tails[endless], heads[endless], np.ones(int(endless.sum()), np.int64), count)
    if sink in _reachable(tied, source):
        raise UnboundedCutError(_contradiction(edges))
    finite = np.where(endless, 0, given)
    unit = int(finite.sum()) // _MOST + 1
    finite = -(-finite // unit)
    most = int(finite.sum()) + 1
    capacity = _matrix(tails, heads, np.where(endless, most, finite), count)
    capacity.data = np.minimum(capacity.data, most).astype(np.int32)
    flow = maximum_flow(capacity, source, sink).flow
    left = (capacity - flow).tocsr()
    left.data = (left.data > 0).astype(np.int32)
    left.eliminate_zeros()
    sink_side = _reachable(left.T.tocsr(), sink)
    side = np.zeros(count, bool)
    side[sink_side] = True
    value = int(given[~side[tails] & side[heads]].sum())
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
    graph = nx.DiGraph((e.tail, e.head) for e in edges if e.capacity is None)
    path = nx.shortest_path(graph, SOURCE, SINK)
    return f"no finite cut: the infinite edges {path} join source and sink"
