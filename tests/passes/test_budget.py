import dataclasses
import itertools
import math

import pytest

from passes.budget import BudgetedPlan, _bisect, plan_within, plan_within_peak, refine, trim
from passes.estimate import CodecCost, CostTable
from passes.plan import Action, Plan, make_plan
from tests.passes.value_costs import NamedCodec, value_cost

# Bytes and noise of an eighth, a quarter and a half of a value's 1,000 bytes.
RUNGS = ((500, 0.001), (250, 0.05), (125, 0.5))


def value(node, sensitivity=1.0, nbytes=1000):
    codecs = tuple(
        CodecCost(NamedCodec(f"{size}"), size * nbytes // 1000, noise, sensitivity)
        for size, noise in RUNGS
    )
    return value_cost(node, nbytes, linear_users=(f"use_{node}",), codecs=codecs)


TABLE = CostTable(tuple(value(f"v{i}", sensitivity=4.0**i) for i in range(4)))


def weighted_noise(plan):
    sensitivities = {v.node: v.codecs[0].sensitivity for v in TABLE.values}
    return sum(d.noise * sensitivities[d.node] for d in plan.decisions)


def best_by_brute_force(limit):
    """The least weighted noise over all choices of codec or exact value."""
    ways = [(1000, 0.0), *RUNGS]
    return min(
        sum(way[1] * 4.0**i for i, way in enumerate(chosen))
        for chosen in itertools.product(ways, repeat=4)
        if sum(way[0] for way in chosen) <= limit
    )


@pytest.mark.parametrize("limit", [500, 625, 750, 1000, 1250, 1500, 2000, 3000, 4000])
def test_the_plan_fits_and_is_near_the_best(limit):
    found = plan_within(TABLE, limit)
    assert found.fits
    assert found.measured_nbytes == found.plan.kept_nbytes <= limit
    # Greedy filling leaves less than one step unspent, of 500 bytes at most: the plan is no worse
    # than the best of a limit that much smaller (500 bytes are the least there is).
    assert weighted_noise(found.plan) <= best_by_brute_force(max(limit - 500, 500))


def test_an_exact_plan_that_fits_is_taken():
    found = plan_within(TABLE, 4000)
    assert all(d.action is Action.KEEP for d in found.plan.decisions)


def test_the_least_is_returned_where_nothing_fits():
    found = plan_within(TABLE, 499)
    assert not found.fits
    assert found.measured_nbytes == 500
    assert found.limit_nbytes == 499


def test_a_smaller_limit_never_keeps_more_or_adds_less_noise():
    found = [plan_within(TABLE, limit).plan for limit in range(500, 4001, 50)]
    kept = [plan.kept_nbytes for plan in found]
    noise = [weighted_noise(plan) for plan in found]
    assert kept == sorted(kept)
    assert noise == sorted(noise, reverse=True)


def test_the_measure_is_asked_once_a_plan_and_decides():
    asked = []

    def measure(plan):
        asked.append(plan.decisions)
        return plan.kept_nbytes + 10_000

    found = plan_within(TABLE, 11_000, measure)
    assert found.fits
    assert found.measured_nbytes == found.plan.kept_nbytes + 10_000
    assert len(asked) == len(set(asked))


def peak_of(asked):
    """A peak: what is kept, and transients that are larger where codecs are coarser."""

    def measure(plan):
        asked.append(plan.decisions)
        sketched = sum(d.action is Action.SKETCH for d in plan.decisions)
        return plan.kept_nbytes + 10_000 + 100 * sketched

    return measure


@pytest.mark.parametrize("limit", [10_950, 11_400, 12_000, 13_000, 13_999, 14_000])
def test_a_peak_is_met_with_few_measurements(limit):
    asked = []
    found = plan_within_peak(TABLE, limit, peak_of(asked))
    assert found.fits
    assert found.measured_nbytes == peak_of([])(found.plan)
    assert len(asked) == len(set(asked)) <= 8
    # No plan by a smaller price of noise fits, but for what one upgrade of a value takes.
    every = [make_plan(TABLE, 10.0 ** (k / 4)) for k in range(-28, 13)]
    fitting = [weighted_noise(p) for p in every if peak_of([])(p) <= limit]
    assert weighted_noise(found.plan) <= min(fitting, default=float("inf"))


def test_the_peak_of_an_exact_plan_that_keeps_more_than_the_limit_is_not_measured():
    asked = []

    def measure(plan):
        asked.append(plan.decisions)
        return plan.kept_nbytes + 100

    exact = make_plan(TABLE, math.inf)
    found = plan_within_peak(TABLE, exact.kept_nbytes - 1, measure)
    assert found.fits
    assert exact.decisions not in asked
    assert plan_within_peak(TABLE, exact.kept_nbytes + 100, measure).plan == exact


def test_a_peak_out_of_reach_returns_the_least():
    asked = []
    found = plan_within_peak(TABLE, 10_899, peak_of(asked))
    assert not found.fits
    assert found.measured_nbytes == 10_900
    assert found.plan.kept_nbytes == 500
    assert len(asked) <= 8


def test_a_smaller_limit_never_gives_a_larger_peak():
    peaks = [
        plan_within_peak(TABLE, limit, peak_of([])).measured_nbytes
        for limit in range(10_900, 14_001, 50)
    ]
    assert peaks == sorted(peaks)


def test_spare_bytes_go_where_they_spare_most_noise():
    plan = make_plan(TABLE, 0.0)
    assert plan.kept_nbytes == 500
    # One upgrade by 125 bytes fits: it goes to the value that counts most.
    refined = refine(TABLE, plan, 125)
    assert [d.kept_nbytes for d in refined.decisions] == [125, 125, 125, 250]
    assert refine(TABLE, plan, 124) == plan


def test_the_same_table_gives_the_same_plan():
    assert plan_within(TABLE, 1234) == plan_within(TABLE, 1234)


def test_spare_bytes_go_by_harm_where_sensitivities_differ_by_codec():
    one, other = value("a"), value("b")
    # The finer codec of b errs in ways that count: nothing is spared by it.
    sensitivities = (500.0, 10.0, 1.0)
    codecs = tuple(
        dataclasses.replace(c, sensitivity=s)
        for c, s in zip(other.codecs, sensitivities, strict=True)
    )
    table = CostTable((one, dataclasses.replace(other, codecs=codecs)))
    plan = make_plan(table, 0.0)
    refined = refine(table, plan, 1000)
    assert [d.kept_nbytes for d in refined.decisions] == [500, 125]


def test_between_two_prices_of_the_grid_the_search_goes_on():
    """A plan that keeps 1,000 bytes a unit of price, of which 1.43 may be spent."""
    asked = []

    def plan_at(price):
        asked.append(price)
        return BudgetedPlan(Plan((), price), int(1000 * price), 1430)

    found = _bisect(plan_at(1.0), (1.0, 2.0), plan_at)
    # Within half a percent of the limit it stops: 2**(1/2) = 1.414 is not, 2**(33/64) = 1.4296 is.
    assert found.plan.noise_price == pytest.approx(2 ** (33 / 64))
    assert found.fits
    assert len(asked) == 1 + 6
    full = BudgetedPlan(Plan((), 1.0), 1000, 1000)
    assert _bisect(full, (1.0, 2.0), plan_at) is full


def test_trimming_gives_up_what_counts_least():
    plan = make_plan(TABLE, 1.0)
    assert [d.kept_nbytes for d in plan.decisions] == [250, 250, 500, 500]
    assert [d.kept_nbytes for d in trim(TABLE, plan, 300).decisions] == [125, 250, 250, 500]
    assert trim(TABLE, plan, 0) == plan
    # No more than the coarsest codecs can be given up.
    assert [d.kept_nbytes for d in trim(TABLE, plan, 10_000).decisions] == [125] * 4


def chain(num_values):
    """Values of 1,000 bytes that must be exact, each made of the one before it."""
    exact = dataclasses.replace(
        value("v0"), linear_users=(), raw_users=("n",), codecs=(), recompute_time=None
    )
    return CostTable(
        tuple(
            dataclasses.replace(
                exact,
                node=f"v{i}",
                inputs=(f"v{i - 1}",) if i else (),
                recompute_time=0.01 if i else None,
            )
            for i in range(num_values)
        )
    )


def test_time_buys_bytes_where_nothing_can_be_sketched():
    costs = chain(8)
    assert not plan_within(costs, 5000).fits
    paid = plan_within(dataclasses.replace(costs, time_price=1.0), 5000)
    assert paid.fits
    again = [d.node for d in paid.plan.decisions if d.action is Action.RECOMPUTE]
    assert len(again) >= 3


def test_what_takes_less_time_is_computed_again_first():
    costs = chain(5)
    slow = tuple(
        dataclasses.replace(v, recompute_time=0.05) if v.node in ("v1", "v2") else v
        for v in costs.values
    )
    found = plan_within(CostTable(slow, time_price=1.0), 3000)
    again = {d.node for d in found.plan.decisions if d.action is Action.RECOMPUTE}
    assert again == {"v3", "v4"}


def test_a_peak_out_of_reach_is_the_least_of_all_that_were_measured():
    costs = dataclasses.replace(chain(8), time_price=1.0)

    def peak(plan):
        """Half as much again for each value that is computed again: it lives until it is read."""
        again = sum(d.action is Action.RECOMPUTE for d in plan.decisions)
        return plan.kept_nbytes + 1500 * again

    found = plan_within_peak(costs, 500, peak)
    assert not found.fits
    assert found.measured_nbytes == peak(make_plan(costs, math.inf)) == 8000
