"""A partitioned graph as the sequence of kernels that an inner compiler runs.

Comes in: a forward or backward graph. Goes out: :class:`Program`, whose kernels allocate
values, read others and need workspace. For an interpreter (``aot_eager``) every call is a
kernel; what Inductor makes of a graph is read from Inductor itself, outside of ``passes``. Runs and
generates nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from passes.joint import output_node, tensor_nbytes, tensor_val
from passes.op_traits import is_view
from passes.provenance import module_of
from passes.workspace import Workspaces, workspace_nbytes

# Views that their schema does not declare.
_VIEWS = frozenset({"aten._unsafe_view", "aten._reshape_alias", "prims.broadcast_in_dim"})


@dataclass(frozen=True)
class Kernel:
    """One launch: it allocates its outputs while all it reads is still there.

    Attributes:
        name: of the call that it is, or the last of those that it was fused from.
        module: path of the module that call belongs to.
        outputs: the values it allocates.
        reads: the values it reads, views resolved to what they view.
        workspace_nbytes: what it allocates and frees again while it runs.
        reused: values read here for the last time whose memory an output takes.
    """

    name: str
    module: str
    outputs: tuple[str, ...]
    reads: tuple[str, ...]
    workspace_nbytes: int = 0
    reused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """The kernels of one graph in the order of execution, and the values they work on, by name.

    Attributes:
        kernels: the kernels.
        nbytes: bytes of each value that owns memory; None where the size is unknown.
        inputs: the value behind each input of the graph.
        outputs: the value whose memory each output lives in; None for what is no tensor.
    """

    kernels: tuple[Kernel, ...]
    nbytes: Mapping[str, int | None]
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]


def interpret(graph: fx.Graph, *, workspaces: Workspaces | None = None) -> Program:
    """Return the kernels of an interpreter: one a call, each output a buffer of its own.

    Args:
        graph: a lowered forward or backward.
        workspaces: what ops that are not torch's need while they run.
    """
    base = base_values(graph)
    kernels = [
        Kernel(
            node.name,
            module_of(node),
            _owned_outputs(node, base),
            tuple(dict.fromkeys(base[n].name for n in node.all_input_nodes)),
            workspace_nbytes(node, others=workspaces),
        )
        for node in graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
    ]
    return Program(
        tuple(kernels),
        _value_nbytes(base),
        tuple(node.name for node in graph.find_nodes(op="placeholder")),
        tuple(_value_of(output, base) for output in _outputs(graph)),
    )


def base_values(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Map each node of a graph to the value whose memory it lives in."""
    base: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        base[node] = node
        if isinstance(source, fx.Node):
            is_part_of_view = node.target is operator.getitem and base[source] is not source
            base[node] = base[source] if _is_alias(node) or is_part_of_view else node
    return base


def _is_alias(node: fx.Node) -> bool:
    """Whether a node's result lives in the memory of its first argument."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    written = any(r.alias_info is not None for r in target._schema.returns)
    return written or is_view(target) or str(target.overloadpacket) in _VIEWS


def _value_nbytes(base: dict[fx.Node, fx.Node]) -> dict[str, int | None]:
    sizes: dict[str, int | None] = {}
    for node, owner in base.items():
        val = tensor_val(node)
        if owner is node and val is not None:
            sizes[node.name] = tensor_nbytes(val)
    return sizes


def _owned_outputs(node: fx.Node, base: dict[fx.Node, fx.Node]) -> tuple[str, ...]:
    """The values that a call allocates: its result, or the items taken of it."""
    if tensor_val(node) is not None:
        return (node.name,) if base[node] is node else ()
    return tuple(
        user.name
        for user in node.users
        if user.target is operator.getitem and tensor_val(user) is not None and base[user] is user
    )


def _outputs(graph: fx.Graph) -> Sequence[object]:
    outputs = output_node(graph).args[0]
    assert isinstance(outputs, (list, tuple)), "a partitioned graph returns a flat list"
    return outputs


def _value_of(output: object, base: dict[fx.Node, fx.Node]) -> str | None:
    if not isinstance(output, fx.Node) or tensor_val(output) is None:
        return None
    return base[output].name
