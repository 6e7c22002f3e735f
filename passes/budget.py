"""*budget*: the plan of least noise whose bytes, or whose predicted peak, stay within a limit.

Objective, over all plans: minimise ``sum_v noise(v) * sensitivity(v) * nbytes(v)``, the noise that
its sketches add, subject to ``bytes <= limit``. Its Lagrangian, with the charges of recomputing, is
the cut of :mod:`passes.plan`, 1 / lambda being the price of a byte: so lambda is searched on a
fixed grid, from the exact plan down, for the largest that fits. What is left under the limit then
buys finer codecs, those first that spare most noise a byte.

A peak is dear to measure: it takes the graphs of a plan. It is the bytes that the plan keeps and
what else is live at that moment, which differs little between neighbouring plans. So the search is
by kept bytes, under a limit lowered by that difference, and only its results are measured.

Comes in: a cost table, a limit and a way to measure a plan. Goes out: :class:`BudgetedPlan`. The
same table and limit give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from passes.estimate import CodecCost, CostTable, ValueCost
from passes.plan import Action, Decision, Plan, make_plan, with_derived_noise

# Lambda = 10**(k / 4): each step changes the price of noise by 1.8, the rungs of the ladder differ
# by more.
_GRID = [10.0 ** (k / 4) for k in range(-28, 13)]
# Between two of them the price is halved so often: filling by finer codecs alone leaves two
# sketches where the cut, a little further on, would have one that serves both.
_BISECTIONS = 6
# A share of the limit that is not worth another cut.
_NEGLIGIBLE = 0.005

# A peak this near under the limit, as a share of it, is near enough; what is measured at most.
_SLACK_SHARE = 50
_MAX_TRIALS = 6


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
    known: dict[tuple[Decision, ...], int] = {}

    def measured(plan: Plan) -> BudgetedPlan:
        if plan.decisions not in known:
            known[plan.decisions] = plan.kept_nbytes if measure is None else measure(plan)
        return BudgetedPlan(plan, known[plan.decisions], limit_nbytes)

    exact = measured(make_plan(costs, math.inf))
    if exact.fits:
        return exact
    best = measured(make_plan(costs, 0.0))
    if not best.fits:
        return best
    low, high = 0, len(_GRID)
    while low < high:
        middle = (low + high) // 2
        tried = measured(make_plan(costs, _GRID[middle]))
        if tried.fits:
            best, low = tried, middle + 1
        else:
            high = middle
    if 0 < low < len(_GRID):
        best = _bisect(best, _GRID[low - 1], _GRID[low], lambda p: measured(make_plan(costs, p)))
    filled = measured(refine(costs, best.plan, limit_nbytes - best.measured_nbytes))
    return filled if filled.fits else best


def _bisect(
    best: BudgetedPlan, low: float, high: float, plan_at: Callable[[float], BudgetedPlan]
) -> BudgetedPlan:
    """Search between a price that fits and one that does not, until little is left to spend."""
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
        measure: the predicted peak of a plan, in bytes; asked at most eight times.

    Returns:
        The plan and its peak: at most the limit and, where it can be, no further below than a
        fiftieth of it.
    """
    exact = make_plan(costs, math.inf)
    last = BudgetedPlan(exact, measure(exact), limit_nbytes)
    if last.fits:
        return last
    best: BudgetedPlan | None = None
    tried = {exact.decisions}
    for _ in range(_MAX_TRIALS):
        beside_nbytes = last.measured_nbytes - last.plan.kept_nbytes
        plan = plan_within(costs, limit_nbytes - beside_nbytes).plan
        if plan.decisions in tried:
            break
        tried.add(plan.decisions)
        last = BudgetedPlan(plan, measure(plan), limit_nbytes)
        if last.fits and (best is None or last.measured_nbytes > best.measured_nbytes):
            best = last
        if last.fits and limit_nbytes - last.measured_nbytes <= limit_nbytes // _SLACK_SHARE:
            break
    if best is not None:
        return best
    least = make_plan(costs, 0.0)
    return (
        last
        if least.decisions == last.plan.decisions
        else BudgetedPlan(least, measure(least), limit_nbytes)
    )


def refine(costs: CostTable, plan: Plan, spare_nbytes: int) -> Plan:
    """Spend spare bytes on finer codecs, those first that spare the most noise a byte.

    Args:
        costs: the table that the plan was made from.
        plan: a plan.
        spare_nbytes: bytes that it may keep in addition.

    Returns:
        A plan that differs in the codecs of sketched values only.
    """
    values = {value.node: value for value in costs.values}
    decisions = {decision.node: decision for decision in plan.decisions}
    while True:
        upgrades = [
            (gain, -i, name, codec)
            for i, (name, decision) in enumerate(decisions.items())
            if decision.action is Action.SKETCH
            for codec in values[name].codecs
            if 0 < codec.nbytes - decision.kept_nbytes <= spare_nbytes
            and (gain := _gain(decision, codec, values[name])) > 0
        ]
        if not upgrades:
            break
        _, _, name, codec = max(upgrades, key=lambda upgrade: upgrade[:2])
        spare_nbytes -= codec.nbytes - decisions[name].kept_nbytes
        decisions[name] = replace(
            decisions[name], codec=codec.codec, kept_nbytes=codec.nbytes, noise=codec.noise
        )
    return replace(plan, decisions=with_derived_noise(decisions.values()))


def _gain(decision: Decision, codec: CodecCost, value: ValueCost) -> float:
    """Noise spared a byte, weighted as in the price of a sketch."""
    used = next(cost for cost in value.codecs if cost.codec == decision.codec)
    spared = (used.harm - codec.harm) * value.nbytes
    return spared / (codec.nbytes - decision.kept_nbytes)
