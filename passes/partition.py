"""*partition*: cut a planned joint graph into forward and backward with torch's partitioner.

The plan is in the graph already: kept values are tagged MUST_SAVE, recomputed clones and
decodes MUST_RECOMPUTE. One thing torch's partitioner (2.11 to 2.13) would do wrong: a kept
value that no forward output depends on, such as a seed or a sketch, is "unclaimed" to it, its
tag is ignored, and the backward encodes once more, from an exact value that the plan did not keep
and with a seed that may be another. So kept values are handed over
as extra forward outputs, which makes them claimed, and dropped from the forward afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from functorch.compile import min_cut_rematerialization_partition
from torch import fx

from passes import _torch
from passes.decompose import DecompositionTable, decompose
from passes.joint import JointGraph, is_write, output_node


@dataclass(frozen=True)
class Partition:
    """The two graphs.

    Attributes:
        forward: returns the forward outputs, then the kept values.
        backward: takes the kept values, then the tangents.
        num_fwd_outputs: how many of the forward's outputs are not kept values.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    num_fwd_outputs: int

    def kept_nodes(self) -> list[fx.Node]:
        """The forward's nodes that are kept for the backward, graph inputs included."""
        outputs = _output_list(self.forward)[self.num_fwd_outputs :]
        return [node for node in outputs if isinstance(node, fx.Node)]


def partition(joint: JointGraph, joint_inputs: Any, **kwargs: Any) -> Partition:
    """Split a planned joint graph exactly as its tags say.

    Args:
        joint: the graph made by :func:`passes.sketch.apply_plan`; left untouched.
        joint_inputs: passed through to torch's partitioner.
        kwargs: what the partitioner was called with, ``num_fwd_outputs`` left out.

    Returns:
        Forward and backward. No random op is in the backward.
    """
    work = joint.copy()
    kept = [
        node
        for node in work.graph.nodes
        if node.meta.get("recompute") == _torch.MUST_SAVE and node.op != "placeholder"
    ]
    _insert_outputs(work, kept)
    with _torch.partitioner_takes_graph_as_is():
        forward, backward = min_cut_rematerialization_partition(
            work.module,
            joint_inputs,
            num_fwd_outputs=joint.num_fwd_outputs + len(kept),
            static_lifetime_input_indices=list(joint.static_input_indices),
            **kwargs,
        )
    forward, backward = _owned(forward), _owned(backward)
    _drop_outputs(forward, joint.num_fwd_outputs, len(kept))
    return Partition(forward, backward, joint.num_fwd_outputs)


def partition_exact(
    joint: JointGraph,
    joint_inputs: Any,
    table: DecompositionTable = MappingProxyType({}),
    inner_table: DecompositionTable = MappingProxyType({}),
    **kwargs: Any,
) -> Partition:
    """Split a joint graph as torch does by default: the counterfactual, and the fallback.

    Args:
        joint: the graph as AOTAutograd traced it; left untouched.
        joint_inputs: passed through to torch's partitioner.
        table: ops that were traced whole, which torch would have had taken apart; see
            :func:`passes.decompose.decompose`.
        inner_table: see there.
        kwargs: what the partitioner was called with, ``num_fwd_outputs`` left out.

    Returns:
        Forward and backward as torch's min-cut partitioner makes them.
    """
    work = joint.with_module(decompose(joint.module, table, inner_table))
    return _partition_by(min_cut_rematerialization_partition, work, joint_inputs, kwargs)


def kept_exactly(
    joint: JointGraph,
    joint_inputs: Any,
    table: DecompositionTable = MappingProxyType({}),
    inner_table: DecompositionTable = MappingProxyType({}),
    **kwargs: Any,
) -> list[fx.Node]:
    """Return what :func:`partition_exact` keeps, without the graphs, which take as long again.

    Args:
        joint: see :func:`partition_exact`, as for the rest.
        joint_inputs: see there.
        table: see there.
        inner_table: see there.
        kwargs: see there.

    Returns:
        Nodes named like those of the partition. Sizes may be left out.
    """
    work = joint.with_module(decompose(joint.module, table, inner_table))
    partitioner = _torch.choosing_partitioner()
    if any(map(_torch.asks_to_recompute, random_nodes(work.graph))):
        # Torch adds the generator's state to what it has chosen.
        partitioner = min_cut_rematerialization_partition
    try:
        split = _partition_by(partitioner, work, joint_inputs, kwargs)
    except _torch.ChosenError as chosen:
        return _read_in_backward(work.with_module(chosen.module), chosen.saved, chosen.others)
    return split.kept_nodes()


def _partition_by(
    partitioner: _torch.Partitioner,
    work: JointGraph,
    joint_inputs: Any,
    kwargs: Mapping[str, Any],
) -> Partition:
    with _torch.partitioning(work.graph):
        forward, backward = partitioner(
            work.module,
            joint_inputs,
            num_fwd_outputs=work.num_fwd_outputs,
            static_lifetime_input_indices=list(work.static_input_indices),
            **kwargs,
        )
    return Partition(forward, backward, work.num_fwd_outputs)


def _read_in_backward(
    joint: JointGraph, saved: list[fx.Node], others: list[fx.Node]
) -> list[fx.Node]:
    """Leave out of what is to be saved what the backward does not read, as torch does later."""
    stack = [*joint.bwd_outputs(), *filter(is_write, joint.backward_nodes())]
    boundary, seen = {*saved, *others}, set[fx.Node]()
    while stack:
        node = stack.pop()
        if node not in seen and node not in boundary:
            stack.extend(node.all_input_nodes)
        seen.add(node)
    return [node for node in saved if node in seen]


def _owned(module: fx.GraphModule) -> fx.GraphModule:
    """Make a graph of torch's partitioner one that passes may change in place.

    Its inputs share metadata with the other graph's, and its code would be written at each pass.
    """
    for node in module.graph.find_nodes(op="placeholder"):
        node.meta = dict(node.meta)
    return _torch.make_graph_module(module, module.graph)


def random_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the calls that draw from a generator."""
    return [
        node
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    ]


def _output_list(module: fx.GraphModule) -> list[Any]:
    outputs = output_node(module.graph).args[0]
    assert isinstance(outputs, (list, tuple)), "a partitioned graph returns a flat list"
    return list(outputs)


def _insert_outputs(joint: JointGraph, kept: list[fx.Node]) -> None:
    output = output_node(joint.graph)
    split = joint.num_fwd_outputs
    outputs = _output_list(joint.module)
    output.args = ([*outputs[:split], *kept, *outputs[split:]],)
    if isinstance(output.meta.get("desc"), (list, tuple)):
        descriptions = list(output.meta["desc"])
        output.meta["desc"] = [*descriptions[:split], *(None for _ in kept), *descriptions[split:]]
    joint.module.recompile()


def _drop_outputs(forward: fx.GraphModule, start: int, count: int) -> None:
    output = output_node(forward.graph)
    outputs = _output_list(forward)
    output.args = (tuple(outputs[:start] + outputs[start + count :]),)
    for field in ("desc", "output_stack_traces"):
        entries = output.meta.get(field)
        if isinstance(entries, (list, tuple)) and len(entries) == len(outputs):
            output.meta[field] = type(entries)([*entries[:start], *entries[start + count :]])
    forward.graph.lint()
    forward.recompile()
