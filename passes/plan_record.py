"""A plan apart from its graph: what can be written down, compared, and carried out again.

Comes in: an exposed joint graph and the plan made for it. Goes out: a :class:`PlanRecord`, as
a plain dict if need be, and from a record and the costs of the same graph the plan again, each
decision checked against what the cut would have had to respect. Changes no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from passes.derive import Derivation
from passes.estimate import CostTable, ValueCost
from passes.fingerprint import describe_closest, fingerprint, graph_lines, lines_from_dict
from passes.joint import JointGraph, tensor_val
from passes.plan import Action, Decision, Plan
from passes.rules import Codec

_EXACT = (Action.KEEP, Action.PACK, Action.RECOMPUTE)


class PlanMismatchError(ValueError):
    """A recorded plan does not fit the graph that it is to be carried out on."""


@dataclass(frozen=True)
class DecisionRecord:
    """One decision.

    Attributes:
        position: of the value in the graph, counted from 0.
        node: its name when the record was made; for people.
        action: how the backward gets it.
        codec: the codec of a packed or sketched value.
        kept_nbytes: bytes kept between forward and backward.
        noise: modelled relative squared error.
    """

    position: int
    node: str
    action: Action
    codec: Codec | None
    kept_nbytes: int
    noise: float

    @property
    def text(self) -> str:
        """The action, the codec's name and the bytes."""
        codec = "" if self.codec is None else f" {self.codec.name}"
        return f"{self.action.value}{codec}, {self.kept_nbytes} bytes"


@dataclass(frozen=True)
class PlanRecord:
    """The decisions for one graph, and the graph they were made for.

    Attributes:
        lines: the graph, see :func:`passes.fingerprint.graph_lines`.
        noise_price: the lambda the plan was made with.
        decisions: in graph order.
    """

    lines: tuple[str, ...]
    noise_price: float
    decisions: tuple[DecisionRecord, ...]

    @property
    def fingerprint(self) -> str:
        """A short hash of the graph."""
        return fingerprint(self.lines)

    @property
    def kept_nbytes(self) -> int:
        """Bytes kept between forward and backward, inputs of the graph left out."""
        return sum(d.kept_nbytes for d in self.decisions)

    def codecs(self) -> tuple[Codec, ...]:
        """The sketches it uses, each once, in order of first use."""
        used = (d.codec for d in self.decisions if d.action is Action.SKETCH)
        return tuple(dict.fromkeys(codec for codec in used if codec is not None))


def record_plan(joint: JointGraph, plan: Plan) -> PlanRecord:
    """Write down a plan.

    Args:
        joint: the exposed joint graph that it was made for.
        plan: the decisions.
    """
    positions = {node.name: i for i, node in enumerate(joint.graph.nodes)}
    decisions = tuple(
        DecisionRecord(positions[d.node], d.node, d.action, d.codec, d.kept_nbytes, d.noise)
        for d in plan.decisions
    )
    return PlanRecord(graph_lines(joint), plan.noise_price, decisions)


def find_record(records: Sequence[PlanRecord], joint: JointGraph) -> PlanRecord:
    """Return the record that was made for a graph like this one.

    Raises:
        PlanMismatchError: if there is none, with the first difference to the closest.
    """
    lines = graph_lines(joint)
    for record in records:
        if record.lines == lines:
            return record
    wanted = fingerprint(lines)
    if not records:
        raise PlanMismatchError(f"no plan is recorded for graph {wanted}: the record is empty")
    closest = describe_closest([record.lines for record in records], lines)
    raise PlanMismatchError(
        f"no plan is recorded for graph {wanted} ({len(lines)} lines); {closest}. The model, its "
        "input shapes or dtypes, the inner compiler or torch changed: make and save the plans again"
    )


def replay_plan(record: PlanRecord, joint: JointGraph, costs: CostTable) -> Plan:
    """Turn a record into a plan again, without solving anything.

    Args:
        record: made for a graph like ``joint``.
        joint: the exposed joint graph.
        costs: its costs, with the record's codecs as the candidates.

    Raises:
        PlanMismatchError: at the first decision that does not fit: the value cannot be kept so,
            or the backward needs it otherwise.
    """
    nodes = list(joint.graph.nodes)
    rows = {value.node: value for value in costs.values}
    actions: dict[str, Action] = {}
    for d in record.decisions:
        known = 0 <= d.position < len(nodes) and nodes[d.position].name in rows
        _require(known, record, d.node, "a forward value", f"position {d.position} of the graph")
        actions[nodes[d.position].name] = d.action
    decisions = []
    for d in record.decisions:
        node = nodes[d.position]
        decision = _fit(_Slot(record, d, rows[node.name], actions))
        same = decision.kept_nbytes == d.kept_nbytes or not _has_fixed_size(node)
        _require(same, record, node.name, d.text, f"{decision.kept_nbytes} bytes")
        decisions.append(decision)
    for value in costs.values:
        _check_needs(record, value, actions.get(value.node))
    return Plan(tuple(decisions), record.noise_price)


def _has_fixed_size(node: fx.Node) -> bool:
    val = tensor_val(node)
    return val is None or all(isinstance(size, int) for size in val.shape)


@dataclass(frozen=True)
class _Slot:
    """A recorded decision and where it is to be put."""

    record: PlanRecord
    recorded: DecisionRecord
    value: ValueCost
    actions: Mapping[str, Action]

    def require(self, fits: bool, got: str) -> None:
        _require(fits, self.record, self.value.node, self.recorded.text, got)

    def require_exact(self, names: Sequence[str]) -> None:
        inexact = [n for n in names if self.actions.get(n) not in _EXACT]
        self.require(not inexact, f"no exact values of {inexact} to make it of")

    def decision(
        self,
        codec: Codec | None = None,
        kept_nbytes: int = 0,
        noise: float = 0.0,
        derivation: Derivation | None = None,
    ) -> Decision:
        nbytes = self.value.nbytes if self.value.size_known else None
        action = self.recorded.action
        return Decision(self.value.node, action, codec, nbytes, kept_nbytes, noise, derivation)


def _fit(slot: _Slot) -> Decision:
    action, codec, value = slot.recorded.action, slot.recorded.codec, slot.value
    if action is Action.SKETCH:
        cost = next((c for c in value.codecs if c.codec == codec), None)
        reason = value.unsketchable or "no linear use of it, or a codec that does not fit"
        slot.require(cost is not None, reason)
        assert cost is not None
        return slot.decision(codec, cost.nbytes, cost.noise)
    if action is Action.RECOMPUTE:
        allowed = value.recompute_cost is not None or value.recompute_time is not None
        slot.require(allowed, f"no recompute: {value.ban_reason}")
        slot.require_exact(value.inputs)
        return slot.decision()
    if action is Action.DERIVE:
        slot.require(value.derivation is not None, "no linear derivation")
        assert value.derivation is not None
        slot.require_exact(value.derivation.exact)
        missing = [n for n in value.derivation.linear if n not in slot.actions]
        slot.require(not missing, f"no stand-ins of {missing}")
        return slot.decision(noise=slot.recorded.noise, derivation=value.derivation)
    expected = codec if action is Action.PACK else None
    packing = "no packing" if value.packing is None else f"packing by {value.packing.name}"
    slot.require(value.keep_nbytes is not None, "no tensor of known size")
    slot.require(value.packing == expected, packing)
    return slot.decision(value.packing, value.keep_nbytes or 0)


def _check_needs(record: PlanRecord, value: ValueCost, action: Action | None) -> None:
    """Check that a value the backward needs is there, and exact where it must be."""
    got = "no decision" if action is None else action.value
    if value.raw_users:
        users = ", ".join(value.raw_users)
        _require(action in _EXACT, record, value.node, f"its exact value (for {users})", got)
    elif value.linear_users:
        _require(action is not None, record, value.node, "some stand-in", got)
    if value.must_recompute:
        recomputed = action in (None, Action.RECOMPUTE)
        _require(recomputed, record, value.node, "recompute, as the checkpoint region asks", got)


def _require(fits: bool, record: PlanRecord, node: str, expected: str, got: str) -> None:
    if not fits:
        raise PlanMismatchError(
            f"the plan recorded for graph {record.fingerprint} does not fit at {node}: expected "
            f"{expected}, got {got}. Options or this package changed: make and save the plans again"
        )


def record_to_dict(
    record: PlanRecord, describe: Callable[[Codec], dict[str, Any]]
) -> dict[str, Any]:
    """Return a record as plain dicts, lists, texts and numbers.

    Args:
        record: the record.
        describe: turns a codec into a plain dict.
    """
    return {
        "fingerprint": record.fingerprint,
        "graph": list(record.lines),
        "noise_price": record.noise_price,
        "decisions": [
            {
                "position": d.position,
                "node": d.node,
                "action": d.action.value,
                "codec": None if d.codec is None else describe(d.codec),
                "kept_nbytes": d.kept_nbytes,
                "noise": d.noise,
            }
            for d in record.decisions
        ],
    }


def record_from_dict(
    given: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Codec]
) -> PlanRecord:
    """Undo :func:`record_to_dict`.

    Args:
        given: what it returned.
        build: turns a plain dict into a codec.

    Raises:
        PlanMismatchError: if the fingerprint is not that of the lines.
        KeyError: if an entry is missing.
        TypeError: if an entry is of another type.
        ValueError: if an action is unknown.
    """
    decisions = tuple(
        DecisionRecord(
            position=int(d["position"]),
            node=str(d["node"]),
            action=Action(d["action"]),
            codec=None if d["codec"] is None else build(d["codec"]),
            kept_nbytes=int(d["kept_nbytes"]),
            noise=float(d["noise"]),
        )
        for d in given["decisions"]
    )
    lines = lines_from_dict(given, "recorded", PlanMismatchError)
    return PlanRecord(lines, float(given["noise_price"]), decisions)
