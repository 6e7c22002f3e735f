"""Form the slices of a result on their own, where an op allows it; the numbers are kept.

The gradient of a concatenation is cut into the gradients of its parts, which are views of one
tensor: the part that is needed last, a U-Net's skip say, holds the memory of all. An op whose
result can be formed slice by slice is called once a slice instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from passes.decompose import Inserter
from passes.joint import tensor_val

aten = torch.ops.aten

SliceTable = Mapping[Any, Callable[..., Any]]
"""Op to a function of a call's arguments, ``start`` and ``stop``: the result's slice along dim 1.

It may return NotImplemented.
"""


def form_slices_apart(graph: fx.Graph, table: SliceTable, inserter: Inserter) -> None:
    """Call an op once a slice, in place, where nothing but slices of its result is read.

    Args:
        graph: with fake tensors in ``meta["val"]``.
        table: the ops that allow it.
        inserter: traces the functions of the table.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in table or len(node.users) < 2:
            continue
        slices = {user: _bounds(user) for user in node.users}
        if _are_disjoint(slices.values()):
            _call_by_slice(node, slices, table[node.target], inserter)


def _call_by_slice(
    node: fx.Node,
    slices: Mapping[fx.Node, tuple[int, int] | None],
    function: Callable[..., Any],
    inserter: Inserter,
) -> None:
    for user, bounds in slices.items():
        assert bounds is not None, f"{user} is no slice of {node}"
        made = inserter.insert(function, [*node.args, *bounds], node, provenance=node)
        if made is NotImplemented:
            return
        user.replace_all_uses_with(made)
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _bounds(user: fx.Node) -> tuple[int, int] | None:
    """Where a slice along dim 1 starts and stops; None for anything else, or unknown sizes."""
    if user.target is not aten.slice.Tensor:
        return None
    arguments: list[Any] = [*user.args, *(0, 0, None, 1)[len(user.args) - 1 :]]
    source, dim, start, stop, step = arguments
    val = tensor_val(source) if isinstance(source, fx.Node) else None
    if val is None or dim != 1 or step != 1:
        return None
    size, start = val.shape[1], 0 if start is None else start
    stop = size if stop is None else stop
    if not all(isinstance(number, int) for number in (size, start, stop)):
        return None
    first, last, _ = slice(start, stop).indices(size)
    return first, last


def _are_disjoint(slices: Any) -> bool:
    bounds = list(slices)
    if any(pair is None for pair in bounds):
        return False
    ordered = sorted(bounds)
    return all(a[1] <= b[0] for a, b in zip(ordered, ordered[1:], strict=False))
