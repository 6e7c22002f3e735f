"""A joint graph as lines of text that are the same in every process.

Comes in: an exposed joint graph. Goes out: one line a node with its op, arguments, shape and
dtype; nodes are numbered by position and symbolic sizes by first appearance, so that no node
name, symbol or address is in it. Devices are left out: ranks differ in them alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from passes.joint import JointGraph, is_tangent, output_node


def graph_lines(joint: JointGraph) -> tuple[str, ...]:
    """Return a line for each node in graph order, and a last one for the outputs.

    Args:
        joint: an exposed joint graph.

    Returns:
        Lines such as ``%3 = aten.relu.default(%2): float32[2, 8, s0]``.
    """
    nodes = [node for node in joint.graph.nodes if node.op != "output"]
    position = {node: i for i, node in enumerate(nodes)}
    static = set(joint.static_inputs())
    lines = [_line(node, position, node in static) for node in nodes]
    outputs = _argument(output_node(joint.graph).args[0], position)
    lines.append(f"return {outputs}, of which {joint.num_fwd_outputs} of the forward")
    return _number_symbols(lines)


def fingerprint(lines: Sequence[str]) -> str:
    """Return a short hash of a graph's lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def first_difference(expected: Sequence[str], got: Sequence[str]) -> int | None:
    """Return the number of the first line in which two graphs differ, or None."""
    for i, (one, other) in enumerate(zip(expected, got, strict=False)):
        if one != other:
            return i
    return None if len(expected) == len(got) else min(len(expected), len(got))


def lines_from_dict(
    given: Mapping[str, Any], made: str, error_type: Callable[[str], ValueError] = ValueError
) -> tuple[str, ...]:
    """Read a graph's lines from a record's plain dict, and check that they are as they were.

    Args:
        given: with the entries ``graph`` (the lines) and ``fingerprint``.
        made: what the record did with the graph, for the error.
        error_type: the error to raise.

    Raises:
        KeyError: if an entry is missing.
        ValueError: of ``error_type``, if the fingerprint is not that of the lines.
    """
    lines = tuple(str(line) for line in given["graph"])
    if fingerprint(lines) != given["fingerprint"]:
        raise error_type(
            f"the graph {made} as {given['fingerprint']} has the fingerprint "
            f"{fingerprint(lines)}: its lines were changed"
        )
    return lines


def describe_closest(candidates: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """Say which of some graphs is closest to one, and where they first differ.

    Args:
        candidates: the lines of one graph or more.
        lines: of the graph that was not among them.
    """
    closest = max(candidates, key=lambda c: first_difference(c, lines) or 0)
    at = first_difference(closest, lines) or 0
    return (
        f"the closest of {len(candidates)} is {fingerprint(closest)} ({len(closest)} lines). First "
        f"difference at node {at}: expected {_at(closest, at)!r}, got {_at(lines, at)!r}"
    )


def without_numbers(lines: Sequence[str]) -> tuple[str, ...]:
    """Return a graph's lines with sizes and other numbers left out, references to nodes kept."""
    return tuple(re.sub(r"(?<![%\w.])\d+(?:\.\d+)?", "#", line) for line in lines)


def _at(lines: Sequence[str], i: int) -> str:
    return lines[i] if i < len(lines) else "the end of the graph"


def _line(node: fx.Node, position: dict[fx.Node, int], is_static: bool) -> str:
    arguments = [_argument(arg, position) for arg in node.args]
    arguments += [
        f"{name}={_argument(value, position)}"
        for name, value in node.kwargs.items()
        if name != "device"
    ]
    if node.op == "placeholder":
        call = "tangent" if is_tangent(node) else "parameter" if is_static else "input"
    elif node.op == "call_function":
        call = f"{_target(node.target)}({', '.join(arguments)})"
    else:
        call = node.op
    return f"%{position[node]} = {call}: {_type(node.meta.get('val'))}"


def _target(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "")
    return f"{module}.{getattr(target, '__qualname__', type(target).__qualname__)}"


def _argument(argument: Any, position: dict[fx.Node, int]) -> str:
    if isinstance(argument, fx.Node):
        return f"%{position[argument]}"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_argument(item, position) for item in argument)}]"
    if isinstance(argument, dict):
        items = (f"{key}: {_argument(value, position)}" for key, value in argument.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(argument, slice):
        ends = (argument.start, argument.stop, argument.step)
        return ":".join(_argument(end, position) for end in ends)
    if isinstance(argument, torch.device):
        return "device"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(argument))


def _type(val: Any) -> str:
    if isinstance(val, torch.Tensor):
        sizes = ", ".join(str(size) for size in val.shape)
        return f"{str(val.dtype).removeprefix('torch.')}[{sizes}]"
    if isinstance(val, (list, tuple)):
        return f"({', '.join(map(_type, val))})"
    if isinstance(val, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return str(val)
    return type(val).__name__


def _number_symbols(lines: Sequence[str]) -> tuple[str, ...]:
    """Dynamo numbers symbols by a hash of their source, which may differ between processes."""
    numbers: dict[str, int] = {}

    def renamed(match: re.Match[str]) -> str:
        return f"s{numbers.setdefault(match.group(), len(numbers))}"

    return tuple(re.sub(r"\b[suz]u?\d+\b", renamed, line) for line in lines)
