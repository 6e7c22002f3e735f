"""The verifier that runs after each pass: what must hold, or the graph is not used.

A failed check is a bug of ours (:class:`VerifierError`), never of the user; the backend falls
back to exact compilation and says so.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from passes import _torch
from passes.joint import JointGraph, is_tangent, output_node, tensor_val
from passes.partition import Partition, random_nodes


class VerifierError(AssertionError):
    """A pass left a graph that breaks one of its promises."""


def verify_joint(before: JointGraph, after: JointGraph, pass_name: str) -> None:
    """Check that a pass kept the joint graph's interface and that every value is typed.

    Raises:
        VerifierError: naming the pass, the node, and expected against got.
    """
    after.graph.lint()
    _check_vals(after.graph, pass_name)
    expected = [n.name for n in before.graph.find_nodes(op="placeholder")]
    got = [n.name for n in after.graph.find_nodes(op="placeholder")]
    _require(expected == got, pass_name, f"inputs: expected {expected}, got {got}")
    outputs = list(zip(before.outputs, after.outputs, strict=False))
    _require(
        len(before.outputs) == len(after.outputs),
        pass_name,
        f"number of outputs: expected {len(before.outputs)}, got {len(after.outputs)}",
    )
    for i, (old, new) in enumerate(outputs):
        _require(
            _type_of(old) == _type_of(new),
            pass_name,
            f"output {i} ({old}): expected {_type_of(old)}, got {_type_of(new)}",
        )


def verify_planned(joint: JointGraph, pass_name: str) -> None:
    """Check that the backward reads only inputs, kept values and recomputed ones."""
    backward = joint.backward_nodes()
    remade = [n for n in joint.graph.nodes if n.meta.get("recompute") == _torch.MUST_RECOMPUTE]
    for node in dict.fromkeys([*backward, *remade]):
        for value in node.all_input_nodes:
            _require(
                value in backward or _is_available(value),
                pass_name,
                f"{node} ({node.target}) reads {value}, which is neither kept nor recomputed",
            )


def verify_partition(joint: JointGraph, split: Partition) -> None:
    """Check the two graphs against the planned joint graph.

    No random op may be in the backward (a seed drawn twice makes gradients noise), and the
    forward must keep the tagged values and graph inputs only.
    """
    name = "partition"
    drawn = random_nodes(split.backward.graph)
    _require(not drawn, name, f"the backward draws random numbers: {drawn}")
    tagged = {n.name for n in joint.graph.nodes if n.meta.get("recompute") == _torch.MUST_SAVE}
    for node in split.kept_nodes():
        expected = node.name in tagged or node.op == "placeholder" or tensor_val(node) is None
        _require(expected, name, f"{node} is kept, but the plan did not keep it")
    outputs = output_node(split.forward.graph).args[0]
    assert isinstance(outputs, (list, tuple))
    for i, old in enumerate(joint.outputs[: joint.num_fwd_outputs]):
        _require(
            _type_of(old) == _type_of(outputs[i]),
            name,
            f"forward output {i}: expected {_type_of(old)}, got {_type_of(outputs[i])}",
        )


def verify_absent(graph: fx.Graph, targets: Collection[object], pass_name: str) -> None:
    """Check that no call of any of ``targets`` is left."""
    left = [n for n in graph.nodes if n.op == "call_function" and n.target in targets]
    _require(not left, pass_name, f"still present: {[(n.name, str(n.target)) for n in left]}")


def _is_available(value: fx.Node) -> bool:
    if value.op in ("placeholder", "get_attr") or is_tangent(value):
        return True
    if tensor_val(value) is None and not isinstance(value.meta.get("val"), (tuple, list)):
        return True
    return value.meta.get("recompute") in (_torch.MUST_SAVE, _torch.MUST_RECOMPUTE)


def _check_vals(graph: fx.Graph, pass_name: str) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and node.users:
            _require("val" in node.meta, pass_name, f"{node} ({node.target}) has no meta['val']")


def _type_of(node: object) -> tuple[torch.Size, torch.dtype, torch.device] | None:
    val = tensor_val(node) if isinstance(node, fx.Node) else None
    return None if val is None else (val.shape, val.dtype, val.device)


def _require(condition: bool, pass_name: str, problem: str) -> None:
    if not condition:
        msg = f"after pass {pass_name!r}: {problem}"
        raise VerifierError(msg)
