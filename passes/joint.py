"""The joint graph as the passes see it: AOTAutograd's forward and backward in one graph.

Owns the reading of a joint graph (which nodes are forward values, which depend on the
tangents) and its copying. Comes in: the GraphModule that AOTAutograd hands to a partitioner.
Goes out: :class:`JointGraph`, which every pass takes and returns. Changes nothing itself.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from passes import _torch


@dataclass(frozen=True)
class JointGraph:
    """A joint forward and backward graph with what a partitioner is told about it.

    Attributes:
        module: the graph module; inputs are primals, then tangents; outputs are the forward
            outputs, then one gradient (or None) for each primal.
        num_fwd_outputs: how many of the outputs belong to the forward.
        static_input_indices: primals that live as long as the model (parameters, buffers).
    """

    module: fx.GraphModule
    num_fwd_outputs: int
    static_input_indices: tuple[int, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The fx graph."""
        return self.module.graph

    @property
    def primals(self) -> list[fx.Node]:
        """The forward inputs, in order."""
        return [n for n in self.graph.find_nodes(op="placeholder") if not is_tangent(n)]

    @property
    def outputs(self) -> tuple[Any, ...]:
        """The flat outputs: nodes, or None for a primal without gradient."""
        return tuple(_flat(output_node(self.graph).args[0]))

    def bwd_outputs(self) -> list[fx.Node]:
        """The backward's output nodes (gradients)."""
        return [o for o in self.outputs[self.num_fwd_outputs :] if isinstance(o, fx.Node)]

    def static_inputs(self) -> list[fx.Node]:
        """Parameters and buffers: they are alive anyway, so keeping them costs nothing."""
        primals = self.primals
        return [primals[i] for i in self.static_input_indices if i < len(primals)]

    def caller_held_inputs(self) -> list[fx.Node]:
        """Batch data: inputs that get no gradient and that the caller keeps alive.

        Outputs past the forward are one gradient a primal, None where none is wanted. A
        graph input that does get a gradient is an activation (of an earlier graph, say).
        """
        primals = self.primals
        gradients = self.outputs[self.num_fwd_outputs :]
        if len(gradients) != len(primals):
            return []
        static = set(self.static_inputs())
        pairs = zip(primals, gradients, strict=True)
        return [p for p, g in pairs if g is None and p not in static]

    def held_inputs(self) -> frozenset[str]:
        """Names of the inputs that are alive whatever the backward keeps."""
        held = (*self.static_inputs(), *self.caller_held_inputs())
        return frozenset(node.name for node in held)

    def mutated_inputs(self) -> frozenset[fx.Node]:
        """Inputs that hold another value once the forward has run: buffers that it updates."""
        described = output_node(self.graph).meta.get("desc")
        told = described if isinstance(described, (list, tuple)) else ()
        new = [given for output in told if (given := _torch.mutated_input(output)) is not None]
        written = [node.args[0] for node in self.graph.nodes if is_write(node)]
        return frozenset(p for p in self.primals if p in written or p.meta.get("desc") in new)

    def backward_nodes(self) -> dict[fx.Node, None]:
        """Every node that depends on a tangent, in graph order (a dict used as ordered set)."""
        found: dict[fx.Node, None] = {}
        for node in self.graph.nodes:
            tagged = node.meta.get("partitioner_tag") == "must_be_in_backward"
            if node.op == "output":
                continue
            if is_tangent(node) or tagged or any(i in found for i in node.all_input_nodes):
                found[node] = None
        return found

    def copy(self) -> JointGraph:
        """Return a copy that shares no node with this one; names and metadata are kept."""
        return self.with_module(copy_module(self.module))

    def with_module(self, module: fx.GraphModule) -> JointGraph:
        """Return the same joint graph around another module."""
        return JointGraph(module, self.num_fwd_outputs, self.static_input_indices)


def is_tangent(node: fx.Node) -> bool:
    """Whether ``node`` is a gradient that flows in from outside (AOTAutograd's naming)."""
    return node.op == "placeholder" and "tangents" in str(node.target)


def is_write(node: fx.Node) -> bool:
    """Whether ``node`` writes into one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def output_node(graph: fx.Graph) -> fx.Node:
    """Return the graph's only output node."""
    output: fx.Node = next(iter(graph.find_nodes(op="output")))
    return output


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph module node by node, metadata and calling convention included."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        mapping[node] = graph.node_copy(node, lambda n: mapping[n])
        mapping[node].name = node.name
    graph._codegen = copy.copy(module.graph._codegen)
    return _torch.make_graph_module(module, graph)


def tensor_val(node: fx.Node) -> torch.Tensor | None:
    """Return the node's fake tensor, or None when it yields something else."""
    val = node.meta.get("val")
    return val if isinstance(val, torch.Tensor) else None


def tensor_nbytes(val: torch.Tensor) -> int | None:
    """Bytes of a dense tensor of that shape and dtype; None when a size is unknown."""
    numel = 1
    for size in val.shape:
        hint = _torch.size_hint(size)
        if hint is None:
            return None
        numel *= hint
    return numel * val.dtype.itemsize


def hinted_shape(val: torch.Tensor) -> tuple[int, ...]:
    """Return the shape with symbolic sizes replaced by their hints.

    Only called where :func:`tensor_nbytes` found every size known.
    """
    sizes = [_torch.size_hint(s) for s in val.shape]
    assert None not in sizes, f"unknown size in {tuple(val.shape)}"
    return tuple(s for s in sizes if s is not None)


def layout_hint(val: torch.Tensor) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Return sizes and strides with symbols replaced by their hints, None where unknown.

    Unlike ``is_contiguous`` or a comparison of the sizes it installs no guard.
    """
    sizes = tuple(_torch.size_hint(size) for size in val.shape)
    return sizes, tuple(_torch.size_hint(stride) for stride in val.stride())


def argument_nodes(argument: Any) -> list[fx.Node]:
    """Return the nodes inside one argument of a call (itself, or those of a list)."""
    leaves = pytree.tree_leaves(argument)
    return [leaf for leaf in leaves if isinstance(leaf, fx.Node)]


def _flat(outputs: Any) -> list[Any]:
    if isinstance(outputs, (list, tuple)):
        return [leaf for item in outputs for leaf in _flat(item)]
    return [outputs]


def memory_order(val: torch.Tensor, channels_last: bool = False) -> tuple[int, ...]:
    """Return the dims of ``val`` from outermost to innermost in memory.

    Any order is correct; one that is not the memory's is slower. Ties and unknown strides keep
    the logical order. With ``channels_last`` a 4-D value is taken to be laid out so.
    """
    if channels_last and val.dim() == 4:
        return (0, 2, 3, 1)
    strides = [_torch.size_hint(s) for s in val.stride()]
    if any(s is None for s in strides):
        return tuple(range(val.dim()))
    return tuple(sorted(range(val.dim()), key=lambda d: -(strides[d] or 0)))


def place_after(node: fx.Node, seed: fx.Node | None = None) -> fx.Node:
    """The place right behind ``node``, past all placeholders; for a placeholder, past its seed."""
    following = seed.next if seed is not None and node.op == "placeholder" else node.next
    while following.op == "placeholder":
        following = following.next
    return following
