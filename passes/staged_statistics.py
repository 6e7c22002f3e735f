"""Statistics of a norm taken in the pass that an encoder takes of the same value.

An encoder reduces each of its groups to a smallest and a largest element; a batch norm's mean and
variance are reductions of the same value over everything but the channels. An inner compiler
merges reductions of equal ranges into one pass over memory, and these have none (Inductor 2.11 to
2.13). So mean and variance are taken a group first, then over the groups, which are few:

    mean = E[mean_g],    var = E[var_g] + Var[mean_g]    (groups of equal size)

Numbers differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, fx

from passes.decompose import Inserter

aten = torch.ops.aten


def stage_statistics(module: fx.GraphModule, inserter: Inserter) -> None:
    """Take variances and means over all but the channels by groups, where groups are reduced.

    Args:
        module: a lowered forward graph; changed in place.
        inserter: with the inner compiler's decompositions.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.var_mean.correction):
        x = node.all_input_nodes[0]
        groups = _groups_of(x) if _is_over_channels(node, x.meta["val"]) else None
        if groups is not None:
            result = inserter.insert(_staged, [x, *groups], node, provenance=node)
            for user in list(node.users):
                user.replace_all_uses_with(result[user.args[1]])
                module.graph.erase_node(user)
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


def _is_over_channels(node: fx.Node, val: Tensor) -> bool:
    """Whether a variance of ``val`` is that of a batch norm in training, in full precision."""
    if val.dtype not in (torch.float32, torch.float64) or val.dim() < 3:
        return False
    if not all(isinstance(size, int) for size in val.shape):
        return False
    if node.kwargs.get("correction") != 0 or not node.kwargs.get("keepdim"):
        return False
    dims = node.args[1] if len(node.args) > 1 else None
    over = isinstance(dims, (list, tuple)) and {d % val.dim() for d in dims if isinstance(d, int)}
    return over == {0, *range(2, val.dim())}


def _groups_of(x: fx.Node) -> tuple[list[int], list[int]] | None:
    """Find the groups that an encoder of ``x`` takes the smallest element of.

    Returns:
        The order of the dimensions, and each of them in that order as two: groups, and places in a
        group. None if there are none, or they are not of single channels.
    """
    for permuted in (x, *x.users):
        order = list(range(x.meta["val"].dim()))
        if permuted is not x:
            if permuted.target is not aten.permute.default:
                continue
            order = [dim % len(order) for dim in cast(Sequence[int], permuted.args[1])]
        for grouped in permuted.users:
            sizes = _pairs(grouped, [x.meta["val"].shape[dim] for dim in order])
            if sizes is not None and sizes[2 * order.index(1) + 1] == 1:
                return order, sizes
    return None


def _pairs(grouped: fx.Node, sizes: Sequence[int]) -> list[int] | None:
    """Return the shape of a view that divides every size in two and whose minima are taken."""
    if grouped.target not in (aten.view.default, aten.reshape.default):
        return None
    pairs = list(grouped.meta["val"].shape)
    places = list(range(1, len(pairs), 2))
    if [a * b for a, b in zip(pairs[::2], pairs[1::2], strict=False)] != list(sizes):
        return None
    is_reduced = any(
        user.target is aten.amin.default and list(user.args[1:]) == [places]
        for user in grouped.users
    )
    return pairs if is_reduced else None


def _staged(x: Tensor, order: list[int], pairs: list[int]) -> tuple[Tensor, Tensor]:
    grouped = x.permute(order).reshape(pairs)
    var, mean = torch.var_mean(grouped, list(range(1, len(pairs), 2)), correction=0)
    rest = [i for i, dim in enumerate(order) if dim != 1]
    between, whole = torch.var_mean(mean, rest, correction=0)
    shape = [1, x.shape[1], *[1] * (x.dim() - 2)]
    return (var.mean(rest) + between).reshape(shape), whole.reshape(shape)
