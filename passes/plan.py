"""*plan*: one minimum cut decides keep | pack | sketch | derive | recompute for every value.

Each forward value v is up to four vertices, in, raw, linear and derived, between the source
("computed in the forward") and the sink ("needed in the backward"):

    in -> raw      keep_nbytes(v) - sketch(v)      a use of the exact value hangs on raw
    in -> linear   sketch(v)                       a linear use hangs on linear
    linear -> raw  infinite                        the exact value serves linear uses too
    source -> in   recompute_cost(v), or infinite where recomputing is not allowed;
                   noise_price * time_price * time(v) * nbytes read, of a costly op
    raw(u) -> in(v) infinite                       v is recomputed from exact inputs u

with ``sketch(v) = min over codecs of nbytes + noise_price * noise * sensitivity * nbytes(v)``.
Where v follows linearly from others (:mod:`passes.derive`), a stand-in for v may be made from
theirs instead of from a sketch of its own:

    in -> raw              keep_nbytes(v)
    derived -> linear      sketch(v), or keep_nbytes(v) where no codec fits
    linear(u) -> derived   infinite, for the inputs u in which v is linear
    raw(m) -> derived      infinite, for the others
    source -> derived      recompute_cost(v) where v has a linear use itself, else 0

(Of a value with a derivation that is kept exactly, this charges linear uses once more where their
sources are not at hand: a cut somewhat dearer than its bytes, never one that is wrong.)

So the cut minimises: bytes kept + recompute charges + noise_price * (weighted noise + time_price *
time of costly ops computed again, see :attr:`passes.estimate.CostTable.time_price`). A value
that exact recomputation gives for free is never sketched: the cut uses the exact one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from passes.derive import Derivation
from passes.estimate import CodecCost, CostTable, ValueCost
from passes.mincut import SINK, SOURCE, Edge, min_cut
from passes.rules import Codec

_IN, _RAW, _LINEAR, _DERIVED = 0, 1, 2, 3
_VERTICES = 4


class Action(Enum):
    """How the backward gets a forward value."""

    KEEP = "keep"
    PACK = "pack"
    SKETCH = "sketch"
    DERIVE = "derive"
    RECOMPUTE = "recompute"


@dataclass(frozen=True)
class Decision:
    """What happens to one forward value that the backward needs.

    Attributes:
        node: its name in the joint graph.
        action: how the backward gets it.
        codec: the codec of a packed or sketched value.
        nbytes: bytes of the exact value; None where its size is unknown.
        kept_nbytes: bytes kept between forward and backward, not counting unknown sizes.
        noise: modelled relative squared error of what the backward reads; of a derived value
            that of the noisiest value it is derived from.
        derivation: how a derived value is made; None otherwise.
    """

    node: str
    action: Action
    codec: Codec | None
    nbytes: int | None
    kept_nbytes: int
    noise: float
    derivation: Derivation | None = None


@dataclass(frozen=True)
class Plan:
    """Decisions in graph order, and what they cost.

    Attributes:
        decisions: one for each forward value that the backward needs.
        noise_price: the lambda they were made with (dimensionless).
    """

    decisions: tuple[Decision, ...]
    noise_price: float

    @property
    def kept_nbytes(self) -> int:
        """Bytes kept between forward and backward, inputs of the graph left out."""
        return sum(d.kept_nbytes for d in self.decisions)

    def counts(self) -> dict[str, int]:
        """How many values fall to each action."""
        return dict(Counter(d.action.value for d in self.decisions))


def make_plan(costs: CostTable, noise_price: float) -> Plan:
    """Solve the cut and read the decisions off it.

    Args:
        costs: the table made by *estimate*.
        noise_price: lambda >= 0: bytes worth paying, as a share of a value's own bytes, to
            spare one unit of relative squared noise; ``math.inf`` for no noise at all.

    Raises:
        ValueError: if ``noise_price`` is negative.
        passes.mincut.UnboundedCutError: if the constraints contradict each other.
    """
    return Network.of(costs).plan(noise_price)


@dataclass(frozen=True)
class Network:
    """The network of a cost table, for any number of cuts.

    Attributes:
        costs: the table.
        index: of each value in it.
        varying: indices of the values whose edges change with the price.
        fixed: edges of all others, which are most.
    """

    costs: CostTable
    index: Mapping[str, int]
    varying: tuple[int, ...]
    fixed: tuple[Edge, ...]

    @classmethod
    def of(cls, costs: CostTable) -> Network:
        """Prepare the network of a table."""
        index = {value.node: i for i, value in enumerate(costs.values)}
        writer = _EdgeWriter(costs, index, {}, math.inf)
        varies = [writer.varies(value) for value in costs.values]
        edges = (edge for i, v in enumerate(varies) if not v for edge in writer.edges(i))
        return cls(costs, index, tuple(i for i, v in enumerate(varies) if v), tuple(edges))

    def plan(self, noise_price: float) -> Plan:
        """Solve the cut and read the decisions off it, see :func:`make_plan`."""
        if noise_price < 0:
            msg = f"noise_price: expected a number >= 0, got {noise_price}"
            raise ValueError(msg)
        values = self.costs.values
        chosen = {
            i: codec
            for i in self.varying
            if (codec := _cheapest(values[i], noise_price)) is not None
        }
        writer = _EdgeWriter(self.costs, self.index, chosen, noise_price)
        edges = (edge for i in self.varying for edge in writer.edges(i))
        _, sink_side = min_cut([*self.fixed, *edges])
        needed = sorted({vertex // _VERTICES for vertex in sink_side})
        read = (_read_decision(i, values[i], chosen.get(i), sink_side) for i in needed)
        decisions = [decision for decision in read if decision is not None]
        return Plan(with_derived_noise(decisions), noise_price)


def with_derived_noise(decisions: Iterable[Decision]) -> tuple[Decision, ...]:
    """Give each derived value the noise of the noisiest value it is derived from.

    Args:
        decisions: in graph order, so that sources come first.
    """
    done: dict[str, Decision] = {}
    for decision in decisions:
        settled = decision
        if decision.derivation is not None:
            sources = [done[name].noise for name in decision.derivation.linear if name in done]
            settled = replace(decision, noise=max(sources, default=0.0))
        done[decision.node] = settled
    return tuple(done.values())


def sketch_price(cost: CodecCost, value_nbytes: int, noise_price: float) -> int:
    """Bytes of the sketch plus the price of its noise, rounded to a whole byte."""
    return cost.nbytes + round(noise_price * cost.harm * value_nbytes)


def _cheapest(value: ValueCost, noise_price: float) -> CodecCost | None:
    """The codec to use, or None where keeping the exact value costs no more."""
    if not value.codecs or value.keep_nbytes is None or noise_price == math.inf:
        return None
    best = min(value.codecs, key=lambda c: (sketch_price(c, value.nbytes, noise_price), c.noise))
    price = sketch_price(best, value.nbytes, noise_price)
    return best if price < value.keep_nbytes else None


@dataclass(frozen=True)
class _EdgeWriter:
    """Writes the edges of values at a price, with the codecs chosen there by index."""

    costs: CostTable
    index: Mapping[str, int]
    chosen: Mapping[int, CodecCost]
    noise_price: float

    def varies(self, value: ValueCost) -> bool:
        """Whether the edges of a value may change with the price."""
        sources = () if value.derivation is None else value.derivation.linear
        return (
            bool(value.codecs)
            or (value.recompute_cost is None and value.recompute_time is not None)
            or any(self.costs.values[self.index[name]].codecs for name in sources)
        )

    def edges(self, i: int) -> Iterator[Edge]:
        value, index = self.costs.values[i], self.index
        into, raw, linear, derived = (_VERTICES * i + part for part in range(_VERTICES))
        yield Edge(SOURCE, into, _recompute_price(self.costs, value, self.noise_price))
        if value.must_recompute:
            yield Edge(into, SINK, None)
        if not self.has_stand_in(i):
            yield Edge(into, raw, value.keep_nbytes)
            uses_raw = bool(value.raw_users or value.linear_users)
        else:
            assert value.keep_nbytes is not None, f"{value.node} has a stand-in but no size"
            price = value.keep_nbytes
            if (codec := self.chosen.get(i)) is not None:
                price = sketch_price(codec, value.nbytes, self.noise_price)
            if value.derivation is None:
                yield Edge(into, raw, value.keep_nbytes - price)
                yield Edge(into, linear, price)
                yield Edge(linear, raw, None)
            else:
                yield Edge(into, raw, value.keep_nbytes)
                yield Edge(derived, linear, price)
            uses_raw = bool(value.raw_users)
            if value.linear_users:
                yield Edge(linear, SINK, None)
        if value.derivation is not None:
            yield Edge(SOURCE, derived, value.recompute_cost if value.linear_users else 0)
            for name in value.derivation.linear:
                part = _LINEAR if self.has_stand_in(index[name]) else _RAW
                yield Edge(_VERTICES * index[name] + part, derived, None)
            for name in value.derivation.exact:
                yield Edge(_VERTICES * index[name] + _RAW, derived, None)
        if uses_raw:
            yield Edge(raw, SINK, None)
        for name in value.inputs:
            yield Edge(_VERTICES * index[name] + _RAW, into, None)

    def has_stand_in(self, i: int) -> bool:
        value = self.costs.values[i]
        has_one = i in self.chosen or value.derivation is not None
        return value.keep_nbytes is not None and has_one


def _recompute_price(costs: CostTable, value: ValueCost, noise_price: float) -> int | None:
    """Bytes that recomputing counts as; None where it is not allowed."""
    if value.recompute_cost is not None or value.recompute_time is None:
        return value.recompute_cost
    if math.inf in (costs.time_price, noise_price):
        return None
    price = noise_price * costs.time_harm(value)
    return round(price) if math.isfinite(price) else None


def _read_decision(
    i: int, value: ValueCost, codec: CodecCost | None, sink_side: frozenset[int]
) -> Decision | None:
    into, raw, linear, derived = (_VERTICES * i + part in sink_side for part in range(_VERTICES))
    nbytes = value.nbytes if value.size_known else None
    if into:
        return Decision(value.node, Action.RECOMPUTE, None, nbytes, 0, 0.0)
    if raw or (linear and not derived and codec is None):
        assert value.keep_nbytes is not None, f"{value.node} is kept but cannot be"
        action = Action.KEEP if value.packing is None else Action.PACK
        return Decision(value.node, action, value.packing, nbytes, value.keep_nbytes, 0.0)
    if linear and derived and value.derivation is not None:
        return Decision(value.node, Action.DERIVE, None, nbytes, 0, 0.0, value.derivation)
    if linear:
        assert codec is not None, f"{value.node} is sketched without a codec"
        return Decision(value.node, Action.SKETCH, codec.codec, nbytes, codec.nbytes, codec.noise)
    return None
