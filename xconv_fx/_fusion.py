"""How Inductor compiles one of our graphs: which kernels it may merge for what they read.

Inductor merges kernels that read the same value, however far apart their results are needed. Of a
packed value that is how the decoded values of several layers come to be alive at once. What writes
much less than it reads, the statistics and sums of a norm or an encoder, holds next to nothing, and
merging spares a pass over an activation. An encoder, whose codes nothing in the forward reads, may
join the kernel of a whole activation too, which holds nothing for it. Vectors are loaded as
``_vector_loads`` says, and our operators called as ``_calls`` says. Checked on 2.11 and 2.13.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch._inductor import tiling_utils
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import BaseSchedulerNode, OutputNode, Scheduler
from torch._inductor.virtualized import V

from xconv_fx._vector_loads import direct_loads

# Kernels write little if they write at most one part in so many of what they share with others.
_SHARE_WRITTEN = 2

# Held while a graph is compiled: some backwards are compiled by other threads.
_compiling = threading.RLock()

# Inductor's cache of generated code knows nothing of what differs here.
_CACHE_TAG = "xconv"


def compile_inner(
    *args: Any, on_scheduled: Callable[[GraphLowering], None] | None = None, **kwargs: Any
) -> Any:
    """Compile one graph as ``compile_fx_inner`` does, but merging fewer kernels, loading directly.

    All other choices are those of the heuristics in place, Inductor's or the user's.

    Args:
        args: of ``compile_fx_inner``.
        on_scheduled: called with Inductor's graph once the order of its kernels is known, before
            any code is generated; not where the code is found in Inductor's cache.
        kwargs: of ``compile_fx_inner``.
    """
    choices = copy.copy(V.choices)
    base: Any = type(choices)
    choices.__class__ = _writing_little(base)
    compiler_config: Any = torch.compiler.config
    tag = compiler_config.cache_key_tag + _CACHE_TAG
    with (
        _compiling,  # what follows patches functions of all threads
        V.set_choices_handler(choices),
        direct_loads(),
        integer_tilings(),
        contextlib.nullcontext() if on_scheduled is None else _telling(on_scheduled),
        compiler_config.patch(cache_key_tag=tag),
    ):
        return compile_fx_inner(*args, **kwargs)


@contextlib.contextmanager
def _telling(on_scheduled: Callable[[GraphLowering], None]) -> Iterator[None]:
    """Call a function with each graph whose scheduler is made, its own subgraphs left out."""
    make_scheduler: Any = GraphLowering._update_scheduler
    thread = threading.get_ident()

    def tell(graph: GraphLowering) -> None:
        make_scheduler(graph)
        # Other threads may compile graphs of their own meanwhile.
        if type(graph) is GraphLowering and threading.get_ident() == thread:
            on_scheduled(graph)

    with mock.patch.object(GraphLowering, "_update_scheduler", tell):
        yield


@contextlib.contextmanager
def integer_tilings() -> Iterator[None]:
    """Let Triton's loops be tiled by integers alone, until the end.

    Where Inductor solves for a tiling that makes an index consecutive, it takes any constant
    expression for an int; a product that sympy does not evaluate ended the compilation of a
    DenseNet (2.11; the code is the same in 2.13).
    """
    base: Any = tiling_utils.solve_for_tiling

    def solve(expr: Any) -> Any:
        found = base(expr)
        return found if getattr(found, "is_Integer", False) else None

    with mock.patch.object(tiling_utils, "solve_for_tiling", solve):
        yield


@functools.cache
def _writing_little(base: Any) -> Any:
    class WritingLittle(base):  # type: ignore[misc]
        @staticmethod
        def can_fuse_horizontal(
            scheduler: Scheduler,
            node1: BaseSchedulerNode,
            node2: BaseSchedulerNode,
            shared_data_score: int,
        ) -> bool:
            """Say whether two kernels, neither of which needs the other, may be one.

            Args:
                scheduler: of the graph.
                node1: a kernel.
                node2: another.
                shared_data_score: bytes that both read or write.
            """
            writing_little = [
                node
                for node in (node1, node2)
                if _written_nbytes(scheduler, node) * _SHARE_WRITTEN <= shared_data_score
            ]
            if len(writing_little) < 2 and not any(map(_is_only_returned, writing_little)):
                return False
            return bool(base.can_fuse_horizontal(scheduler, node1, node2, shared_data_score))

    return WritingLittle


def _written_nbytes(scheduler: Scheduler, node: BaseSchedulerNode) -> int:
    """Bytes that a kernel makes, those that it alone reads included."""
    return sum(scheduler.dep_size_hint(dep) for dep in node.read_writes.writes)


def _is_only_returned(node: BaseSchedulerNode) -> bool:
    """Whether nothing in the graph reads what a kernel makes."""
    return all(
        isinstance(user.node, OutputNode) for buffer in node.get_outputs() for user in buffer.users
    )
