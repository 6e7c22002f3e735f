"""All passes in a row on toy rules, and that the same input gives the same result to the byte."""

import dataclasses
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from expecttest import assert_expected_inline
from torch.utils.checkpoint import CheckpointPolicy

import passes
from passes import Action, VerifierError
from passes.partition import random_nodes

aten = torch.ops.aten


def net(x, weight, scale):
    """A product with a linear use, and a relu whose backward reads a mask."""
    return torch.relu((x @ weight) * scale)


def capture_net(toy):
    return toy.capture(
        net,
        torch.randn(2, 3),
        torch.randn(3, 4, requires_grad=True),
        torch.randn(4, requires_grad=True),
        static=(1, 2),
    )


def describe(toy, outcome):
    """The plan and both graphs as text."""
    rows = [
        f"{d.node}: {d.action.value} {d.codec.name if d.codec else '-'} {d.nbytes} {d.kept_nbytes}"
        for d in outcome.plan.decisions
    ]
    graphs = [toy.text(m.graph) for m in (outcome.split.forward, outcome.split.backward)]
    return "\n\n".join(["\n".join(rows), *graphs])


def test_from_the_joint_graph_to_forward_and_backward(toy):
    joint = capture_net(toy)
    with toy.untouched(joint.module):
        outcome = passes.run(joint, toy.rules(toy.Signed()), passes.at_price(0.0), None)
    assert_expected_inline(
        describe(toy, outcome),
        """\
primals_1: keep - 0 0
primals_3: keep - 0 0
t: recompute - 24 0
mm: sketch signed 32 16
le: pack pairs 8 4
scalar_tensor: recompute - 4 0

%primals_1: f32[2,3]
%primals_2: f32[3,4]
%primals_3: f32[4]
%randint: i64[1] = aten.randint.low(0, 4611686018427387904, [1])  # save
%select: i64[] = aten.select.int(%randint, 0, 0)  # recompute
%mm: f32[2,4] = aten.mm.default(%primals_1, %primals_2)
%remainder: i64[] = aten.remainder.Scalar(%select, 2)
%mul_3: i64[] = aten.mul.Tensor(%remainder, 2)
%rsub: i64[] = aten.rsub.Scalar(%mul_3, 1)
%mul_4: f32[2,4] = aten.mul.Tensor(%mm, %rsub)
%_to_copy: f16[2,4] = aten._to_copy.default(%mul_4, dtype=f16)  # save
%mul: f32[2,4] = aten.mul.Tensor(%mm, %primals_3)
%relu: f32[2,4] = aten.relu.default(%mul)
%detach: f32[2,4] = aten.detach.default(%relu)
%detach_1: f32[2,4] = aten.detach.default(%detach)
%le: b8[2,4] = aten.le.Scalar(%detach_1, 0)
%view_1: b8[4,2] = aten.view.default(%le, [-1, 2])
%_to_copy_1: u8[4,2] = aten._to_copy.default(%view_1, dtype=u8)
%select_1: u8[4] = aten.select.int(%_to_copy_1, 1, 0)
%select_2: u8[4] = aten.select.int(%_to_copy_1, 1, 1)
%mul_5: u8[4] = aten.mul.Tensor(%select_2, 2)
%add: u8[4] = aten.add.Tensor(%select_1, %mul_5)  # save
return [%relu, %primals_1, %primals_3, %randint, %_to_copy, %add]

%primals_1: f32[2,3]
%primals_3: f32[4]
%randint: i64[1]
%_to_copy: f16[2,4]
%add: u8[4]
%tangents_1: f32[2,4]
%bitwise_and: u8[4] = aten.bitwise_and.Scalar(%add, 1)  # recompute
%rshift: u8[4] = aten.__rshift__.Scalar(%add, 1)  # recompute
%stack: u8[4,2] = aten.stack.default([%bitwise_and, %rshift], 1)  # recompute
%view_2: u8[2,4] = aten.view.default(%stack, [2, 4])  # recompute
%_to_copy_2: b8[2,4] = aten._to_copy.default(%view_2, dtype=b8)  # recompute
%scalar_tensor_1: f32[] = aten.scalar_tensor.default(0.0, dtype=f32)  # recompute
%where: f32[2,4] = aten.where.self(%_to_copy_2, %scalar_tensor_1, %tangents_1)
%_to_copy_3: f32[2,4] = aten._to_copy.default(%_to_copy, dtype=f32)  # recompute
%select: i64[] = aten.select.int(%randint, 0, 0)  # recompute
%remainder_1: i64[] = aten.remainder.Scalar(%select, 2)  # recompute
%mul_6: i64[] = aten.mul.Tensor(%remainder_1, 2)  # recompute
%rsub_1: i64[] = aten.rsub.Scalar(%mul_6, 1)  # recompute
%mul_7: f32[2,4] = aten.mul.Tensor(%_to_copy_3, %rsub_1)  # recompute
%mul_1: f32[2,4] = aten.mul.Tensor(%where, %mul_7)
%mul_2: f32[2,4] = aten.mul.Tensor(%where, %primals_3)
%sum_1: f32[1,4] = aten.sum.dim_IntList(%mul_1, [0], True)
%view: f32[4] = aten.view.default(%sum_1, [4])
%t_1: f32[3,2] = aten.t.default(%primals_1)  # recompute
%mm_1: f32[3,4] = aten.mm.default(%t_1, %mul_2)
return [None, %mm_1, %view]""",
    )


def test_gradients_are_those_of_autograd(toy):
    """The toy sketches keep half precision, in which small integers are exact."""
    outcome = passes.run(capture_net(toy), toy.rules(toy.Signed()), passes.at_price(0.0), None)
    x = torch.tensor([[1.0, -2.0, 3.0], [0.0, 1.0, 1.0]])
    weight = torch.tensor([[1.0, 0.0, -1.0, 2.0], [2.0, 1.0, 0.0, 0.0], [0.0, -1.0, 1.0, 1.0]])
    scale = torch.tensor([1.0, 2.0, -1.0, 3.0])
    grad = torch.tensor([[1.0, 2.0, 3.0, -4.0], [-1.0, 0.0, 2.0, 1.0]])
    leaves = [weight.clone().requires_grad_(), scale.clone().requires_grad_()]
    expected = net(x, *leaves)
    expected.backward(grad)
    out, *kept = outcome.split.forward(x, weight, scale)
    nothing, *gradients = outcome.split.backward(*kept, grad)
    assert torch.equal(out, expected)
    assert nothing is None
    for got, leaf in zip(gradients, leaves, strict=True):
        assert torch.equal(got, leaf.grad)


def test_a_seed_that_the_decode_reads_directly_is_kept_whole(toy):
    """To torch a lone seed weighs as much as the tensor of all seeds it was taken from."""

    class Direct(toy.Signed):
        def decode(self, parts, seed, size, dtype, dim_order):
            # cumsum is no pointwise op, so that torch would rather save what it reads
            return super().decode(parts, seed.cumsum(0), size, dtype, dim_order)

    outcome = passes.run(capture_net(toy), toy.rules(Direct()), passes.at_price(0.0), None)
    assert "randint" in [node.name for node in outcome.split.kept_nodes()]
    assert random_nodes(outcome.split.backward.graph) == []


def test_lowerings_reach_both_graphs(toy):
    rules = toy.rules(
        toy.Half(), lowerings={aten.relu.default: lambda x: torch.where(x > 0, x, 0.0)}
    )
    split = passes.run(capture_net(toy), rules, passes.at_price(0.0), None).split
    for module in (split.forward, split.backward):
        assert not module.graph.find_nodes(op="call_function", target=aten.relu.default)


def test_the_noise_price_reaches_the_plan(toy):
    free = passes.run(capture_net(toy), toy.rules(toy.Coin()), passes.at_price(0.0), None)
    dear = passes.run(capture_net(toy), toy.rules(toy.Coin()), passes.at_price(1e6), None)
    assert free.plan.counts()["sketch"] == 1
    assert "sketch" not in dear.plan.counts()
    assert (free.plan.noise_price, dear.plan.noise_price) == (0.0, 1e6)


def test_the_seed_offset_reaches_the_graph(toy):
    outcome = passes.run(
        capture_net(toy), toy.rules(toy.Signed()), passes.at_price(0.0), None, seed_offset=5
    )
    (draw,) = random_nodes(outcome.split.forward.graph)
    assert [user.args[1] for user in draw.users] == [5]


def test_expanded_seeds_reach_the_backward(toy):
    rules = toy.rules(toy.Signed(), expand_seeds=lambda seeds: torch.stack([seeds, seeds], 1)[:, 1])
    split = passes.run(capture_net(toy), rules, passes.at_price(0.0), None).split
    kept = [node for node in split.kept_nodes() if node.meta["val"].dtype == torch.int64]
    assert [node.target for node in kept] == [aten.select.int]


def test_arguments_of_the_partitioner_are_passed_through(toy):
    with pytest.raises(TypeError, match="no_such_argument"):
        passes.run(capture_net(toy), toy.rules(), passes.at_price(0.0), None, no_such_argument=1)


@pytest.mark.parametrize(
    ("policy", "action"),
    [
        (None, Action.SKETCH),
        (CheckpointPolicy.MUST_RECOMPUTE, Action.RECOMPUTE),
        (CheckpointPolicy.PREFER_RECOMPUTE, Action.RECOMPUTE),
        (CheckpointPolicy.PREFER_SAVE, Action.SKETCH),
        (CheckpointPolicy.MUST_SAVE, Action.SKETCH),
    ],
)
def test_the_users_checkpoint_regions_are_recomputed(toy, policy, action):
    joint = capture_net(toy)
    for node in joint.graph.nodes:
        if node.name in ("mm", "mul") and policy is not None:
            node.meta["recompute"] = policy
    plan = passes.run(joint, toy.rules(toy.Signed()), passes.at_price(0.0), None).plan
    assert {d.node: d.action for d in plan.decisions}["mm"] is action


def test_a_value_between_two_checkpoint_regions_is_kept(toy):
    """As torch's own partitioner does (``cleanup_recompute_tags``, 2.13)."""
    joint = toy.capture(
        lambda x, w: torch.sin(torch.sin(x @ w)),
        torch.randn(2, 3),
        torch.randn(3, 4, requires_grad=True),
    )
    for region, name in enumerate(("sin", "sin_1")):
        (node,) = (node for node in joint.graph.nodes if node.name == name)
        node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        node.meta["ac_graph_id"] = region
    plan = passes.run(joint, toy.rules(), passes.at_price(0.0), None).plan
    assert {d.node: d.action for d in plan.decisions}["sin"] is Action.KEEP


def test_a_random_op_with_several_results_in_a_checkpoint_region_is_kept(toy):
    joint = toy.capture(
        lambda x, w: torch.nn.functional.dropout(x @ w, 0.5) ** 2,
        torch.randn(2, 3),
        torch.randn(3, 4, requires_grad=True),
    )
    assert joint.graph.find_nodes(op="call_function", target=aten.native_dropout.default)
    for node in joint.graph.nodes:
        if node not in joint.backward_nodes() and node.op == "call_function":
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    split = passes.run(joint, toy.rules(), passes.at_price(0.0), None).split
    assert random_nodes(split.backward.graph) == []


def test_an_exposure_that_breaks_a_promise_is_named(toy):
    rules = toy.rules(exposures={aten.mm.default: lambda a, b: torch.mm(a, b).to(torch.float64)})
    with pytest.raises(
        VerifierError, match=r"after pass 'expose': output 0 \(mm\): expected .*32.*got .*64"
    ):
        passes.run(
            toy.capture(torch.mm, torch.randn(2, 2, requires_grad=True), torch.randn(2, 2)),
            rules, passes.at_price(0.0), None,
        )  # fmt: skip


def deep(x, *weights):
    """Layers with a residual path, so that the plan has ties and joins to get wrong."""
    # Two linear uses, of which the second's value is derived from the first's.
    product, factor = x @ weights[0], weights[1][:2]
    apart = product * factor + torch.neg(product) * torch.sin(factor)
    for weight in weights:
        x = x + torch.relu((x @ weight) * x)
    return x, apart


def plan_deep(toy):
    weights = [torch.randn(4, 4, requires_grad=True) for _ in range(4)]
    joint = toy.capture(deep, torch.randn(2, 4), *weights, static=range(1, 5))
    return describe(
        toy, passes.run(joint, toy.rules(toy.Signed(), toy.Coin()), passes.at_price(1e-3), None)
    )


def test_the_same_graph_gives_the_same_plan_and_text(toy):
    assert plan_deep(toy) == plan_deep(toy)


def test_another_process_with_another_hash_seed_gives_the_same_plan_and_text(toy):
    here = plan_deep(toy)
    assert all(f": {action.value} " in here for action in Action)
    hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=Path(passes.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == here + "\n"


if __name__ == "__main__":
    # run as a script by the test above: only what is printed counts
    sys.path.insert(0, os.getcwd())
    print(plan_deep(runpy.run_path(str(Path(__file__).with_name("conftest.py")))["laboratory"]()))


def test_costs_can_be_adjusted_before_the_plan_is_made(toy):
    joint = capture_net(toy)
    seen = []

    def without_codecs(exposed, costs):
        seen.append(exposed)
        rows = (dataclasses.replace(value, codecs=()) for value in costs.values)
        return passes.CostTable(tuple(rows))

    adjusted = passes.run(
        joint, toy.rules(toy.Signed()), passes.at_price(0.0), None, adjust_costs=without_codecs
    )
    plain = passes.run(joint, toy.rules(toy.Signed()), passes.at_price(0.0), None)
    assert seen == [adjusted.exposed]
    assert Action.SKETCH.value in plain.plan.counts()
    assert Action.SKETCH.value not in adjusted.plan.counts()
