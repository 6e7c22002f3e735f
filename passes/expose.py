"""*expose*: make every linear use and every mask visible; the numbers are kept."""

from __future__ import annotations

import operator

import torch
from torch import fx

from passes import _torch
from passes.decompose import DecompositionTable, Inserter, decompose
from passes.joint import JointGraph, output_node
from passes.slices import SliceTable, form_slices_apart


def expose(
    joint: JointGraph,
    table: DecompositionTable,
    inner_table: DecompositionTable,
    slices: SliceTable | None = None,
) -> JointGraph:
    """Return the joint graph with the calls in ``table`` taken apart and equal calls merged.

    Args:
        joint: the graph as AOTAutograd traced it; left untouched.
        table: backward ops to functions that show what they read of the forward and how,
            such as one convolution backward as three gradients.
        inner_table: decompositions for the ops that those functions are made of.
        slices: see :func:`passes.slices.form_slices_apart`.

    Returns:
        The new joint graph.
    """
    exposed = joint.with_module(decompose(joint.module, table, inner_table))
    exposed.graph.eliminate_dead_code()
    exposed.module.graph = _torch.merge_common_subexpressions(exposed.graph)
    _flatten_concatenations(exposed.graph)
    form_slices_apart(exposed.graph, slices or {}, Inserter(inner_table))
    _torch.mark_checkpoint_boundaries(exposed.module)
    _hoist_forward_values(exposed)
    exposed.module.recompile()
    return exposed


def _flatten_concatenations(graph: fx.Graph) -> None:
    """Let a concatenation read the parts of those that it joins.

    Each layer of a DenseNet joins one more part to all those before it. Where such a value is made
    again in the backward it would otherwise take all the smaller ones, which then wait for their
    own layers.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        parts = node.args[0]
        assert isinstance(parts, (list, tuple)), f"{node} concatenates {parts}"
        flat = [p for part in parts for p in (part.args[0] if _joins_alike(part, node) else [part])]
        if len(flat) > len(parts):
            node.update_arg(0, flat)
    graph.eliminate_dead_code()


def _joins_alike(part: object, node: fx.Node) -> bool:
    """Whether a part is itself a concatenation, along the same dim and in the same dtype.

    A region that the user checkpoints keeps its own.
    """
    if not isinstance(part, fx.Node) or part.target is not node.target:
        return False
    if part.kwargs or node.kwargs:  # AOTAutograd gives the dim by position
        return False
    ours, theirs = node.meta["val"], part.meta["val"]
    dims = [int(n.args[1]) % ours.dim() if len(n.args) > 1 else 0 for n in (part, node)]  # type: ignore[arg-type]
    checkpointed = any(n.meta.get("recompute") is not None for n in (part, node))
    return dims[0] == dims[1] and ours.dtype == theirs.dtype and not checkpointed


def _hoist_forward_values(joint: JointGraph) -> None:
    """Move forward values that were written down among backward nodes up to their inputs.

    A mask or a normalised input is formed by a backward formula, but the forward may keep it;
    formed where its inputs are, it lets them go early.
    """
    backward = joint.backward_nodes()
    nodes = [node for node in joint.graph.nodes if node.op not in ("placeholder", "output")]
    start = next((i for i, node in enumerate(nodes) if node in backward), len(nodes))
    anchors: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        hoisted = i > start and node not in backward and _is_pure(node)
        inputs = [anchors[n] for n in node.all_input_nodes if n in anchors]
        anchors[node] = max(inputs, default=-1) if hoisted else i
    order = sorted(range(len(nodes)), key=lambda i: (anchors[nodes[i]], i))
    output = output_node(joint.graph)
    for i in order:
        output.prepend(nodes[i])


def _is_pure(node: fx.Node) -> bool:
    """Whether moving a call changes nothing: it draws no random number and writes nothing."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem
    random = torch.Tag.nondeterministic_seeded in target.tags
    return not random and not target._schema.is_mutable
