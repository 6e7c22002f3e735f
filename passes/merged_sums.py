"""Sums of one value over the same dimensions, taken once.

The gradients of a norm's affine parameters are the sums that the gradient of its input needs the
means of, but each rule forms its own: a sum of the whole activation, and of its product with the
normalised input, twice over. A loop that fuses them adds every element up twice, and on a GPU the
second stages are two launches more (Inductor 2.11 to 2.13). Numbers differ by rounding alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from passes.decompose import Inserter
from passes.derive import sizes_of

aten = torch.ops.aten

_SUMS = (aten.sum.dim_IntList, aten.mean.dim)


def merge_sums(module: fx.GraphModule, inserter: Inserter) -> None:
    """Take sums and means of equal values over the same dimensions from one sum.

    Values are equal if they are one node, or the product of the same two, where a view of the same
    shape counts as what it is a view of.

    Args:
        module: a lowered graph; changed in place.
        inserter: with the inner compiler's decompositions.
    """
    for nodes in _groups(module.graph):
        first = nodes[0]
        total = inserter.call(
            aten.sum.dim_IntList, [*first.args[:2], True], first, provenance=first
        )
        for node in nodes:
            result = _from_total(node, total, inserter)
            node.replace_all_uses_with(result)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _groups(graph: fx.Graph) -> list[list[fx.Node]]:
    """Return the sums that are of one value, where there are several, each in graph order."""
    groups: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.target in _SUMS and (key := _key(node)) is not None:
            groups.setdefault(key, []).append(node)
    return [nodes for nodes in groups.values() if len(nodes) > 1]


def _key(node: fx.Node) -> tuple[Any, ...] | None:
    """What two sums of one value agree in; None for a sum that is left alone."""
    x, dims, *_ = node.args
    if not isinstance(x, fx.Node) or not isinstance(dims, (list, tuple)) or node.kwargs:
        return None
    val = x.meta["val"]
    # Integers and booleans have a sum of another dtype, and half types are rounded to.
    if not dims or val.dtype not in (torch.float32, torch.float64):
        return None
    summed = frozenset(dim % val.dim() for dim in dims if isinstance(dim, int))
    return (_value_key(x), summed) if len(summed) == len(dims) else None


def _value_key(x: fx.Node) -> Any:
    x = _behind_views(x)
    factors = x.all_input_nodes
    if x.target is not aten.mul.Tensor or len(factors) != 2:
        return x
    return frozenset(map(_behind_views, factors))


def _behind_views(x: fx.Node) -> fx.Node:
    """Return what a node is a view of, as long as the shape is the same."""
    while x.target is aten.view.default and sizes_of(x.all_input_nodes[0]) == sizes_of(x):
        x = x.all_input_nodes[0]
    return x


def _from_total(node: fx.Node, total: fx.Node, inserter: Inserter) -> fx.Node:
    """Insert what a sum or mean is, of its total with all dimensions left."""
    x, dims, *keepdim = node.args
    assert isinstance(x, fx.Node), f"{node} sums {x}"
    assert isinstance(dims, (list, tuple)), f"{node} sums over {dims}"
    result = total
    if keepdim != [True]:
        result = inserter.call(aten.squeeze.dims, [total, dims], node, provenance=node)
    if node.target is aten.sum.dim_IntList:
        return result
    numel = math.prod([x.meta["val"].shape[dim] for dim in dims])
    if isinstance(numel, int):
        return inserter.call(aten.div.Tensor, [result, numel], node, provenance=node)
    quotient: fx.Node = inserter.insert(_over_sizes, [result, x, dims], node, provenance=node)
    return quotient


def _over_sizes(total: Tensor, x: Tensor, dims: list[int]) -> Tensor:
    return total / math.prod([x.shape[dim] for dim in dims])
