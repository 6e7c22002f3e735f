"""The order in which Inductor runs the kernels of a graph.

Comes in: kernels in the order of the graph, as :mod:`passes.fusion` makes them. Goes out: the
same kernels reordered. Follows ``reorder_for_peak_memory`` (``torch/_inductor/memory.py``,
2.13): of the order it has and three greedy ones Inductor takes that with the least peak, by an
estimate that knows neither workspace nor reuse in place. The rules, ties included, are torch's.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from passes.kernels import Kernel

# Inputs whose memory Inductor does not count on (is_nonfreeable_buffers, 2.13).
_HELD = ("primals_", "arg", "fwd_rng_state", "bwd_rng_state", "tangents")


@dataclass(frozen=True)
class _Problem:
    """Kernels by index, values by node.

    Attributes:
        nbytes: bytes of each value that counts.
        writes: the values each kernel computes.
        reads: the values each kernel reads.
        internal_nbytes: bytes that live within each kernel alone.
        sources: the kernels each kernel depends on.
        followers: the kernels that depend on each.
        readers: the kernels that read each value.
        returned: the graph's outputs.
    """

    nbytes: dict[fx.Node, int]
    writes: list[tuple[fx.Node, ...]]
    reads: list[list[fx.Node]]
    internal_nbytes: list[int]
    sources: list[set[int]]
    followers: list[list[int]]
    readers: dict[fx.Node, set[int]]
    returned: set[fx.Node]

    def allocated(self, index: int) -> int:
        """Bytes that a kernel allocates, by Inductor's count."""
        return sum(self.nbytes[v] for v in self.writes[index]) + self.internal_nbytes[index]

    @property
    def received(self) -> list[fx.Node]:
        """The graph's inputs that can be freed."""
        written = {value for values in self.writes for value in values}
        return [value for value in self.nbytes if value not in written]


def reorder(
    kernels: Sequence[Kernel],
    nbytes: dict[fx.Node, int | None],
    returned: set[fx.Node],
) -> list[Kernel]:
    """Return the kernels in the order in which Inductor is expected to run them.

    Args:
        kernels: in any order that respects their dependencies' names; sorted here.
        nbytes: bytes of the values; unknown sizes count 0, as no order can be told by them.
        returned: the values that the graph returns.
    """
    ordered = _topological(kernels)
    problem = _pose(ordered, nbytes, returned)
    candidates = [
        list(range(len(ordered))),
        _least_memory_first(problem),
        _breadth_first(problem),
        _depth_first(problem),
    ]
    best = min(candidates, key=lambda order: _peak(problem, order))
    return [ordered[index] for index in best]


def _pose(
    kernels: Sequence[Kernel], nbytes: dict[fx.Node, int | None], returned: set[fx.Node]
) -> _Problem:
    maker = {value: index for index, kernel in enumerate(kernels) for value in kernel.outputs}
    sources: list[set[int]] = []
    reads: list[list[fx.Node]] = []
    followers: list[list[int]] = [[] for _ in kernels]
    readers: dict[fx.Node, set[int]] = {}
    for index, kernel in enumerate(kernels):
        counted = [v for v in kernel.reads if v in maker or _is_freeable(v)]
        reads.append(counted)
        sources.append({maker[v] for v in counted if v in maker})
        for source in sources[-1]:
            followers[source].append(index)
        for value in counted:
            readers.setdefault(value, set()).add(index)
    values = dict.fromkeys([*(v for vs in reads for v in vs), *maker])
    return _Problem(
        nbytes={v: nbytes.get(v) or 0 for v in values},
        writes=[kernel.outputs for kernel in kernels],
        reads=reads,
        internal_nbytes=[kernel.internal_nbytes for kernel in kernels],
        sources=sources,
        followers=followers,
        readers=readers,
        returned=returned,
    )


def _is_freeable(value: fx.Node) -> bool:
    return not value.name.startswith(_HELD)


def _topological(kernels: Sequence[Kernel]) -> list[Kernel]:
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


def _peak(problem: _Problem, order: Sequence[int]) -> int:
    """Inductor's estimate of an order's peak (``estimate_peak_memory``)."""
    step = {index: position for position, index in enumerate(order)}
    change = [0] * (len(order) + 1)
    for value, nbytes in problem.nbytes.items():
        readers = problem.readers.get(value)
        if value not in problem.returned and readers:
            change[max(step[r] for r in readers) + 1] -= nbytes
    change[0] += sum(problem.nbytes[value] for value in problem.received)
    for position, index in enumerate(order):
        change[position] += problem.allocated(index)
        change[position + 1] -= problem.internal_nbytes[index]
    live = peak = 0
    for delta in change:
        live += delta
        peak = max(peak, live)
    return peak


def _least_memory_first(problem: _Problem) -> list[int]:
    """``topological_sort_lpmf``: of what is ready and fits the peak so far, what frees most."""
    left = {value: len(problem.readers.get(value, ())) for value in problem.nbytes}
    for value in problem.returned & left.keys():
        left[value] += 1
    freed = list(problem.internal_nbytes)
    for index, reads in enumerate(problem.reads):
        freed[index] += sum(problem.nbytes[v] for v in reads if left[v] == 1)
    received = problem.received
    live = sum(problem.nbytes[value] for value in received)
    peak = max(live, sum(problem.nbytes.get(value, 0) for value in problem.returned))
    allocated = [problem.allocated(index) for index in range(len(problem.writes))]
    waiting = [len(sources) for sources in problem.sources]
    ready = {index for index, count in enumerate(waiting) if count == 0}
    order: list[int] = []
    while ready:
        gap = peak - live
        _, _, chosen = min(
            (allocated[i] if allocated[i] > gap else 0, allocated[i] - freed[i], i) for i in ready
        )
        ready.remove(chosen)
        order.append(chosen)
        live += allocated[chosen]
        peak = max(peak, live)
        live -= freed[chosen]
        for follower in problem.followers[chosen]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                ready.add(follower)
        for value in problem.reads[chosen]:
            left[value] -= 1
            if left[value] == 1:
                for reader in problem.readers[value]:
                    freed[reader] += problem.nbytes[value]
    return order


def _breadth_first(problem: _Problem) -> list[int]:
    """``topological_sort_bfs``: first what depends on what ran earliest."""
    waiting = [len(sources) for sources in problem.sources]
    position: dict[int, int] = {}
    ready: list[tuple[list[int], int]] = [([], i) for i, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        _, chosen = heapq.heappop(ready)
        position[chosen] = len(order)
        order.append(chosen)
        for follower in problem.followers[chosen]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                priority = sorted(position[source] for source in problem.sources[follower])
                heapq.heappush(ready, (priority, follower))
    return order


def _depth_first(problem: _Problem) -> list[int]:
    """``topological_sort_dfs``: small kernels first, each after what it depends on."""
    size = [
        problem.allocated(index) + sum(problem.nbytes[v] for v in reads)
        for index, reads in enumerate(problem.reads)
    ]

    def by_size(indices: Sequence[int] | set[int]) -> list[int]:
        return sorted(indices, key=lambda index: (size[index], index))

    seen: set[int] = set()
    order: list[int] = []
    stack = [(index, False) for index in reversed(by_size(range(len(size))))]
    while stack:
        index, is_done = stack.pop()
        if is_done:
            order.append(index)
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            stack.extend((s, False) for s in reversed(by_size(problem.sources[index])))
    return order
