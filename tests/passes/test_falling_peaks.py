import dataclasses

import pytest

from passes.budget import plan_within
from passes.estimate import CodecCost, CostTable
from passes.falling_peaks import plan_below
from tests.passes.value_costs import NamedCodec, value_cost


def codec(nbytes, noise, decoding_nbytes=0):
    return CodecCost(NamedCodec(f"{nbytes}, {noise}"), nbytes, noise, 1.0, decoding_nbytes)


# Of two codecs of one size the better one stores something on its way.
FINE, DETOUR, DIRECT = codec(500, 0.01), codec(100, 0.5, 600), codec(100, 0.8)


def table(*codecs):
    return CostTable(
        tuple(
            value_cost(node, linear_users=(f"use_{node}",), codecs=codecs)
            for node in ("first", "second")
        )
    )


def used(plan, node):
    (decision,) = (d for d in plan.decisions if d.node == node)
    return decision.codec


def peak_at(node, beside=0):
    """The peak: where a value is decoded, with all that is kept and what is stored on the way."""

    def peak(plan):
        peak.asked += 1
        stored = DETOUR.decoding_nbytes if used(plan, node) is DETOUR.codec else 0
        return plan.kept_nbytes + 1000 + max(stored, beside)

    peak.asked = 0
    return peak


def kept(plan):
    return plan.kept_nbytes


def test_a_codec_that_stores_on_its_way_is_avoided_where_that_raises_the_peak():
    costs, peak = table(FINE, DETOUR, DIRECT), peak_at("first")
    limits = (2000, 1000, 600, 200)
    rising = [peak(plan_within(costs, limit, kept).plan) for limit in limits]
    assert rising != sorted(rising, reverse=True)
    falling = [peak(plan_below(costs, limit, kept, peak).plan) for limit in limits]
    assert falling == sorted(falling, reverse=True)


def test_the_plan_that_raises_the_peak_least_is_taken_where_all_do():
    costs = table(FINE, DETOUR, DIRECT)

    def peak(plan):
        # Much that is no matter of codecs is there only where little is kept.
        return peak_at("first")(plan) + (5000 if plan.kept_nbytes <= 200 else 0)

    found = plan_below(costs, 200, kept, peak)
    assert used(found.plan, "first") is DIRECT.codec


def test_no_limit_at_all_ends():
    nothing = codec(0, 0.5, 600)
    found = plan_below(table(FINE, nothing), 0, kept, kept)
    assert found.fits


def test_it_is_used_where_the_peak_is_elsewhere():
    costs = table(FINE, DETOUR, DIRECT)
    found = plan_below(costs, 200, kept, peak_at("first", beside=DETOUR.decoding_nbytes))
    assert found.plan == plan_within(costs, 200, kept).plan


def test_the_limit_is_kept_where_nothing_else_keeps_to_it():
    costs = table(FINE, DETOUR)
    found = plan_below(costs, 200, kept, peak_at("first"))
    assert found.fits
    assert used(found.plan, "first") is DETOUR.codec


def test_one_that_stores_less_is_taken_before_one_that_stores_nothing():
    less = codec(100, 0.6, 300)
    costs = table(FINE, DETOUR, less, DIRECT)
    stored = {c.codec: c.decoding_nbytes for c in (DETOUR, less)}

    def peak(plan):
        return plan.kept_nbytes + 1000 + stored.get(used(plan, "first"), 0)

    # Within 800 one value is kept finely, which is the first: no peak of a smaller limit may be
    # above 1600. That is 1800 where both take the detour, and 1500 where it is the smaller one.
    assert used(plan_within(costs, 800, kept).plan, "first") is FINE.codec
    assert used(plan_below(costs, 200, kept, peak).plan, "first") is less.codec


@pytest.mark.parametrize("limit", [200, 1000, 2000])
def test_no_peak_is_asked_for_where_all_is_decoded_at_once(limit):
    peak = peak_at("first")
    plain = dataclasses.replace(DETOUR, decoding_nbytes=0)
    costs = table(FINE, plain)
    assert plan_below(costs, limit, kept, peak) == plan_within(costs, limit, kept)
    assert not peak.asked


def test_a_limit_out_of_reach_gives_the_least():
    costs = table(FINE, DETOUR, DIRECT)
    found = plan_below(costs, 10, kept, peak_at("first"))
    assert not found.fits
    assert found == plan_within(costs, 10, kept)
