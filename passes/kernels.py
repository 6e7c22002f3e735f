"""A partitioned graph as the sequence of kernels that an inner compiler runs.

Comes in: a forward or backward graph. Goes out: :class:`Program`, whose kernels allocate
values, read others and need workspace. For an interpreter (``aot_eager``) every call is a
kernel; what Inductor fuses is modelled in :mod:`passes.fusion`. Runs and generates nothing.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from passes.joint import tensor_nbytes, tensor_val
from passes.op_traits import is_view
from passes.workspace import Workspaces, workspace_nbytes

# Views that their schema does not declare.
_VIEWS = frozenset({"aten._unsafe_view", "aten._reshape_alias", "prims.broadcast_in_dim"})


@dataclass(frozen=True)
class Kernel:
    """One launch: it allocates its outputs while all it reads is still there.

    Attributes:
        node: the call that names it.
        outputs: the values it allocates.
        reads: the values it reads, views resolved to what they view.
        workspace_nbytes: what it allocates and frees again while it runs.
        in_place: whether an output may take the memory of a value read here for the last time.
    """

    node: fx.Node
    outputs: tuple[fx.Node, ...]
    reads: tuple[fx.Node, ...]
    workspace_nbytes: int = 0
    in_place: bool = False


@dataclass(frozen=True)
class Program:
    """The kernels of one graph in the order of execution.

    Attributes:
        kernels: the kernels.
        base: for each node the value whose memory it lives in: itself, or what it views.
        nbytes: bytes of each value that owns memory; None where the size is unknown.
    """

    kernels: tuple[Kernel, ...]
    base: dict[fx.Node, fx.Node]
    nbytes: dict[fx.Node, int | None]


def interpret(graph: fx.Graph, *, workspaces: Workspaces | None = None) -> Program:
    """Return the kernels of an interpreter: one a call, each output a buffer of its own.

    Args:
        graph: a lowered forward or backward.
        workspaces: what ops that are not torch's need while they run.
    """
    base = base_values(graph)
    nbytes = value_nbytes(base)
    kernels = [
        Kernel(
            node,
            owned_outputs(node, base),
            _bases_read(node, base),
            workspace_nbytes(node, others=workspaces),
        )
        for node in graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
    ]
    return Program(tuple(kernels), base, nbytes)


def base_values(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Map each node to the value whose memory it lives in."""
    base: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = node.args[0] if node.args and is_alias(node) else None
        base[node] = base[source] if isinstance(source, fx.Node) else node
    return base


def is_alias(node: fx.Node) -> bool:
    """Whether a node's result lives in the memory of its first argument."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    written = any(r.alias_info is not None for r in target._schema.returns)
    return written or is_view(target) or str(target.overloadpacket) in _VIEWS


def value_nbytes(base: dict[fx.Node, fx.Node]) -> dict[fx.Node, int | None]:
    """Bytes of every value that owns memory; None where the size is unknown."""
    sizes: dict[fx.Node, int | None] = {}
    for node, owner in base.items():
        val = tensor_val(node)
        if owner is node and val is not None:
            sizes[node] = tensor_nbytes(val)
    return sizes


def owned_outputs(node: fx.Node, base: dict[fx.Node, fx.Node]) -> tuple[fx.Node, ...]:
    """The values that a call allocates: its result, or the items taken of it."""
    if tensor_val(node) is not None:
        return (node,) if base[node] is node else ()
    return tuple(
        u for u in node.users if u.target is operator.getitem and tensor_val(u) is not None
    )


def _bases_read(node: fx.Node, base: dict[fx.Node, fx.Node]) -> tuple[fx.Node, ...]:
    return tuple(dict.fromkeys(base[n] for n in node.all_input_nodes))
