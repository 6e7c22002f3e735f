"""*observe*: run a joint graph's backward node by node, with every forward value at hand.

Comes in: an exposed joint graph. Goes out: a :class:`Partition` whose backward is one opaque
call of the caller's function, and :class:`Replay`, which holds the values of one step and runs
parts of the backward again on others. The numbers are those of the joint graph; nothing is saved
in memory, for this is the partition of a measurement.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from passes.joint import JointGraph, is_tangent, output_node, tensor_val
from passes.partition import Partition

RunBackward = Callable[[Mapping[str, torch.Tensor]], Sequence[torch.Tensor | None]]
"""Takes kept values and tangents by name, returns the gradients in the order of the outputs."""

_STEP = "observed_backward"


def observed_partition(
    joint: JointGraph, kept: Sequence[str], run_backward: RunBackward
) -> Partition:
    """Split a joint graph so that a function runs the backward.

    Args:
        joint: an exposed joint graph of static sizes; left untouched.
        kept: names of the forward values that the function is to be given.
        run_backward: the function.

    Returns:
        Forward and backward for AOTAutograd. Only an interpreter can run the backward.
    """
    return Partition(
        _forward(joint, kept), _backward(joint, kept, run_backward), joint.num_fwd_outputs
    )


def values_read(joint: JointGraph) -> tuple[str, ...]:
    """Name the forward values that the backward reads, in graph order.

    Raises:
        ValueError: if it reads a number that is known only when the step runs.
    """
    backward = joint.backward_nodes()
    gradients = set(joint.bwd_outputs())
    read = []
    for node in joint.graph.nodes:
        is_read = node in gradients or any(user in backward for user in node.users)
        if node in backward or node.op in ("output", "get_attr") or not is_read:
            continue
        if tensor_val(node) is None:
            raise ValueError(
                f"the backward reads {node.name} ({node.target}), which is no tensor but "
                f"{node.meta.get('val')!r}: only graphs whose sizes are all known when they are "
                "compiled can be observed. Compile with dynamic=False, on inputs of fixed shape"
            )
        read.append(node.name)
    return tuple(read)


@dataclass(frozen=True)
class Replay:
    """The values of one step, and the backward to run on other ones.

    Attributes:
        joint: the joint graph.
        values: of the kept forward values, the tangents and all backward nodes.
        order: the backward nodes that are calls, in graph order.
    """

    joint: JointGraph
    values: Mapping[fx.Node, Any]
    order: tuple[fx.Node, ...]

    @classmethod
    def of(cls, joint: JointGraph, given: Mapping[str, torch.Tensor]) -> Replay:
        """Run the backward once.

        Args:
            joint: an exposed joint graph.
            given: its kept forward values and tangents by name.
        """
        values: dict[fx.Node, Any] = {}
        for node in joint.graph.nodes:
            if node.name in given:
                values[node] = given[node.name]
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(joint.module)
        order = tuple(n for n in joint.backward_nodes() if n.op == "call_function")
        for node in order:
            values[node] = _call(node, values, {})
        return cls(joint, values, order)

    def call(self, node: fx.Node, changed: Mapping[fx.Node, Any]) -> Any:
        """Run one call again, on changed values where there are any."""
        return _call(node, self.values, changed)

    def after(self, changed: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Run what follows in the backward from changed results (or tangents).

        Returns:
            The changed values, and those that follow from them.
        """
        found = dict(changed)
        for node in self.order:
            if node not in found and any(source in found for source in node.all_input_nodes):
                found[node] = self.call(node, found)
        return found

    def gradients(self) -> list[torch.Tensor | None]:
        """The backward's results, in the order of the graph's outputs."""
        outputs = self.joint.outputs[self.joint.num_fwd_outputs :]
        return [self.values[o] if isinstance(o, fx.Node) else o for o in outputs]


def _call(node: fx.Node, values: Mapping[fx.Node, Any], changed: Mapping[fx.Node, Any]) -> Any:
    arguments = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: changed[n] if n in changed else values[n]
    )
    args, kwargs = arguments
    assert callable(node.target), f"{node} is no call"
    return node.target(*args, **kwargs)


class _Step(torch.nn.Module):
    """Calls the function: fx calls modules by name, but no plain objects."""

    def __init__(self, names: Sequence[str], run_backward: RunBackward) -> None:
        super().__init__()
        self._names = tuple(names)
        self._run_backward = run_backward

    def __deepcopy__(self, memo: dict[int, Any]) -> _Step:
        """Stay the same: AOTAutograd copies the backward (2.13), and the function may collect."""
        return self

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return tuple(self._run_backward(dict(zip(self._names, given, strict=True))))


def _forward(joint: JointGraph, kept: Sequence[str]) -> fx.GraphModule:
    work = joint.copy()
    by_name = {node.name: node for node in work.graph.nodes}
    output = output_node(work.graph)
    output.args = (tuple([*work.outputs[: work.num_fwd_outputs], *(by_name[n] for n in kept)]),)
    for name in ("desc", "output_stack_traces"):
        output.meta.pop(name, None)
    backward = list(joint.backward_nodes())
    for node in reversed([by_name[n.name] for n in backward]):
        work.graph.erase_node(node)
    work.graph.eliminate_dead_code()
    # The joint graph takes (primals, tangents); the forward takes a flat list.
    work.graph.set_codegen(fx.graph.CodeGen())
    work.graph.lint()
    work.module.recompile()
    return work.module


def _backward(joint: JointGraph, kept: Sequence[str], run_backward: RunBackward) -> fx.GraphModule:
    tangents = [n for n in joint.graph.find_nodes(op="placeholder") if is_tangent(n)]
    by_name = {node.name: node for node in joint.graph.nodes}
    given = [*(by_name[name] for name in kept), *tangents]
    graph = fx.Graph()
    placeholders = []
    for node in given:
        placeholder = graph.placeholder(node.name)
        placeholder.meta["val"] = node.meta["val"]
        placeholders.append(placeholder)
    called = graph.call_module(_STEP, tuple(placeholders))
    results: list[fx.Node | None] = []
    for i, gradient in enumerate(joint.outputs[joint.num_fwd_outputs :]):
        if not isinstance(gradient, fx.Node):
            results.append(None)
            continue
        result = graph.call_function(operator.getitem, (called, i))
        result.meta["val"] = gradient.meta["val"]
        results.append(result)
    graph.output(tuple(results))
    return fx.GraphModule({_STEP: _Step([n.name for n in given], run_backward)}, graph)
