"""*estimate*: what it costs to keep, sketch, pack or recompute each forward value.

Comes in: an exposed joint graph and the rules. Goes out: a :class:`CostTable`, one
:class:`ValueCost` a forward value, which is all that *plan* reads. Changes no graph.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from passes.derive import Derivation, FeedsRelation, find_derivations, uses_served
from passes.joint import JointGraph, hinted_shape, tensor_nbytes, tensor_val
from passes.linear_uses import sensitivity_of, split_uses
from passes.op_traits import COSTLY, is_view, recompute_ban
from passes.recompute import is_repeatable, recompute_times
from passes.rules import Codec, LinearUse, Rules

# Share of a value's bytes that recomputing it is charged. It decides between equals (keep
# what is as small as what it is made from) and stops a residual stream from being rebuilt
# from the first block on: 64 recomputed values cost as much as keeping one.
_RECOMPUTE_SHARE = 64


@dataclass(frozen=True)
class CodecCost:
    """One way to sketch one value.

    Attributes:
        codec: the codec.
        nbytes: bytes of the sketch.
        noise: relative squared error of the decoded value, modelled or measured.
        sensitivity: how much a unit of it counts; modelled, it is summed over the linear uses,
            and raised where a weight gradient sums over few positions; measured, see
            :mod:`passes.measured`.
        decoding_nbytes: bytes that decoding stores on its way.
    """

    codec: Codec
    nbytes: int
    noise: float
    sensitivity: float
    decoding_nbytes: int = 0

    @property
    def harm(self) -> float:
        """Noise as it counts: what the price of noise is per byte of the value."""
        return self.noise * self.sensitivity


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
        recompute_time: of a costly op that may be computed again where its time is paid for, or
            has to be by the user's checkpoint region: that time, as a share of a step's; None
            otherwise.
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
    recompute_time: float | None = None


@dataclass(frozen=True)
class CostTable:
    """The costs of every forward value, in graph order.

    Attributes:
        values: one row a value.
        time_price: how much the time of a step counts beside noise: 1 for a step that takes twice
            as long as much as for a relative squared noise of 1 in all that the backward reads.
    """

    values: tuple[ValueCost, ...]
    time_price: float = math.inf

    def time_harm(self, value: ValueCost) -> float:
        """What computing a costly value again counts beside noise, in bytes of noisy values."""
        return (value.recompute_time or 0.0) * self.time_price * self._read_nbytes

    @functools.cached_property
    def _read_nbytes(self) -> int:
        return sum(v.nbytes for v in self.values if v.raw_users or v.linear_users)

    def priced(self) -> dict[str, ValueCost]:
        """The values whose noise a plan weighs, by name, in graph order.

        Left out are values whose exact one is needed anyway, or is made of parameters and the
        batch alone, and those whose codec the user chose.
        """
        at_hand: set[str] = set()
        found = {}
        for value in self.values:
            made_of_nothing = value.recompute_cost is not None and at_hand.issuperset(value.inputs)
            if made_of_nothing or (value.is_input and not value.nbytes):
                at_hand.add(value.node)
            elif not value.raw_users and any(codec.sensitivity for codec in value.codecs):
                found[value.node] = value
        return found


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
    uses = {node: split_uses(node, backward, rules) for node in forward}
    readers = _Readers.of(joint, uses, free)
    times = recompute_times(forward, rules.machine_balance)
    request = _Request(
        rules,
        free,
        frozenset(joint.bwd_outputs()),
        frozenset(must_recompute),
        frozenset(must_save),
        times,
        _stale_values(joint),
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
    times: Mapping[fx.Node, float]
    stale: frozenset[fx.Node]


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
    reads_stale = not request.stale.isdisjoint(node.all_input_nodes)
    if ban in (None, COSTLY) and reads_stale:
        ban = "made of a buffer that the forward updates"
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
        recompute_time=request.times.get(node)
        if forced or (ban == COSTLY and is_repeatable(node))
        else None,
    )


def _stale_values(joint: JointGraph) -> frozenset[fx.Node]:
    """Inputs that the forward updates, and views of them: the backward would find new values."""
    stale = set(joint.mutated_inputs())
    for node in joint.graph.nodes:
        is_op = isinstance(node.target, torch._ops.OpOverload) and is_view(node.target)
        if is_op and not stale.isdisjoint(node.all_input_nodes):
            stale.add(node)
    return frozenset(stale)


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
    sensitivity = sum(sensitivity_of(user, use) for user, use in linear)
    priced = [
        CodecCost(
            c,
            c.nbytes(shape, val.dtype),
            c.noise(shape),
            sensitivity,
            c.decoding_nbytes(shape, val.dtype),
        )
        for c in fitting
    ]
    smaller = tuple(c for c in priced if c.nbytes < size)
    if not smaller:
        least = min(c.nbytes for c in priced)
        return (), f"a sketch of {least} bytes is no smaller than the value's {size} bytes"
    return smaller, None


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
