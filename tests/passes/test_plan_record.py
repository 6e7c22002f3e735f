"""A plan written down, and carried out again only where it fits."""

import dataclasses

import pytest
import torch

import passes
from passes import Action, PlanMismatchError
from passes.estimate import estimate_costs
from passes.expose import expose
from passes.plan import make_plan
from passes.plan_record import (
    find_record,
    record_from_dict,
    record_plan,
    record_to_dict,
    replay_plan,
)

aten = torch.ops.aten


def net(x, weight, scale):
    """A product with a linear use, and a relu whose backward reads a mask."""
    return torch.relu((x @ weight) * scale)


def capture_net(toy, rows=2):
    return toy.capture(
        net,
        torch.randn(rows, 3),
        torch.randn(3, 4, requires_grad=True),
        torch.randn(4, requires_grad=True),
        static=(1, 2),
    )


@pytest.fixture
def case(toy):
    """The exposed graph, its rules, costs and plan, and the plan's record."""
    rules = toy.rules(toy.Signed())
    exposed = expose(capture_net(toy), rules.exposures, rules.primitives)
    costs = estimate_costs(exposed, rules)
    plan = make_plan(costs, 0.0)
    return exposed, rules, costs, plan, record_plan(exposed, plan)


def edited(record, node, **changes):
    """The record with one decision changed; without changes, left out."""
    decisions = [
        dataclasses.replace(d, **changes) if d.node == node else d
        for d in record.decisions
        if changes or d.node != node
    ]
    return dataclasses.replace(record, decisions=tuple(decisions))


def test_a_record_gives_the_plan_back(case):
    exposed, _, costs, plan, record = case
    assert replay_plan(record, exposed, costs) == plan
    assert record.kept_nbytes == plan.kept_nbytes
    assert [codec.name for codec in record.codecs()] == ["signed"]
    assert [d.text for d in record.decisions if d.codec is not None] == [
        "sketch signed, 16 bytes",
        "pack pairs, 4 bytes",
    ]


def test_a_record_as_a_plain_dict(toy, case):
    record = case[-1]
    codecs = {"signed": toy.Signed(), "pairs": toy.Pairs()}
    plain = record_to_dict(record, lambda codec: {"name": codec.name})
    assert record_from_dict(plain, lambda given: codecs[given["name"]]) == record
    plain["graph"][0] = "%0 = input: float32[9]"
    with pytest.raises(PlanMismatchError, match="its lines were changed"):
        record_from_dict(plain, lambda given: codecs[given["name"]])


def test_the_passes_carry_a_record_out(toy, case):
    """With other codecs in the rules and at a price at which nothing would be sketched."""
    record = case[-1]
    outcome = passes.run(
        capture_net(toy),
        toy.rules(toy.Coin()),
        1e9,
        None,
        find_record=lambda exposed: find_record([record], exposed),
    )
    assert record_plan(outcome.exposed, outcome.plan).decisions == record.decisions


def test_no_record():
    graph = torch.fx.Graph()
    graph.output([])
    joint = passes.JointGraph(torch.fx.GraphModule({}, graph), 0)
    with pytest.raises(PlanMismatchError, match=r"no plan is recorded for graph \w+: the record"):
        find_record([], joint)


def test_no_record_of_this_graph(toy, case):
    exposed, rules, _, _, record = case
    other = expose(capture_net(toy, rows=5), rules.exposures, rules.primitives)
    assert find_record([record], exposed) is record
    with pytest.raises(PlanMismatchError) as caught:
        find_record([record], other)
    assert (
        "First difference at node 0: expected '%0 = input: float32[2, 3]', "
        "got '%0 = input: float32[5, 3]'. The model, its input shapes or dtypes, the inner "
        "compiler or torch changed: make and save the plans again"
    ) in str(caught.value)
    longer = dataclasses.replace(record, lines=record.lines[:-1])
    with pytest.raises(PlanMismatchError, match="expected 'the end of the graph', got 'return"):
        find_record([longer], exposed)


@pytest.mark.parametrize(
    ("node", "changes", "text"),
    [
        ("mm", {"position": 99}, "at mm: expected a forward value, got position 99 of the graph"),
        (
            "mm",
            {"kept_nbytes": 15},
            "at mm: expected sketch signed, 15 bytes, got 16 bytes",
        ),
        (
            "mm",
            {"codec": None},
            "at mm: expected sketch, 16 bytes, got no linear use of it, or a codec that does not",
        ),
        (
            "mm",
            {"action": Action.RECOMPUTE},
            "at mm: expected recompute signed, 16 bytes, got no exact values of ['primals_2']",
        ),
        (
            "primals_1",
            {"action": Action.RECOMPUTE},
            "at primals_1: expected recompute, 0 bytes, got no recompute: graph input",
        ),
        (
            "mm",
            {"action": Action.DERIVE},
            "at mm: expected derive signed, 16 bytes, got no linear derivation",
        ),
        ("le", {"codec": None}, "at le: expected pack, 4 bytes, got packing by pairs"),
        (
            "mm",
            {"action": Action.PACK},
            "at mm: expected pack signed, 16 bytes, got no packing",
        ),
        ("mm", {}, "at mm: expected some stand-in, got no decision"),
        ("le", {}, "at le: expected its exact value (for where), got no decision"),
        ("primals_1", {}, "at t: expected recompute, 0 bytes, got no exact values of"),
    ],
)
def test_a_decision_that_does_not_fit(case, node, changes, text):
    exposed, _, costs, _, record = case
    with pytest.raises(PlanMismatchError) as caught:
        replay_plan(edited(record, node, **changes), exposed, costs)
    assert str(caught.value).startswith(f"the plan recorded for graph {record.fingerprint} does")
    assert text in str(caught.value)
    assert str(caught.value).endswith("changed: make and save the plans again")


def test_a_checkpoint_region_is_respected(case):
    exposed, rules, _, _, record = case
    costs = estimate_costs(exposed, rules, must_recompute=["mm"])
    with pytest.raises(PlanMismatchError, match="expected recompute, as the checkpoint region"):
        replay_plan(record, exposed, costs)


def test_what_is_no_tensor_cannot_be_kept(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    pair = b.call(aten.var_mean.correction, x, [1])
    joint = b.joint([b.call(aten.sin.default, x)], [b.call(aten.mul.Tensor, grad, x)])
    costs = estimate_costs(joint, toy.rules())
    record = record_plan(joint, make_plan(costs, 0.0))
    (decision,) = record.decisions
    moved = dataclasses.replace(decision, position=list(joint.graph.nodes).index(pair))
    record = dataclasses.replace(record, decisions=(decision, moved))
    with pytest.raises(PlanMismatchError, match="got no tensor of known size"):
        replay_plan(record, joint, costs)


class TestDerived:
    """The square's derivative is linear in x; its double is derived from it."""

    @pytest.fixture
    def derived(self, toy):
        b = toy.Builder()
        x, w = b.input("primals_1", 8, 64), b.input("primals_2", 64, 64)
        grads = b.input("tangents_1", 8, 64), b.input("tangents_2", 8, 64)
        h = b.call(aten.mm.default, x, w)
        double = b.call(aten.mul.Tensor, h, 2.0)
        gradients = [b.call(aten.mul.Tensor, g, v) for g, v in zip(grads, (h, double), strict=True)]
        joint = b.joint([b.call(aten.sum.default, double)], gradients, static=(0, 1))
        costs = estimate_costs(joint, toy.rules(toy.Half()))
        plan = make_plan(costs, 0.0)
        return joint, costs, plan, record_plan(joint, plan)

    def test_it_is_derived_again(self, derived):
        joint, costs, plan, record = derived
        assert Action.DERIVE in {d.action for d in plan.decisions}
        assert replay_plan(record, joint, costs) == plan

    def test_not_without_what_it_is_made_of(self, derived):
        joint, costs, _, record = derived
        with pytest.raises(PlanMismatchError, match=r"got no stand-ins of \['mm'\]"):
            replay_plan(edited(record, "mm"), joint, costs)

    def test_an_exact_use_reads_no_stand_in(self, toy, derived):
        joint, _, _, record = derived
        tangent = joint.graph.find_nodes(op="placeholder")[2]
        (user,) = (node.name for node in tangent.users)
        rules = toy.rules(toy.Half(), keep_exact=lambda n: "asked" if n.name == user else None)
        with pytest.raises(PlanMismatchError, match="expected its exact value"):
            replay_plan(record, joint, estimate_costs(joint, rules))
