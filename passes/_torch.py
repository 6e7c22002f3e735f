"""The one place where ``passes`` touches private torch modules.

Each use names the versions it was checked on. Everything else in ``passes`` imports only
public names, and a linter rule (TID251) keeps it so.
"""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from functorch.compile import min_cut_rematerialization_partition
from torch import fx
from torch._functorch import config as functorch_config  # 2.13
from torch._functorch._aot_autograd.descriptors import InputMutationAOTOutput  # 2.13
from torch._functorch.compile_utils import fx_graph_cse  # 2.13
from torch._functorch.partitioners import cleanup_recompute_tags  # 2.13
from torch._guards import TracingContext, tracing  # 2.13
from torch._subclasses.fake_tensor import FakeTensorMode  # 2.13
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module  # 2.13
from torch.utils.checkpoint import CheckpointPolicy

MUST_SAVE = CheckpointPolicy.MUST_SAVE
MUST_RECOMPUTE = CheckpointPolicy.MUST_RECOMPUTE


def asks_to_recompute(node: fx.Node) -> bool:
    """Whether the user's checkpoint region asks for this node to be recomputed (2.11 to 2.13)."""
    return node.meta.get("recompute") in (MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE)


def mark_checkpoint_boundaries(module: fx.GraphModule) -> None:
    """Tag the values between checkpoint regions MUST_SAVE, in place, as torch does (2.13)."""
    cleanup_recompute_tags(module, is_default_partition=False)


def asks_to_save(node: fx.Node) -> bool:
    """Whether the user's checkpoint policy asks for this value to be kept (2.11 to 2.13)."""
    return node.meta.get("recompute") == MUST_SAVE


def make_graph_module(root: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """Return a module that writes its Python code when it is first called (2.11 to 2.13).

    Most graphs between passes are never called, and their code takes longer than the passes.
    """
    with _use_lazy_graph_module(True):
        return _make_graph_module(root, graph)


def merge_common_subexpressions(graph: fx.Graph) -> fx.Graph:
    """Return a copy of ``graph`` with equal pure calls merged.

    The same pass runs inside ``min_cut_rematerialization_partition`` (2.13), so planning on
    its result is planning on what torch itself would partition.
    """
    merged: fx.Graph = fx_graph_cse(graph)
    merged._codegen = copy.copy(graph._codegen)
    return merged


@contextlib.contextmanager
def partitioner_takes_graph_as_is() -> Iterator[None]:
    """Switch off what would undo explicit tags inside torch's min-cut partitioner.

    Merging common subexpressions would join a rematerialised clone with its original, and a
    budget below 1 would run the knapsack over values that are already decided (2.13).
    """
    with functorch_config.patch(cse=False, activation_memory_budget=1.0):
        yield


class ChosenError(Exception):
    """Ends a partitioner once it has chosen what to save.

    Attributes:
        module: the joint graph, which the partitioner has changed.
        saved: its nodes that are to be saved, some of which no gradient may be computed from.
    """

    def __init__(self, module: fx.GraphModule, saved: list[fx.Node]) -> None:
        super().__init__()
        self.module = module
        self.saved = saved


def choosing_partitioner() -> Callable[..., tuple[fx.GraphModule, fx.GraphModule]]:
    """Return torch's min-cut partitioner, which ends by a :class:`ChosenError`.

    It extracts the graphs by a function of its module, ``_extract_fwd_bwd_modules`` (2.11 to 2.13).
    What is returned is its own code with another function under that name: nothing in torch is
    patched. Where it never calls it, as for a graph with no gradient, it returns graphs as ever.
    """

    def stop(module: fx.GraphModule, saved_values: list[fx.Node], **_: Any) -> None:
        raise ChosenError(module, saved_values)

    whole = min_cut_rematerialization_partition
    names = {**whole.__globals__, "_extract_fwd_bwd_modules": stop}
    chooses = types.FunctionType(
        whole.__code__, names, whole.__name__, whole.__defaults__, whole.__closure__
    )
    chooses.__kwdefaults__ = whole.__kwdefaults__
    return chooses


@contextlib.contextmanager
def tracing_over(mode: FakeTensorMode) -> Iterator[None]:
    """Trace under ``mode`` with autocast and autograd off.

    A partitioner may be called while the user's autocast is on; ops inserted by a pass must
    run in exactly the dtypes they were written for (``torch._C._DisableAutocast``, 2.13). What is
    traced writes no Python code unless it is called, see :func:`make_graph_module`.
    """
    with mode, torch.no_grad(), torch._C._DisableAutocast(), _use_lazy_graph_module(True):
        yield


@contextlib.contextmanager
def partitioning(graph: fx.Graph) -> Iterator[None]:
    """Give torch's partitioner the tracing context it may ask for a fake mode (2.13).

    While a graph is being compiled there is one; for a count made later there is not.
    """
    context = TracingContext.try_get() or TracingContext(fake_mode_of(graph))
    with tracing(context):
        yield


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """Return the fake mode of the graph's values.

    Raises:
        ValueError: if no node carries a fake tensor in ``meta["val"]``.
    """
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if isinstance(mode, FakeTensorMode):
            return mode
    msg = (
        "no fake tensor found in the graph: expected meta['val'] on its placeholders as "
        "AOTAutograd leaves it; trace the model with torch.compile or aot_function"
    )
    raise ValueError(msg)


def is_input_mutation(description: object) -> bool:
    """Whether an output of a forward is the new value of an input (``meta["desc"]``, 2.13).

    The runtime copies it into the input and drops it, so the caller never holds it.
    """
    return isinstance(description, InputMutationAOTOutput)


def mutated_input(description: object) -> object | None:
    """Return the description of the input whose new value an output is, or None (2.13)."""
    return getattr(description, "mutated_input", None) if is_input_mutation(description) else None


def size_hint(size: int | torch.SymInt) -> int | None:
    """Return the concrete size behind ``size``, or None when it is unbacked.

    Reads ``SymInt.node.hint`` (2.11 to 2.13), which installs no guard.
    """
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else None
    return None if hint is None else int(hint)
