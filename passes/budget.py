"""*budget*: the plan of least noise whose bytes, or whose predicted peak, stay within a limit.

Objective, over all plans: minimise ``sum_v noise(v) * sensitivity(v) * nbytes(v) + time_price *
nbytes read * sum_v time(v)``, the noise that its sketches add and the time of costly ops that are
computed again, subject to ``bytes <= limit``. Its Lagrangian, with the charges of recomputing, is
the cut of :mod:`passes.plan`, 1 / lambda being the price of a byte: so lambda is searched on a
fixed grid and between two of its prices, for the largest that fits. What is left under the limit
then buys finer codecs; plans of prices too high are trimmed by coarser ones; the best is taken.

A peak is dear to measure: it takes the graphs of a plan. It is the bytes that the plan keeps and
what else is live at that moment, which differs little between neighbouring plans. So the search is
by kept bytes, under a limit lowered by that difference, and only its results are measured.

Comes in: a cost table, a limit and a way to measure a plan. Goes out: :class:`BudgetedPlan`. The
same table and limit give the same plan.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from passes.estimate import CodecCost, CostTable, ValueCost
from passes.plan import Action, Decision, Network, Plan, with_derived_noise
from passes.rules import Codec

# Lambda = 10**(k / 4): each step changes the price of noise by 1.8, the rungs of the ladder differ
# by more.
_GRID = [10.0 ** (k / 4) for k in range(-28, 13)]
# Between two of them the interval is halved so often: filling by finer codecs alone leaves two
# sketches where the cut, a little further on, would have one that serves both.
_BISECTIONS = 6
# So many dearer plans, of every second price, are fitted too: the cut charges some shared sketches
# more than once, so that a dearer plan may be the smaller one, and better when it is trimmed.
_NUM_DEARER = 8
# A share of the limit that is not worth another cut.
_NEGLIGIBLE = 0.005

# A peak this near under the limit, as a share of it, is near enough; what is measured at most
# between the first plan and the least.
_SLACK_SHARE = 20
_MAX_TRIALS = 4
# Where the exact plan keeps more than the limit, the first plan tried keeps such a part of it.
_FIRST_PART = 2
# Where none of them fits and costly ops may be computed again: plans that keep such a part of what
# the exact one does.
_KEPT_SHARES = (2, 4, 8)

_PlanAt = Callable[[float], Plan]

Search = Callable[[int], "BudgetedPlan"]
"""Searches the plan of least noise within a limit."""


@dataclass(frozen=True)
class BudgetedPlan:
    """The outcome of a search.

    Attributes:
        plan: the plan of least noise that fits, or the smallest one if none does.
        measured_nbytes: what the limit was compared with, for this plan.
        limit_nbytes: the limit.
    """

    plan: Plan
    measured_nbytes: int
    limit_nbytes: int

    @property
    def fits(self) -> bool:
        """Whether the plan is within the limit."""
        return self.measured_nbytes <= self.limit_nbytes

    @property
    def spare_nbytes(self) -> int:
        """Bytes left under the limit; negative where it does not fit."""
        return self.limit_nbytes - self.measured_nbytes


def plan_within(
    costs: CostTable, limit_nbytes: int, measure: Callable[[Plan], int] | None = None
) -> BudgetedPlan:
    """Search the plan of least noise within a limit.

    Args:
        costs: the table made by *estimate*.
        limit_nbytes: the limit.
        measure: what a plan takes, in bytes, at little cost: its kept bytes if None. It should
            not fall when a plan keeps more.

    Returns:
        The plan and what it takes.
    """
    return make_search(costs, measure)(limit_nbytes)


def make_search(costs: CostTable, measure: Callable[[Plan], int] | None = None) -> Search:
    """Return :func:`plan_within` of one cost table, for several limits: it cuts once a price."""
    plan_at = _solver(costs)
    return lambda limit_nbytes: _plan_within(costs, limit_nbytes, measure, plan_at)


def _solver(costs: CostTable) -> _PlanAt:
    """Return what makes the plan at a price, and remembers it: a cut takes its time."""
    return functools.cache(Network.of(costs).plan)


def _plan_within(
    costs: CostTable,
    limit_nbytes: int,
    measure: Callable[[Plan], int] | None,
    plan_at: _PlanAt,
) -> BudgetedPlan:
    known: dict[tuple[Decision, ...], int] = {}

    def measured(plan: Plan) -> BudgetedPlan:
        if plan.decisions not in known:
            known[plan.decisions] = plan.kept_nbytes if measure is None else measure(plan)
        return BudgetedPlan(plan, known[plan.decisions], limit_nbytes)

    exact = measured(plan_at(math.inf))
    if exact.fits:
        return exact
    best = measured(plan_at(0.0))
    if not best.fits:
        return best
    low, high = 0, len(_GRID)
    while low < high:
        middle = (low + high) // 2
        tried = measured(plan_at(_GRID[middle]))
        if tried.fits:
            best, low = tried, middle + 1
        else:
            high = middle
    if 0 < low < len(_GRID):
        prices = (_GRID[low - 1], _GRID[low])
        best = _bisect(best, prices, lambda price: measured(plan_at(price)))
    dearer = [plan_at(price) for price in _GRID[low::2][:_NUM_DEARER]]
    candidates = [_fitted(costs, plan, best) for plan in (best.plan, *dearer)]
    harm_of = functools.partial(_harm, _harms(costs))
    for candidate in sorted(candidates, key=harm_of):
        if harm_of(candidate) >= harm_of(best.plan):
            break
        found = measured(candidate)
        if not found.fits:
            found = measured(trim(costs, candidate, found.measured_nbytes - limit_nbytes))
        if found.fits and harm_of(found.plan) < harm_of(best.plan):
            return found
    return best


def _fitted(costs: CostTable, plan: Plan, best: BudgetedPlan) -> Plan:
    """Exchange codecs until a plan takes what is allowed, going by the bytes it keeps."""
    spare = best.limit_nbytes - best.measured_nbytes + best.plan.kept_nbytes - plan.kept_nbytes
    trimmed = trim(costs, plan, -spare)
    return refine(costs, trimmed, spare + plan.kept_nbytes - trimmed.kept_nbytes)


def _bisect(
    best: BudgetedPlan, prices: tuple[float, float], plan_at: Callable[[float], BudgetedPlan]
) -> BudgetedPlan:
    """Search between a price that fits and one that does not, until little is left to spend."""
    low, high = prices
    for _ in range(_BISECTIONS):
        if best.limit_nbytes - best.measured_nbytes <= best.limit_nbytes * _NEGLIGIBLE:
            break
        middle = math.sqrt(low * high)
        tried = plan_at(middle)
        if tried.fits:
            best, low = tried, middle
        else:
            high = middle
    return best


def plan_within_peak(
    costs: CostTable, limit_nbytes: int, measure: Callable[[Plan], int]
) -> BudgetedPlan:
    """Search the plan of least noise whose peak is within a limit, measuring few plans.

    Args:
        costs: the table made by *estimate*.
        limit_nbytes: the limit.
        measure: the predicted peak of a plan, in bytes, of which what it keeps is a part; asked at
            most five times, and five times more where nothing fits.

    Returns:
        The plan and its peak: of those measured that fit the one of least noise and time, or else
        the smallest of all. Where the peak is as near to the limit as a twentieth of it, which the
        search ends at, a limit smaller by more than that cannot give a larger peak.
    """
    plan_at, harms = _solver(costs), _harms(costs)
    known: dict[tuple[Decision, ...], BudgetedPlan] = {}

    def measured(plan: Plan) -> BudgetedPlan:
        if plan.decisions not in known:
            known[plan.decisions] = BudgetedPlan(plan, measure(plan), limit_nbytes)
        return known[plan.decisions]

    def within(kept_nbytes: int) -> Plan:
        return _plan_within(costs, kept_nbytes, None, plan_at).plan

    exact = plan_at(math.inf)
    # A peak holds what is kept, so that a plan which keeps more than the limit cannot fit.
    hopeless = exact.kept_nbytes > limit_nbytes
    last = measured(within(limit_nbytes // _FIRST_PART) if hopeless else exact)
    for _ in range(_MAX_TRIALS):
        if last.fits and (last.plan is exact or last.spare_nbytes <= limit_nbytes // _SLACK_SHARE):
            break
        plan = within(limit_nbytes - (last.measured_nbytes - last.plan.kept_nbytes))
        if plan.decisions in known:
            break
        last = measured(plan)
    fitting = [tried for tried in known.values() if tried.fits]
    if fitting:
        return min(fitting, key=lambda tried: _harm(harms, tried.plan))
    for plan in (exact, plan_at(0.0)):
        measured(plan)
    # What is computed again lives until it is read: it may take more to keep less.
    shares = _KEPT_SHARES if costs.time_price < math.inf else ()
    for share in shares:
        if (tried := measured(within(exact.kept_nbytes // share))).fits:
            return tried
    return min(known.values(), key=lambda tried: tried.measured_nbytes)


def refine(costs: CostTable, plan: Plan, spare_nbytes: int) -> Plan:
    """Spend spare bytes on finer codecs, those first that spare the most noise a byte.

    Args:
        costs: the table that the plan was made from.
        plan: a plan.
        spare_nbytes: bytes that it may keep in addition.

    Returns:
        A plan that differs in the codecs of sketched values only.
    """
    choice = _Choice.of(costs, plan)
    while True:
        finer = [m for m in choice.moves() if 0 < m.nbytes <= spare_nbytes and m.spared > 0]
        if not finer:
            return choice.plan(plan)
        move = max(finer, key=lambda m: m.spared / m.nbytes)
        spare_nbytes -= move.nbytes
        choice.make(move)


def trim(costs: CostTable, plan: Plan, excess_nbytes: int) -> Plan:
    """Free bytes by coarser codecs, those first that add the least noise a byte.

    Args:
        costs: the table that the plan was made from.
        plan: a plan.
        excess_nbytes: bytes that it is to keep less.

    Returns:
        A plan that differs in the codecs of sketched values only; the smallest such plan where
        that does not free enough.
    """
    choice = _Choice.of(costs, plan)
    while excess_nbytes > 0:
        coarser = [m for m in choice.moves() if m.nbytes < 0]
        if not coarser:
            break
        move = min(coarser, key=lambda m: m.spared / m.nbytes)
        excess_nbytes += move.nbytes
        choice.make(move)
    return choice.plan(plan)


@dataclass(frozen=True)
class _Move:
    """Another codec for one sketched value: bytes that it takes more, noise that it spares."""

    node: str
    codec: CodecCost
    nbytes: int
    spared: float


@dataclass(frozen=True)
class _Choice:
    """The decisions of a plan while codecs are exchanged."""

    values: Mapping[str, ValueCost]
    decisions: dict[str, Decision]
    moves_of: dict[str, list[_Move]]  # by value, of those that are sketched

    @classmethod
    def of(cls, costs: CostTable, plan: Plan) -> _Choice:
        choice = cls({v.node: v for v in costs.values}, {d.node: d for d in plan.decisions}, {})
        for decision in plan.decisions:
            if decision.action is Action.SKETCH:
                choice._list_moves(decision)
        return choice

    def moves(self) -> Iterator[_Move]:
        """All exchanges of one codec, in graph order."""
        return itertools.chain.from_iterable(self.moves_of.values())

    def make(self, move: _Move) -> None:
        codec = move.codec
        self.decisions[move.node] = replace(
            self.decisions[move.node],
            codec=codec.codec,
            kept_nbytes=codec.nbytes,
            noise=codec.noise,
        )
        self._list_moves(self.decisions[move.node])

    def plan(self, like: Plan) -> Plan:
        return replace(like, decisions=with_derived_noise(self.decisions.values()))

    def _list_moves(self, decision: Decision) -> None:
        value = self.values[decision.node]
        used = next((cost for cost in value.codecs if cost.codec == decision.codec), None)
        assert used is not None, (
            f"{decision.node} is sketched by {decision.codec}, not in its table"
        )
        self.moves_of[value.node] = [
            _Move(
                value.node,
                codec,
                codec.nbytes - decision.kept_nbytes,
                (used.harm - codec.harm) * value.nbytes,
            )
            for codec in value.codecs
        ]


_Harms = Mapping[tuple[str, Action, Codec | None], float]


def _harms(costs: CostTable) -> _Harms:
    """What the noise of each codec counts on each value, and computing it again."""
    harms: dict[tuple[str, Action, Codec | None], float] = {
        (v.node, Action.SKETCH, c.codec): c.harm * v.nbytes for v in costs.values for c in v.codecs
    }
    if costs.time_price < math.inf:
        again = (v for v in costs.values if v.recompute_time is not None)
        harms.update(((v.node, Action.RECOMPUTE, None), costs.time_harm(v)) for v in again)
    return harms


def _harm(harms: _Harms, plan: Plan) -> float:
    """The objective: what the noise of all sketches counts, and the time of recomputing."""
    return sum(harms.get((d.node, d.action, d.codec), 0.0) for d in plan.decisions)
