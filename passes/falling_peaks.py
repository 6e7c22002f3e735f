"""*falling peaks*: a plan within a limit whose peak is not above those of plans within larger ones.

A plan that keeps less need not have the lower peak. A codec may store something on its way from
what is kept to the value (``Codec.decoding_nbytes``: the planes of a tile), and where it is decoded
at the peak of the backward that is memory once more. So plans are searched within the limit, its
double and so on, until nothing need be sketched (limits between these are not looked at). The
largest limit first, a plan whose peak is above one before it is searched again without the codecs
that store the most, step by step, as long as the limit is kept. That costs noise; the first plan
that raises no peak is taken, or else the one that raises it least.

Comes in: a cost table, a limit and what tells the peak of a plan. Goes out: a
:class:`passes.budget.BudgetedPlan`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace

from passes.budget import BudgetedPlan, make_search
from passes.estimate import CostTable
from passes.plan import Action, Plan

# Peaks that differ by less than such a part are not told apart: seeds take a few hundred bytes.
_NEGLIGIBLE = 1000
# So often the codecs that store the most are left out: those are the ones that a peak holds.
_MAX_EXCHANGES = 8


def plan_below(
    costs: CostTable,
    limit_nbytes: int,
    measure: Callable[[Plan], int],
    peak_of: Callable[[Plan], int],
) -> BudgetedPlan:
    """Search the plan of least noise within a limit that raises no peak by how it decodes.

    Args:
        costs: the table made by *estimate*.
        limit_nbytes: the limit.
        measure: what a plan takes of it, see :func:`passes.budget.plan_within`.
        peak_of: predicts the peak of a plan, in bytes. It is not asked where the plan of least
            noise decodes each value at once.

    Returns:
        The plan and what it takes. Its peak may be above that of a larger limit all the same, where
        nothing else keeps to the limit.
    """
    search = make_search(costs, measure)
    found = search(limit_nbytes)
    if not found.fits or not _stored_on_the_way(costs, found.plan):
        return found
    exact = search(sys.maxsize)
    larger = itertools.takewhile(
        lambda nbytes: nbytes < exact.measured_nbytes,
        (max(limit_nbytes, 1) << k for k in itertools.count(1)),
    )
    lowest = peak_of(exact.plan)
    for step in reversed([found, *map(search, larger)]):
        found, peak = _lower(costs, step, lowest, measure, peak_of)
        lowest = min(lowest, peak)
    return found


def _lower(
    costs: CostTable,
    found: BudgetedPlan,
    lowest_nbytes: int,
    measure: Callable[[Plan], int],
    peak_of: Callable[[Plan], int],
) -> tuple[BudgetedPlan, int]:
    """Exchange a plan that raises the lowest peak, if it can be helped; return it and its peak."""
    negligible = lowest_nbytes // _NEGLIGIBLE
    tried, peak = found, peak_of(found.plan)
    for _ in range(_MAX_EXCHANGES):
        stored = _stored_on_the_way(costs, tried.plan)
        if peak <= lowest_nbytes + negligible or not stored:
            break
        tried = make_search(_storing_less(costs, stored), measure)(found.limit_nbytes)
        if not tried.fits:
            break
        if (tried_peak := peak_of(tried.plan)) < peak - negligible:
            found, peak = tried, tried_peak
    return found, peak


def _stored_on_the_way(costs: CostTable, plan: Plan) -> int:
    """The most that decoding a single value stores on its way under a plan."""
    used = {d.node: d.codec for d in plan.decisions if d.action is Action.SKETCH}
    stored = (
        codec.decoding_nbytes
        for value in costs.values
        for codec in value.codecs
        if codec.codec == used.get(value.node)
    )
    return max(stored, default=0)


def _storing_less(costs: CostTable, nbytes: int) -> CostTable:
    """The table without the codecs that store so much on their way, or more."""
    values = (
        replace(v, codecs=tuple(c for c in v.codecs if c.decoding_nbytes < nbytes))
        for v in costs.values
    )
    return replace(costs, values=tuple(values))
