"""The plan on hand-made cost tables: each rule of the cut, and brute force on small chains."""

import dataclasses
import itertools
import math
import random

import pytest

from passes.derive import Derivation
from passes.estimate import CodecCost, CostTable
from passes.mincut import UnboundedCutError
from passes.plan import Action, Decision, Network, make_plan, sketch_price
from tests.passes.value_costs import NamedCodec, value_cost


def codec(name="q", nbytes=100, noise=0.5, sensitivity=1.0):
    return CodecCost(NamedCodec(name), nbytes, noise, sensitivity)


def actions(*values, noise_price=0.0):
    plan = make_plan(CostTable(values), noise_price)
    return {d.node: d.action for d in plan.decisions}


def test_a_value_nobody_reads_costs_nothing():
    assert actions(value_cost("x")) == {}


def test_linear_use_is_sketched_and_exact_use_is_kept():
    linear = value_cost("a", linear_users=("w",), codecs=(codec(),))
    exact = value_cost("b", raw_users=("n",))
    assert actions(linear, exact) == {"a": Action.SKETCH, "b": Action.KEEP}


def test_exact_use_beside_a_linear_one_keeps_the_value_once():
    both = value_cost("a", linear_users=("w",), raw_users=("n",), codecs=(codec(),))
    plan = make_plan(CostTable((both,)), 0.0)
    assert [(d.action, d.kept_nbytes) for d in plan.decisions] == [(Action.KEEP, 1000)]


def test_a_value_that_is_free_to_rebuild_is_never_sketched():
    kept = value_cost("y", raw_users=("n",))
    rebuilt = value_cost(
        "x", inputs=("y",), recompute_cost=10, ban_reason=None,
        linear_users=("w",), codecs=(codec(nbytes=20),),
    )  # fmt: skip
    assert actions(kept, rebuilt) == {"y": Action.KEEP, "x": Action.RECOMPUTE}


def test_a_sketch_is_taken_where_the_exact_source_would_have_to_be_kept_for_it():
    source = value_cost("y")
    derived = value_cost(
        "x", inputs=("y",), recompute_cost=10, ban_reason=None,
        linear_users=("w",), codecs=(codec(),),
    )  # fmt: skip
    assert actions(source, derived) == {"x": Action.SKETCH}


def test_parameters_are_free():
    weight = value_cost("w", nbytes=0, keep_nbytes=0, raw_users=("g",), is_input=True)
    plan = make_plan(CostTable((weight,)), 0.0)
    assert plan.kept_nbytes == 0


def test_noise_price_moves_the_choice_along_the_ladder():
    ladder = (codec("8b", 260, 1e-4), codec("4b", 133, 0.02), codec("2b", 70, 0.5))
    names = []
    for price in (0.0, 0.2, 20.0, 1e5):
        plan = make_plan(CostTable((value_cost("a", linear_users=("w",), codecs=ladder),)), price)
        names.append([d.codec.name if d.codec else "exact" for d in plan.decisions])
    assert names == [["2b"], ["4b"], ["8b"], ["exact"]]


def test_user_checkpoint_regions_are_recomputed():
    source = value_cost("y")
    inside = value_cost(
        "x", inputs=("y",), recompute_cost=10, ban_reason=None, must_recompute=True,
        linear_users=("w",), codecs=(codec(),),
    )  # fmt: skip
    assert actions(source, inside) == {"y": Action.KEEP, "x": Action.RECOMPUTE}


def test_booleans_are_packed_at_the_packed_size():
    mask = value_cost(
        "m", keep_nbytes=125, raw_users=("n",), packing=NamedCodec("pairs", exact=True)
    )
    (decision,) = make_plan(CostTable((mask,)), 0.0).decisions
    assert decision == Decision("m", Action.PACK, mask.packing, 1000, 125, 0.0)


def test_a_decision_tells_codec_bytes_and_noise():
    linear = value_cost("a", linear_users=("w",), codecs=(codec(),))
    (decision,) = make_plan(CostTable((linear,)), 0.0).decisions
    assert decision == Decision("a", Action.SKETCH, NamedCodec("q"), 1000, 100, 0.5)


def test_a_plan_sums_up_its_decisions():
    values = (
        value_cost("a", linear_users=("w",), codecs=(codec(),)),
        value_cost("b", raw_users=("n",)),
        value_cost("c", raw_users=("n",)),
        value_cost("d", inputs=("c",), recompute_cost=0, ban_reason=None, raw_users=("n",)),
    )
    plan = make_plan(CostTable(values), 0.5)
    assert plan.kept_nbytes == 100 + 1000 + 1000
    assert plan.counts() == {"sketch": 1, "keep": 2, "recompute": 1}
    assert plan.noise_price == 0.5


def test_of_codecs_at_one_price_the_one_with_less_noise_is_taken():
    twins = (codec("loud", noise=0.9), codec("quiet", noise=0.1))
    (decision,) = make_plan(
        CostTable((value_cost("a", linear_users=("w",), codecs=twins),)), 0
    ).decisions
    assert decision.codec == NamedCodec("quiet")


def test_sensitivity_multiplies_the_price_of_noise():
    cost = codec(nbytes=100, noise=0.5, sensitivity=4.0)
    assert sketch_price(cost, 1000, 0.0) == 100
    assert sketch_price(cost, 1000, 0.1) == 100 + 0.1 * 0.5 * 4.0 * 1000


def test_a_sketch_dearer_than_the_value_gives_way_to_it():
    noisy = value_cost("a", linear_users=("w",), codecs=(codec(noise=2.0),))
    assert actions(noisy, noise_price=0.44) == {"a": Action.SKETCH}
    assert actions(noisy, noise_price=0.46) == {"a": Action.KEEP}


def test_a_tuple_is_not_kept_but_its_items_are():
    pair = value_cost("p", nbytes=0, keep_nbytes=None)
    item = value_cost("i", inputs=("p",), recompute_cost=10, ban_reason=None, raw_users=("n",))
    assert actions(pair, item) == {"i": Action.KEEP}


def test_a_cheap_value_is_rebuilt_only_while_its_charge_is_below_its_bytes():
    source = value_cost("y", nbytes=100, raw_users=("n",), keep_nbytes=100)
    for charge, action in ((999, Action.RECOMPUTE), (1001, Action.KEEP)):
        cheap = value_cost(
            "x", inputs=("y",), recompute_cost=charge, ban_reason=None, raw_users=("n",)
        )
        assert actions(source, cheap)["x"] is action


def test_what_can_be_neither_kept_nor_recomputed_contradicts_itself():
    tuple_of_random_op = value_cost("p", nbytes=0, keep_nbytes=None, raw_users=("n",))
    with pytest.raises(UnboundedCutError, match="no finite cut"):
        actions(tuple_of_random_op)


def test_negative_noise_price_is_refused():
    with pytest.raises(ValueError, match="noise_price: expected a number >= 0, got -1"):
        make_plan(CostTable(()), -1)


def costly_chain(**changes):
    """``y``, which must be exact, is made of ``x``, which is kept for another use as well."""
    return (
        value_cost("x", raw_users=("n",)),
        value_cost("y", inputs=("x",), recompute_time=0.1, raw_users=("n",), **changes),
    )


@pytest.mark.parametrize(
    ("noise_price", "time_price", "action"),
    [
        (0.0, math.inf, Action.KEEP),  # never, whatever bytes cost
        (math.inf, 1.0, Action.KEEP),  # bytes cost nothing beside time
        (1.0, 1.0, Action.RECOMPUTE),  # 0.1 of the 2,000 bytes read, against 1,000
        (1.0, 6.0, Action.KEEP),  # 1,200 against 1,000
        (0.5, 6.0, Action.RECOMPUTE),
        (0.0, 6.0, Action.RECOMPUTE),
    ],
)
def test_a_costly_op_is_computed_again_where_its_time_costs_less(noise_price, time_price, action):
    table = CostTable(costly_chain(), time_price)
    chosen = {d.node: d.action for d in make_plan(table, noise_price).decisions}
    assert chosen == {"x": Action.KEEP, "y": action}


def test_time_is_weighed_against_noise():
    table = CostTable(
        (
            value_cost("x", raw_users=("n",)),
            value_cost(
                "y", inputs=("x",), recompute_time=0.1, linear_users=("w",), codecs=(codec(),)
            ),
        )
    )  # a sketch: 100 bytes, and half of 1,000 for its noise; computing again: 0.1 of 2,000

    def chosen(time_price):
        plan = make_plan(dataclasses.replace(table, time_price=time_price), 1.0)
        return {d.node: d.action for d in plan.decisions}["y"]

    assert chosen(2.9) is Action.RECOMPUTE
    assert chosen(3.1) is Action.SKETCH


@pytest.mark.parametrize("seed", range(30))
def test_cost_is_minimal_by_brute_force(seed):
    rng = random.Random(seed)
    values = []
    for i in range(5):
        banned = i == 0 or rng.random() < 0.4
        linear = rng.random() < 0.5
        values.append(
            value_cost(
                f"v{i}",
                nbytes=(size := rng.randrange(200, 1000)),
                keep_nbytes=size,
                inputs=tuple(sorted({f"v{rng.randrange(i)}" for _ in range(2)})) if i else (),
                recompute_cost=None if banned else rng.randrange(50),
                linear_users=("w",) if linear else (),
                raw_users=("n",) if rng.random() < 0.4 else (),
                codecs=(codec(nbytes=rng.randrange(20, 150), noise=0.0),) if linear else (),
            )
        )
        if banned and i and rng.random() < 0.5:
            time = rng.random() / 20
            values[-1] = dataclasses.replace(values[-1], recompute_time=time)
    table = CostTable(tuple(values), time_price=1.0)
    # Time and bytes at one price; the sketches are without noise.
    plan = make_plan(table, 1.0)
    values = [
        v
        if v.recompute_time is None
        else dataclasses.replace(v, recompute_cost=round(table.time_harm(v)))
        for v in values
    ]
    chosen = {d.node: d.action for d in plan.decisions}
    assert _cost(values, chosen) == min(
        cost
        for combination in itertools.product([None, *Action], repeat=5)
        if (cost := _cost(values, dict(zip([v.node for v in values], combination, strict=True))))
        is not None
    )


@pytest.mark.parametrize("seed", range(20))
def test_edges_written_once_are_those_of_every_price(seed):
    rng = random.Random(seed)
    values = []
    for i in range(8):
        earlier = tuple(sorted({f"v{rng.randrange(i)}" for _ in range(2)})) if i else ()
        banned = i == 0 or rng.random() < 0.4
        ladder = [codec("fine", 300, 0.1), codec("coarse", 80, 0.9)]
        values.append(
            value_cost(
                f"v{i}",
                nbytes=(size := rng.randrange(200, 1000)),
                keep_nbytes=size,
                inputs=earlier,
                recompute_cost=None if banned else rng.randrange(50),
                recompute_time=rng.random() / 20 if banned and rng.random() < 0.5 else None,
                linear_users=("w",) if rng.random() < 0.6 else (),
                raw_users=("n",) if rng.random() < 0.4 else (),
                codecs=tuple(ladder) if rng.random() < 0.4 else (),
                derivation=Derivation(earlier[:1], earlier[1:]) if rng.random() < 0.5 else None,
            )
        )
    for time_price in (1.0, math.inf):
        network = Network.of(CostTable(tuple(values), time_price=time_price))
        written_anew = dataclasses.replace(network, varying=tuple(range(8)), fixed=())
        for price in (0.0, 0.3, 2.0, math.inf):
            assert network.plan(price) == written_anew.plan(price)


def _cost(values, chosen):
    """Cost of an assignment, or None where it does not serve the backward."""
    exact = {v.node for v in values if chosen.get(v.node) in (Action.KEEP, Action.RECOMPUTE)}
    total = 0
    for v in values:
        action = chosen.get(v.node)
        if action is Action.PACK:
            return None
        if v.raw_users and v.node not in exact:
            return None
        if v.linear_users and v.node not in exact and action is not Action.SKETCH:
            return None
        if action is Action.SKETCH:
            if not v.codecs:
                return None
            total += v.codecs[0].nbytes
        if action is Action.KEEP:
            total += v.keep_nbytes
        if action is Action.RECOMPUTE:
            if v.recompute_cost is None or not set(v.inputs) <= exact:
                return None
            total += v.recompute_cost
    return total
