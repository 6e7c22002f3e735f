"""*estimate*: what it costs to keep, sketch, pack or recompute each forward value.

Comes in: an exposed joint graph and the rules. Goes out: a :class:`CostTable`, one
:class:`ValueCost` a forward value, which is all that *plan* reads. Changes no graph.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from passes import _torch
from passes.derive import (
    Derivation,
    FeedsRelation,
    find_derivations,
    sizes_of,
    uses_served,
)
from passes.joint import JointGraph, argument_nodes, tensor_nbytes, tensor_val
from passes.rules import Codec, LinearUse, Rules

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

# Share of a value's bytes that recomputing it is charged. It decides between equals (keep
# what is as small as what it is made from) and stops a residual stream from being rebuilt
# from the first block on: 64 recomputed values cost as much as keeping one.
_RECOMPUTE_SHARE = 64


# A weight gradient sums over the positions of its input, and independent noise averages out: its
# relative error falls with their number. Inputs with fewer than this many are priced up in
# proportion: a classifier's features, the last stages at small images. They weigh little in bytes.
_FEW_POSITIONS = 8192


@dataclass(frozen=True)
class CodecCost:
    """One way to sketch one value.

    Attributes:
        codec: the codec.
        nbytes: bytes of the sketch.
        noise: modelled relative squared error of the decoded value.
        sensitivity: summed over the linear uses, and raised where a weight gradient sums over few
            positions.
    """

    codec: Codec
    nbytes: int
    noise: float
    sensitivity: float


@dataclass(frozen=True)
class ValueCost:
    """What is known about one forward value before the plan is made.

    Attributes:
        node: its name in the graph.
        inputs: names of the nodes it is computed from.
        nbytes: bytes of the value as it is; 0 for parameters and data the caller holds, and
            where the size is unknown.
        size_known: whether its size is known when the graph is compiled.
        keep_nbytes: bytes kept when it is kept exactly (a packed boolean: an eighth);
            None when it cannot be kept (a tuple).
        recompute_cost: price of recomputing it, in bytes; None when it must not be.
        ban_reason: why it must not be recomputed.
        must_recompute: whether the user's checkpoint region asks for recomputation.
        raw_users: backward nodes that need its exact value.
        linear_users: backward nodes in which it enters linearly.
        codecs: the sketches that fit it, where it has linear uses or others are derived from it.
        unsketchable: why a linear use has no codec; None otherwise.
        packing: the exact codec that keeps it in fewer bits; None otherwise.
        is_input: whether it is an input of the graph.
        derivation: how it follows linearly from other values; None otherwise.
    """

    node: str
    inputs: tuple[str, ...]
    nbytes: int
    size_known: bool
    keep_nbytes: int | None
    recompute_cost: int | None
    ban_reason: str | None
    must_recompute: bool
    raw_users: tuple[str, ...]
    linear_users: tuple[str, ...]
    codecs: tuple[CodecCost, ...]
    unsketchable: str | None
    packing: Codec | None
    is_input: bool
    derivation: Derivation | None = None


@dataclass(frozen=True)
class CostTable:
    """The costs of every forward value, in graph order."""

    values: tuple[ValueCost, ...]


def estimate_costs(
    joint: JointGraph,
    rules: Rules,
    must_recompute: Iterable[str] = (),
    must_save: Iterable[str] = (),
) -> CostTable:
    """Price every way of having each forward value in the backward.

    Args:
        joint: an exposed joint graph.
        rules: linear uses and codecs.
        must_recompute: names of nodes inside the user's checkpoint regions.
        must_save: names of nodes that the user's checkpoint policy keeps.

    Returns:
        One row for each node that does not depend on a tangent.
    """
    backward = joint.backward_nodes()
    free = frozenset({*joint.static_inputs(), *joint.caller_held_inputs()})
    forward = [n for n in joint.graph.nodes if n.op != "output" and n not in backward]
    uses = {node: _split_uses(node, backward, rules) for node in forward}
    readers = _Readers.of(joint, uses, free)
    request = _Request(
        rules, free, frozenset(joint.bwd_outputs()), frozenset(must_recompute), frozenset(must_save)
    )
    return CostTable(tuple(_value_cost(node, *uses[node], readers, request) for node in forward))


@dataclass(frozen=True)
class _Request:
    """What every value's cost depends on."""

    rules: Rules
    free: frozenset[fx.Node]
    gradients: frozenset[fx.Node]
    must_recompute: frozenset[str]
    must_save: frozenset[str]


@dataclass(frozen=True)
class _Readers:
    """Who reads stand-ins of which value: by itself, or derived from it."""

    settled: dict[fx.Node, list[LinearUse]]
    derivations: dict[fx.Node, Derivation]
    served: dict[str, tuple[fx.Node, ...]]
    feeds: FeedsRelation

    @classmethod
    def of(
        cls,
        joint: JointGraph,
        uses: dict[fx.Node, tuple[list[tuple[fx.Node, LinearUse]], list[str]]],
        free: frozenset[fx.Node],
    ) -> _Readers:
        settled: dict[fx.Node, list[LinearUse]] = {}
        own: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node, (linear, _) in uses.items():
            if linear and node not in free:
                own[node] = tuple(user for user, _ in linear)
                for user, use in linear:
                    settled.setdefault(user, []).append(use)
        feeds = FeedsRelation(joint, own)
        derivations = find_derivations(joint, own, free, feeds)
        return cls(settled, derivations, uses_served(derivations, own), feeds)

    def behind(self, node: fx.Node) -> list[tuple[fx.Node, LinearUse]]:
        """The uses that a sketch of this value would serve, with how much its noise counts."""
        users = self.served.get(node.name, ())
        return [(user, use) for user in users for use in self.settled[user]]


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
    return None if isinstance(node.meta.get("val"), _SYMBOLIC) else "costly op"


def is_view(target: torch._ops.OpOverload) -> bool:
    """Whether the op returns a view of an argument (by its schema) and writes nothing."""
    aliases = [r.alias_info for r in target._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _value_cost(
    node: fx.Node,
    linear: list[tuple[fx.Node, LinearUse]],
    raw: list[str],
    readers: _Readers,
    request: _Request,
) -> ValueCost:
    raw = [*raw, "output"] if node in request.gradients else raw
    val = tensor_val(node)
    size = None if val is None else tensor_nbytes(val)
    is_free = node in request.free
    nbytes = 0 if is_free or size is None else size
    rules = request.rules
    packing = rules.packing(node) if val is not None and rules.packing is not None else None
    derivation = readers.derivations.get(node)
    sketchable = bool(linear) or derivation is None
    behind = readers.behind(node) if sketchable and not is_free else []
    codecs, unsketchable = _codec_costs(val, size, behind, rules, readers.feeds)
    kept = node.name in request.must_save
    ban = "kept by the user's checkpoint policy" if kept else recompute_ban(node)
    asked = node.name in request.must_recompute
    forced = asked and recompute_ban(_source_of_item(node)) != "random op"
    return ValueCost(
        node=node.name,
        inputs=tuple(n.name for n in node.all_input_nodes),
        nbytes=nbytes,
        size_known=val is None or size is not None,
        keep_nbytes=_keep_nbytes(node, val, nbytes, is_free, packing),
        recompute_cost=None if ban and not forced else _recompute_cost(node, nbytes),
        ban_reason=None if forced else ban,
        must_recompute=forced,
        raw_users=tuple(raw),
        linear_users=tuple(user.name for user, _ in linear),
        codecs=codecs,
        unsketchable=unsketchable,
        packing=None if is_free else packing,
        is_input=node.op == "placeholder",
        derivation=None if ban else derivation,
    )


def _split_uses(
    node: fx.Node, backward: dict[fx.Node, None], rules: Rules
) -> tuple[list[tuple[fx.Node, LinearUse]], list[str]]:
    """Return the linear uses in the backward, one an argument, and the other users' names.

    A linear use that was asked to be exact counts among the others.
    """
    linear: list[tuple[fx.Node, LinearUse]] = []
    raw: list[str] = []
    for user in node.users:
        if user not in backward:
            continue
        uses = {use.arg: use for use in rules.linear.get(user.target, ())}
        positions = [i for i, arg in enumerate(user.args) if node in argument_nodes(arg)]
        in_kwargs = any(node in argument_nodes(arg) for arg in user.kwargs.values())
        use = uses.get(positions[0]) if len(positions) == 1 and not in_kwargs else None
        if use is not None and use.same_size and sizes_of(node) != sizes_of(user):
            use = None
        if use is not None and rules.asked_exact(user) is None:
            linear.append((user, _settle(user, use)))
        else:
            raw.append(user.name)
    return linear, raw


def _codec_costs(
    val: torch.Tensor | None,
    size: int | None,
    linear: list[tuple[fx.Node, LinearUse]],
    rules: Rules,
    feeds: FeedsRelation,
) -> tuple[tuple[CodecCost, ...], str | None]:
    if not linear or val is None:
        return (), None
    if size is None:
        return (), "its size is unknown at compile time"
    if feeds.any_pair([user for user, _ in linear]):
        return (), "one of its uses feeds another, and the product of their noise is no zero"
    on_path = any(use.on_path for _, use in linear)
    codecs = rules.path_codecs if on_path else rules.codecs
    shape = hinted_shape(val)
    reasons = [codec.supports(shape, val.dtype) for codec in codecs]
    fitting = [c for c, reason in zip(codecs, reasons, strict=True) if reason is None]
    if not fitting:
        return (), next((r for r in reasons if r), "no codec is configured")
    sensitivity = sum(_sensitivity(user, use) for user, use in linear)
    priced = [
        CodecCost(c, c.nbytes(shape, val.dtype), c.noise(shape), sensitivity) for c in fitting
    ]
    smaller = tuple(c for c in priced if c.nbytes < size)
    if not smaller:
        least = min(c.nbytes for c in priced)
        return (), f"a sketch of {least} bytes is no smaller than the value's {size} bytes"
    return smaller, None


def _sensitivity(user: fx.Node, use: LinearUse) -> float:
    """Raise a use's sensitivity where it is a weight gradient over few positions."""
    argument = user.args[use.arg]
    val = tensor_val(argument) if isinstance(argument, fx.Node) else None
    if use.on_path or val is None or tensor_nbytes(val) is None:
        return use.sensitivity
    return use.sensitivity * max(1.0, _FEW_POSITIONS / num_positions(hinted_shape(val)))


def num_positions(shape: Sequence[int]) -> int:
    """Count the positions that a weight gradient sums over: all dimensions but the channels.

    Args:
        shape: ``(N, C, *spatial)``, or ``(rows, features)``.
    """
    return max(math.prod(shape) // max(shape[1] if len(shape) > 2 else shape[-1], 1), 1)


def _settle(user: fx.Node, use: LinearUse) -> LinearUse:
    """Find out from the graph what a rule leaves open: whether the use is on the path."""
    if use.on_path is not None:
        return use
    on_path = _reaches_further_gradients(user)
    sensitivity = use.path_sensitivity if on_path else use.sensitivity
    return replace(use, on_path=on_path, sensitivity=sensitivity)


def _reaches_further_gradients(user: fx.Node) -> bool:
    """Whether a backward node's result does more than become an output, viewed or cast."""
    queue, seen = [user], {user}
    while queue:
        node = queue.pop()
        moved = is_view(node.target) if isinstance(node.target, torch._ops.OpOverload) else False
        if node is not user and node.op != "output" and not moved and not _is_cast(node):
            return True
        queue.extend(follower for follower in node.users if follower not in seen)
        seen.update(node.users)
    return False


def _is_cast(node: fx.Node) -> bool:
    return str(node.target).startswith(("prims.convert_element_type", "aten._to_copy"))


def hinted_shape(val: torch.Tensor) -> tuple[int, ...]:
    """Return the shape with symbolic sizes replaced by their hints.

    Only called where :func:`passes.joint.tensor_nbytes` found every size known.
    """
    sizes = [_torch.size_hint(s) for s in val.shape]
    assert None not in sizes, f"unknown size in {tuple(val.shape)}"
    return tuple(s for s in sizes if s is not None)


def _keep_nbytes(
    node: fx.Node,
    val: torch.Tensor | None,
    nbytes: int,
    is_free: bool,
    packing: Codec | None,
) -> int | None:
    if val is None:
        return 0 if isinstance(node.meta.get("val"), torch.SymInt) else None
    if is_free or packing is None:
        return nbytes
    return packing.nbytes(hinted_shape(val), val.dtype) if nbytes else 0


def _source_of_item(node: fx.Node) -> fx.Node:
    """The call that a chain of items was taken from; the node itself where it is none."""
    while node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node), f"{node} takes an item of {source}"
        node = source
    return node


def _recompute_cost(node: fx.Node, nbytes: int) -> int:
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and is_view(target):
        return 0
    return nbytes // _RECOMPUTE_SHARE
