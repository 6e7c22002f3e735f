"""What the passes know of ops whoever brought them: views, cheap ones, ones not to be repeated."""

from __future__ import annotations

import operator

import torch
from torch import fx

# Not tagged pointwise and no view, yet no more than one read and one write an element. By
# name, since Inductor registers some of its prims only when it is imported.
CHEAP_OPS = frozenset(
    {
        "aten.cat",
        "aten.constant_pad_nd",
        "aten.clone",
        "aten._to_copy",
        "aten._unsafe_view",
        "aten.full",
        "aten.full_like",
        "aten.zeros_like",
        "aten.scalar_tensor",
        "aten.arange",
        "aten.index",
        "aten._unsafe_index",
        "prims.iota",
        "prims.convert_element_type",
        "prims.broadcast_in_dim",
        "prims._low_memory_max_pool_offsets_to_indices",
    }
)


COSTLY = "costly op"
"""Why an op that could be computed again is not, unless its time is paid for."""


def recompute_ban(node: fx.Node) -> str | None:
    """Return why ``node`` must not be computed a second time, or None if it may be."""
    target = node.target
    if node.op == "placeholder":
        return "graph input"
    if node.op == "get_attr" or not isinstance(target, torch._ops.OpOverload):
        symbolic = isinstance(node.meta.get("val"), (int, float, bool, *_SYMBOLIC))
        plain = node.op == "get_attr" or target is operator.getitem or symbolic
        return None if plain else f"unknown call {target}"
    if torch.Tag.nondeterministic_seeded in target.tags:
        return "random op"
    if target._schema.is_mutable:
        return "op with side effects"
    if target.namespace not in ("aten", "prims"):
        return f"op of namespace {target.namespace}"
    if (
        torch.Tag.pointwise in target.tags
        or str(target.overloadpacket) in CHEAP_OPS
        or is_view(target)
    ):
        return None
    return None if isinstance(node.meta.get("val"), _SYMBOLIC) else COSTLY


def is_view(target: torch._ops.OpOverload) -> bool:
    """Whether the op returns a view of an argument (by its schema) and writes nothing."""
    aliases = [r.alias_info for r in target._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
