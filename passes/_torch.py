"""The one place where ``passes`` touches private torch modules.

Each use names the versions it was checked on. Everything else in ``passes`` imports only
public names, and a linter rule (TID251) keeps it so.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
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
        saved: its tensors that are to be saved, some of which no gradient may be computed from.
        others: its sizes and objects that are to be saved.
    """

    def __init__(self, module: fx.GraphModule, saved: list[fx.Node], others: list[fx.Node]) -> None:
        super().__init__()
        self.module = module
        self.saved = saved
        self.others = others


Partitioner = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]


def choosing_partitioner() -> Partitioner:
    """Return torch's min-cut partitioner, which ends by a :class:`ChosenError`.

    It extracts the graphs by a function of its module, ``_extract_fwd_bwd_modules`` (2.11 to 2.13).
    What is returned is its own code with another function under that name: nothing in torch is
    patched. Where it does not call it, as for a graph with no gradient or in a torch that has none,
    it returns graphs as ever.
    """
    whole: Partitioner = min_cut_rematerialization_partition
    extract = getattr(whole, "__globals__", {}).get("_extract_fwd_bwd_modules")
    if not isinstance(whole, types.FunctionType) or extract is None:
        return whole
    signature = inspect.signature(extract)
    if not {"joint_module", "saved_values"} <= signature.parameters.keys():
        return whole

    def stop(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        others = [*given.get("saved_sym_nodes", ()), *(given.get("saved_opaque_nodes") or ())]
        raise ChosenError(given["joint_module"], given["saved_values"], others)

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
    with contextlib.ExitStack() as stack:
        stack.enter_context(mode)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch._C._DisableAutocast())
        stack.enter_context(_use_lazy_graph_module(True))
        stack.enter_context(_modules_left_alone())
        yield


# What fx's tracer replaces while it traces, and a mark of what it leaves alone, since it takes that
# for replaced already (2.11 to 2.13; its own mark goes by another name, mangled).
_REPLACED_METHODS = ("__call__", "__getattr__")
_IS_REPLACED = "__fx_already_patched"


@contextlib.contextmanager
def _modules_left_alone() -> Iterator[None]:
    """Keep fx's tracer from replacing methods of ``nn.Module`` while it traces.

    They have thousands of classes that inherit them, which Python goes through at every change:
    half of the time of a small trace. What is traced here are functions of tensors; another thread
    that traced a model in the same moment would find its modules written out.
    """
    found = [vars(torch.nn.Module).get(name) for name in _REPLACED_METHODS]
    methods = [method for method in found if isinstance(method, types.FunctionType)]
    marked = [method for method in methods if _IS_REPLACED not in vars(method)]
    for method in marked:
        vars(method)[_IS_REPLACED] = True
    try:
        yield
    finally:
        for method in marked:
            vars(method).pop(_IS_REPLACED, None)


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
