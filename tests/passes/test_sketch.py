"""A plan carried out: text in, text out, and the numbers that come of it."""

import operator

import pytest
import torch
from expecttest import assert_expected_inline

from passes import Action, Decision, Plan
from passes.derive import Derivation
from passes.joint import memory_order
from passes.rules import Wait
from passes.sketch import apply_plan
from passes.verify import verify_planned

aten = torch.ops.aten


def plan_of(*decisions):
    """A plan from (node, action) or (node, action, codec); bytes and noise are not read."""
    rows = [(name, action, codec[0] if codec else None) for name, action, *codec in decisions]
    return Plan(tuple(Decision(*row, 0, 0, 0.0) for row in rows), 0.0)


def run(joint, *inputs):
    return torch.fx.Interpreter(joint.module).run(*inputs)


def calls(graph, target):
    return list(graph.find_nodes(op="call_function", target=target))


def tags(graph):
    return {n.name: n.meta["recompute"].name for n in graph.nodes if "recompute" in n.meta}


@pytest.fixture
def net(toy):
    """The function (x @ w) * v with the gradient of v; the product is the activation."""
    b = toy.Builder()
    x, w, v = b.input("primals_1", 2, 3), b.input("primals_2", 3, 4), b.input("primals_3", 2, 4)
    grad = b.input("tangents_1", 2, 4)
    h = b.call(aten.mm.default, x, w)
    y = b.call(aten.mul.Tensor, h, v)
    return b.joint([y], [None, None, b.call(aten.mul.Tensor, grad, h)], static=(1, 2))


@pytest.fixture
def branches(toy):
    """Two activations with linear uses, of which one has two, and a mask with two uses."""
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    first, second = b.call(aten.sin.default, x), b.call(aten.cos.default, x)
    mask = b.call(aten.gt.Scalar, x, 0)
    total = b.call(aten.add.Tensor, first, second)
    masked = b.call(aten.where.ScalarOther, mask, grad, 0.0)
    again = b.call(aten.where.ScalarOther, mask, masked, 1.0)
    products = [b.call(aten.mul.Tensor, again, v) for v in (first, second, first)]
    return b.joint([total], products)


def test_a_sketched_value_is_encoded_behind_it_and_decoded_before_its_reader(toy, net):
    with toy.untouched(net.module):
        planned = apply_plan(net, plan_of(("mm", Action.SKETCH, toy.Half())))
    assert_expected_inline(
        toy.text(net.graph),
        """\
%primals_1: f32[2,3]
%primals_2: f32[3,4]
%primals_3: f32[2,4]
%tangents_1: f32[2,4]
%mm: f32[2,4] = aten.mm.default(%primals_1, %primals_2)
%mul: f32[2,4] = aten.mul.Tensor(%mm, %primals_3)
%mul_1: f32[2,4] = aten.mul.Tensor(%tangents_1, %mm)
return [%mul, None, None, %mul_1]""",
    )
    assert_expected_inline(
        toy.text(planned.graph),
        """\
%primals_1: f32[2,3]
%primals_2: f32[3,4]
%primals_3: f32[2,4]
%tangents_1: f32[2,4]
%mm: f32[2,4] = aten.mm.default(%primals_1, %primals_2)
%_to_copy: f16[2,4] = aten._to_copy.default(%mm, dtype=f16)  # save
%mul: f32[2,4] = aten.mul.Tensor(%mm, %primals_3)
%_to_copy_1: f32[2,4] = aten._to_copy.default(%_to_copy, dtype=f32)  # recompute
%mul_1: f32[2,4] = aten.mul.Tensor(%tangents_1, %_to_copy_1)
return [%mul, None, None, %mul_1]""",
    )
    assert (planned.num_fwd_outputs, planned.static_input_indices) == (1, (1, 2))


def test_a_seed_is_drawn_first_and_read_by_encode_and_decode(toy, net):
    planned = apply_plan(net, plan_of(("mm", Action.SKETCH, toy.Signed())))
    assert_expected_inline(
        toy.text(planned.graph),
        """\
%primals_1: f32[2,3]
%primals_2: f32[3,4]
%primals_3: f32[2,4]
%tangents_1: f32[2,4]
%randint: i64[1] = aten.randint.low(0, 4611686018427387904, [1])  # save
%select: i64[] = aten.select.int(%randint, 0, 0)  # recompute
%mm: f32[2,4] = aten.mm.default(%primals_1, %primals_2)
%remainder: i64[] = aten.remainder.Scalar(%select, 2)
%mul_2: i64[] = aten.mul.Tensor(%remainder, 2)
%rsub: i64[] = aten.rsub.Scalar(%mul_2, 1)
%mul_3: f32[2,4] = aten.mul.Tensor(%mm, %rsub)
%_to_copy: f16[2,4] = aten._to_copy.default(%mul_3, dtype=f16)  # save
%mul: f32[2,4] = aten.mul.Tensor(%mm, %primals_3)
%_to_copy_1: f32[2,4] = aten._to_copy.default(%_to_copy, dtype=f32)  # recompute
%remainder_1: i64[] = aten.remainder.Scalar(%select, 2)  # recompute
%mul_4: i64[] = aten.mul.Tensor(%remainder_1, 2)  # recompute
%rsub_1: i64[] = aten.rsub.Scalar(%mul_4, 1)  # recompute
%mul_5: f32[2,4] = aten.mul.Tensor(%_to_copy_1, %rsub_1)  # recompute
%mul_1: f32[2,4] = aten.mul.Tensor(%tangents_1, %mul_5)
return [%mul, None, None, %mul_1]""",
    )


def test_an_input_of_the_graph_is_encoded_past_all_inputs_and_its_seed(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    y = b.call(aten.neg.default, x)
    joint = b.joint([y], [b.call(aten.mul.Tensor, grad, x)])
    planned = apply_plan(joint, plan_of(("primals_1", Action.SKETCH, toy.Signed())))
    assert [n.name for n in planned.graph.nodes][:4] == [
        "primals_1", "tangents_1", "randint", "select",
    ]  # fmt: skip
    x = torch.ones(2, 4)
    assert torch.equal(run(planned, x, 3 * x)[1], 3 * x)


def test_the_forward_is_exact_and_the_decoded_gradient_unbiased(toy, net):
    planned = apply_plan(net, plan_of(("mm", Action.SKETCH, toy.Coin())))
    inputs = [torch.randn(size) for size in ((2, 3), (3, 4), (2, 4), (2, 4))]
    exact_y, _, _, exact_grad = run(net, *inputs)
    # Every draw doubles the even or the odd columns and drops the others.
    even = exact_grad * torch.tensor([2.0, 0.0, 2.0, 0.0])
    odd = exact_grad * torch.tensor([0.0, 2.0, 0.0, 2.0])
    kinds = set()
    for _ in range(30):
        y, _, _, grad = run(planned, *inputs)
        assert torch.equal(y, exact_y)
        kinds.add((torch.equal(grad, even), torch.equal(grad, odd)))
    # Thirty draws of one kind have the probability 2**-29.
    assert kinds == {(True, False), (False, True)}


def test_one_draw_for_all_sites_and_one_select_for_each(toy, branches):
    names = (("sin", Action.SKETCH, toy.Signed()), ("cos", Action.SKETCH, toy.Coin()))
    planned = apply_plan(branches, plan_of(*names))
    (draw,) = calls(planned.graph, aten.randint.low)
    assert draw.args == (0, 2**62, [2])
    assert [(user.target, user.args) for user in draw.users] == [
        (aten.select.int, (draw, 0, 0)),
        (aten.select.int, (draw, 0, 1)),
    ]
    assert draw.meta["val"].dtype == torch.int64


def test_expanded_seeds_are_what_is_kept_and_what_codecs_read(toy, branches):
    sites = (("sin", Action.SKETCH, toy.Signed()), ("cos", Action.SKETCH, toy.Signed()))
    planned = apply_plan(
        branches, plan_of(*sites), expand_seeds=lambda seeds: torch.bitwise_right_shift(seeds, 7)
    )
    (draw,) = calls(planned.graph, aten.randint.low)
    (expanded,) = draw.users
    assert str(expanded.target) == "aten.bitwise_right_shift.Tensor_Scalar"
    assert [user.args for user in expanded.users] == [(expanded, 0, 0), (expanded, 0, 1)]
    assert tags(planned.graph).keys() >= {expanded.name}
    assert draw.name not in tags(planned.graph)


def test_sites_draw_seeds_of_their_own(toy, branches):
    names = (("sin", Action.SKETCH, toy.Coin()), ("cos", Action.SKETCH, toy.Coin()))
    planned = apply_plan(branches, plan_of(*names))
    kept = set()
    for _ in range(60):
        _, first, second, _ = run(planned, torch.ones(2, 4), torch.ones(2, 4))
        kept.add((bool(first[0, 0]), bool(second[0, 0])))
    # One of the four pairs missing from sixty draws: probability below 4 * 0.75**60 = 2e-7.
    assert len(kept) == 4


def test_a_codec_without_randomness_takes_no_seed(toy, branches):
    sketched = ("sin", Action.SKETCH, toy.Half()), ("cos", Action.SKETCH, toy.Signed())
    packed = ("gt", Action.PACK, toy.Pairs())
    one_seed = apply_plan(branches, plan_of(*sketched, packed))
    assert [draw.args[2] for draw in calls(one_seed.graph, aten.randint.low)] == [[1]]
    no_seed = apply_plan(branches, plan_of(sketched[0], packed))
    assert calls(no_seed.graph, aten.randint.low) == []


def test_each_device_draws_its_own_seeds(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    there = b.call(aten._to_copy.default, x, device=torch.device("meta"))
    back = b.call(
        aten._to_copy.default, b.call(aten.sin.default, there), device=torch.device("cpu")
    )
    joint = b.joint([back], [b.call(aten.mul.Tensor, grad, x)])
    sketched = [(name, Action.SKETCH, toy.Signed()) for name in ("primals_1", "sin")]
    planned = apply_plan(joint, plan_of(*sketched))
    devices = [draw.meta["val"].device.type for draw in calls(planned.graph, aten.randint.low)]
    assert devices == ["cpu", "meta"]


def test_a_decode_is_placed_once_before_its_first_reader(toy, branches):
    planned = apply_plan(branches, plan_of(("sin", Action.SKETCH, toy.Half())))
    order = {node: i for i, node in enumerate(planned.graph.nodes)}
    (decode,) = [
        node for node in calls(planned.graph, aten._to_copy.default)
        if node.meta["val"].dtype == torch.float32
    ]  # fmt: skip
    readers = [user.name for user in decode.users]
    assert readers == ["mul", "mul_2"]
    assert next(n for n in planned.graph.nodes if order[n] == order[decode] + 1).name == "mul"


def test_the_backward_reads_unpacked_masks_and_so_do_its_clones(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    mask = b.call(aten.gt.Scalar, x, 0)
    kept = b.call(aten.where.ScalarOther, mask, x, 0.0)
    joint = b.joint(
        [kept, mask],
        [b.call(aten.mul.Tensor, b.call(aten.where.ScalarOther, mask, grad, 0.0), kept)],
    )
    decisions = (
        ("primals_1", Action.KEEP),
        ("gt", Action.PACK, toy.Pairs()),
        ("where", Action.RECOMPUTE),
    )
    with toy.untouched(joint.module):
        planned = apply_plan(joint, plan_of(*decisions))
    assert_expected_inline(
        toy.text(planned.graph),
        """\
%primals_1: f32[2,4]
%tangents_1: f32[2,4]
%gt: b8[2,4] = aten.gt.Scalar(%primals_1, 0)
%view: b8[4,2] = aten.view.default(%gt, [-1, 2])
%_to_copy: u8[4,2] = aten._to_copy.default(%view, dtype=u8)
%select: u8[4] = aten.select.int(%_to_copy, 1, 0)
%select_1: u8[4] = aten.select.int(%_to_copy, 1, 1)
%mul_1: u8[4] = aten.mul.Tensor(%select_1, 2)
%add: u8[4] = aten.add.Tensor(%select, %mul_1)  # save
%where: f32[2,4] = aten.where.ScalarOther(%gt, %primals_1, 0.0)
%bitwise_and: u8[4] = aten.bitwise_and.Scalar(%add, 1)  # recompute
%rshift: u8[4] = aten.__rshift__.Scalar(%add, 1)  # recompute
%stack: u8[4,2] = aten.stack.default([%bitwise_and, %rshift], 1)  # recompute
%view_1: u8[2,4] = aten.view.default(%stack, [2, 4])  # recompute
%_to_copy_1: b8[2,4] = aten._to_copy.default(%view_1, dtype=b8)  # recompute
%where_1: f32[2,4] = aten.where.ScalarOther(%_to_copy_1, %tangents_1, 0.0)
%where_2: f32[2,4] = aten.where.ScalarOther(%_to_copy_1, %primals_1, 0.0)  # recompute
%mul: f32[2,4] = aten.mul.Tensor(%where_1, %where_2)
return [%where, %gt, %mul]""",
    )
    inputs = torch.randn(2, 4), torch.randn(2, 4)
    for got, expected in zip(run(planned, *inputs), run(joint, *inputs), strict=True):
        assert torch.equal(got, expected)


def test_a_chain_is_recomputed_in_order_from_what_is_kept(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    first = b.call(aten.sin.default, x)
    pair = b.call(aten.split.Tensor, first, 2, 1)
    half = b.call(operator.getitem, pair, 1)
    joint = b.joint(
        [half], [b.call(aten.mul.Tensor, b.call(aten.cat.default, [half, half], 1), grad)]
    )
    chain = [(name, Action.RECOMPUTE) for name in ("sin", "split", "getitem", "cat")]
    planned = apply_plan(joint, plan_of(("primals_1", Action.KEEP), *chain))
    assert_expected_inline(
        toy.text(planned.graph),
        """\
%primals_1: f32[2,4]
%tangents_1: f32[2,4]
%sin: f32[2,4] = aten.sin.default(%primals_1)
%split: tuple = aten.split.Tensor(%sin, 2, 1)
%getitem: f32[2,2] = getitem(%split, 1)
%sin_1: f32[2,4] = aten.sin.default(%primals_1)  # recompute
%split_1: tuple = aten.split.Tensor(%sin_1, 2, 1)  # recompute
%getitem_1: f32[2,2] = getitem(%split_1, 1)  # recompute
%cat_1: f32[2,4] = aten.cat.default([%getitem_1, %getitem_1], 1)  # recompute
%mul: f32[2,4] = aten.mul.Tensor(%cat_1, %tangents_1)
return [%getitem, %mul]""",
    )


def test_kept_values_are_tagged_and_inputs_and_sizes_are_not(toy):
    b = toy.Builder(dynamic=True)
    x, grad = b.input("primals_1", "n", 4), b.input("tangents_1", "n", 4)
    h = b.call(aten.mm.default, x, b.input("primals_2", 4, 4))
    size = b.call(aten.sym_size.int, h, 0)
    scaled = b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, grad, h), size)
    joint = b.joint([h], [b.call(aten.mul.Tensor, scaled, x), None])
    kept = [(name, Action.KEEP) for name in ("primals_1", "mm", "sym_size")]
    assert tags(apply_plan(joint, plan_of(*kept)).graph) == {"mm": "MUST_SAVE"}


def test_every_part_of_a_sketch_is_kept(toy, net):
    class Columns(toy.Half):
        def encode(self, x, seed, dim_order):
            del seed, dim_order
            return x[:, :2].clone(), x[:, 2:].clone()

        def decode(self, parts, seed, size, dtype, dim_order):
            del seed, size, dtype, dim_order
            return torch.cat(parts, 1)

    planned = apply_plan(net, plan_of(("mm", Action.SKETCH, Columns())))
    assert tags(planned.graph) == {
        "clone": "MUST_SAVE", "clone_1": "MUST_SAVE", "cat": "MUST_RECOMPUTE",
    }  # fmt: skip


def test_the_users_own_tags_give_way_to_the_plan(toy, net):
    for node in net.graph.nodes:
        node.meta["recompute"] = torch.utils.checkpoint.CheckpointPolicy.MUST_RECOMPUTE
    with toy.untouched(net.module):
        planned = apply_plan(net, plan_of(("mm", Action.KEEP)))
    assert tags(planned.graph) == {"mm": "MUST_SAVE"}


def test_a_gradient_that_is_a_forward_value_is_replaced_and_the_output_is_not(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 4)
    b.input("tangents_1", 2, 4)
    turned, mask = b.call(aten.t.default, x), b.call(aten.gt.Scalar, x, 0)
    joint = b.joint([turned, mask, x], [turned, mask, x])
    decisions = ("t", Action.RECOMPUTE), ("gt", Action.PACK, toy.Pairs())
    planned = apply_plan(joint, plan_of(("primals_1", Action.KEEP), *decisions))
    assert_expected_inline(
        toy.text(planned.graph),
        """\
%primals_1: f32[2,4]
%tangents_1: f32[2,4]
%t: f32[4,2] = aten.t.default(%primals_1)
%gt: b8[2,4] = aten.gt.Scalar(%primals_1, 0)
%view: b8[4,2] = aten.view.default(%gt, [-1, 2])
%_to_copy: u8[4,2] = aten._to_copy.default(%view, dtype=u8)
%select: u8[4] = aten.select.int(%_to_copy, 1, 0)
%select_1: u8[4] = aten.select.int(%_to_copy, 1, 1)
%mul: u8[4] = aten.mul.Tensor(%select_1, 2)
%add: u8[4] = aten.add.Tensor(%select, %mul)  # save
%t_1: f32[4,2] = aten.t.default(%primals_1)  # recompute
%bitwise_and: u8[4] = aten.bitwise_and.Scalar(%add, 1)  # recompute
%rshift: u8[4] = aten.__rshift__.Scalar(%add, 1)  # recompute
%stack: u8[4,2] = aten.stack.default([%bitwise_and, %rshift], 1)  # recompute
%view_1: u8[2,4] = aten.view.default(%stack, [2, 4])  # recompute
%_to_copy_1: b8[2,4] = aten._to_copy.default(%view_1, dtype=b8)  # recompute
return [%t, %gt, %primals_1, %t_1, %_to_copy_1, %primals_1]""",
    )


def test_what_only_the_backward_needed_leaves_the_forward(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    joint = b.joint([x], [b.call(aten.mul.Tensor, grad, b.call(aten.sin.default, x))])
    planned = apply_plan(joint, plan_of(("primals_1", Action.KEEP), ("sin", Action.RECOMPUTE)))
    assert [(n.args[0].name, n.name) for n in calls(planned.graph, aten.sin.default)] == [
        ("primals_1", "sin_1")
    ]


def test_provenance_of_sketch_nodes_is_that_of_the_value(toy, net):
    (mm,) = calls(net.graph, aten.mm.default)
    mm.meta["stack_trace"] = "the line of mm"
    planned = apply_plan(net, plan_of(("mm", Action.SKETCH, toy.Signed())))
    own = {"primals_1", "primals_2", "primals_3", "tangents_1", "mul", "mul_1", "output"}
    new = [n for n in planned.graph.nodes if n.name not in own]
    assert len(new) > 5
    assert {n.meta.get("stack_trace") for n in new} == {"the line of mm"}


class Witness:
    """Keeps the value as it is, and notes in which order it was told to read it."""

    needs_seed = False

    def __init__(self):
        self.orders = []

    def encode(self, x, seed, dim_order):
        del seed
        self.orders.append(dim_order)
        return (x.clone(),)

    def decode(self, parts, seed, size, dtype, dim_order):
        del seed, size, dtype
        self.orders.append(dim_order)
        return parts[0].clone()


def test_codecs_are_told_the_order_in_memory(net):
    (mm,) = calls(net.graph, aten.mm.default)
    mm.meta["val"] = mm.meta["val"].t().contiguous().t()
    codec = Witness()
    apply_plan(net, plan_of(("mm", Action.SKETCH, codec)))
    assert codec.orders == [(1, 0), (1, 0)]


@pytest.mark.parametrize(("channels_last", "order"), [(False, (0, 1, 2, 3)), (True, (0, 2, 3, 1))])
def test_an_inner_compiler_that_prefers_channels_last_has_its_way(toy, channels_last, order):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 3, 4, 5), b.input("tangents_1", 2, 3, 4, 5)
    y = b.call(aten.sin.default, x)
    joint = b.joint([y], [b.call(aten.mul.Tensor, grad, y)])
    codec = Witness()
    plan = plan_of(("sin", Action.SKETCH, codec))
    apply_plan(joint, plan, channels_last=channels_last)
    assert codec.orders == [order, order]
    assert memory_order(torch.empty(2, 3, 4).mT, channels_last) == (0, 2, 1)


@pytest.mark.parametrize(
    ("val", "order"),
    [
        (torch.empty(2, 3, 4, 5), (0, 1, 2, 3)),
        (torch.empty(2, 3, 4, 5, memory_format=torch.channels_last), (0, 2, 3, 1)),
        (torch.empty(3, 4).t(), (1, 0)),
        (torch.empty(4, 1).expand(4, 3), (0, 1)),
        (torch.empty(1, 3).expand(4, 3), (1, 0)),
        (torch.empty(1, 1, 1), (0, 1, 2)),
        (torch.empty(()), ()),
    ],
)
def test_memory_order_runs_from_the_largest_stride_to_the_smallest(val, order):
    assert memory_order(val) == order


def test_memory_order_of_unknown_strides_is_the_logical_one(toy):
    b = toy.Builder(dynamic=True)
    turned = b.call(aten.t.default, b.input("primals_1", 4, "?"))
    assert memory_order(turned.meta["val"]) == (0, 1)
    hinted = b.call(aten.t.default, b.input("primals_2", 4, "n"))
    assert memory_order(hinted.meta["val"]) == (1, 0)


def test_symbolic_sizes_reach_the_decode_as_nodes(toy):
    b = toy.Builder(dynamic=True)
    x, w, grad = (
        b.input("primals_1", "n", 4),
        b.input("primals_2", 4, 4),
        b.input("tangents_1", "n", 4),
    )
    h = b.call(aten.mm.default, x, w)
    joint = b.joint([h], [None, b.call(aten.mul.Tensor, grad, h)], static=(0, 1))
    planned = apply_plan(joint, plan_of(("mm", Action.SKETCH, toy.Coin())))
    assert_expected_inline(
        toy.text(planned.graph),
        """\
%primals_1: f32[s0,4]
%primals_2: f32[4,4]
%tangents_1: f32[s0,4]
%randint: i64[1] = aten.randint.low(0, 4611686018427387904, [1])  # save
%select: i64[] = aten.select.int(%randint, 0, 0)  # recompute
%mm: f32[s0,4] = aten.mm.default(%primals_1, %primals_2)
%sym_size_int: SymInt = aten.sym_size.int(%mm, 0)
%remainder: i64[] = aten.remainder.Scalar(%select, 2)
%eq: b8[] = aten.eq.Scalar(%remainder, 0)
%slice_1: f32[s0,2] = aten.slice.Tensor(%mm, 1, 0, max, 2)
%slice_2: f32[s0,2] = aten.slice.Tensor(%mm, 1, 1, max, 2)
%where: f32[s0,2] = aten.where.self(%eq, %slice_1, %slice_2)  # save
%remainder_1: i64[] = aten.remainder.Scalar(%select, 2)  # recompute
%eq_1: b8[] = aten.eq.Scalar(%remainder_1, 0)  # recompute
%zeros_like: f32[s0,2] = aten.zeros_like.default(%where)  # recompute
%where_1: f32[s0,2] = aten.where.self(%eq_1, %where, %zeros_like)  # recompute
%sub: f32[s0,2] = aten.sub.Tensor(%where, %where_1)  # recompute
%stack: f32[s0,2,2] = aten.stack.default([%where_1, %sub], -1)  # recompute
%mul_1: f32[s0,2,2] = aten.mul.Tensor(%stack, 2)  # recompute
%view: f32[s0,4] = aten.view.default(%mul_1, [%sym_size_int, 4])  # recompute
%mul: f32[s0,4] = aten.mul.Tensor(%tangents_1, %view)
return [%mm, None, %mul]""",
    )
    for batch in (3, 5):
        inputs = torch.randn(batch, 4), torch.randn(4, 4), torch.ones(batch, 4)
        h, _, decoded = run(planned, *inputs)
        assert decoded.shape == (batch, 4)
        assert torch.equal(decoded[:, ::2] / 2, h[:, ::2]) != torch.equal(
            decoded[:, 1::2] / 2, h[:, 1::2]
        )


class Telltale:
    """Decodes to the seed itself."""

    needs_seed = True

    def encode(self, x, seed, dim_order):
        del x, dim_order
        return (seed.reshape(1).clone(),)

    def decode(self, parts, seed, size, dtype, dim_order):
        del seed, size, dtype, dim_order
        return parts[0].expand(1, 1).clone()


@pytest.mark.parametrize(
    "offset",
    [
        1,
        2**62 - 1,
        2**62,
        3 * 2**61 + 5,
        2**64 + 5,
        -3,
    ],
)
def test_the_offset_shifts_every_seed_within_the_range(toy, offset):
    b = toy.Builder()
    x = b.input("primals_1", 1, 1, dtype=torch.int64)
    grad = b.input("tangents_1", 1, 1, dtype=torch.int64)
    y = b.call(aten.neg.default, x)
    joint = b.joint([y], [b.call(aten.mul.Tensor, grad, y)])
    seeds = []
    for shift in (0, offset):
        planned = apply_plan(joint, plan_of(("neg", Action.SKETCH, Telltale())), seed_offset=shift)
        torch.manual_seed(3)
        one = torch.ones(1, 1, dtype=torch.int64)
        seeds.append([run(planned, one, one)[1].item() for _ in range(8)])
    assert len(set(seeds[0])) == 8
    assert seeds[1] == [(seed + offset) % 2**62 for seed in seeds[0]]


def test_a_decode_that_yields_no_tensor_is_a_bug_of_the_codec(toy, net):
    class Broken(toy.Half):
        def decode(self, parts, seed, size, dtype, dim_order):
            del seed, size, dtype, dim_order
            return (parts[0], parts[0])

    with pytest.raises(AssertionError, match="the stand-in for mm is no tensor"):
        apply_plan(net, plan_of(("mm", Action.SKETCH, Broken())))


@torch.library.custom_op("passes_test::wait", mutates_args=())
def wait(kept: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Stands for an op that the inner compiler does not look into."""
    del other
    return kept.clone()


@wait.register_fake
def _(kept, other):
    del other
    return torch.empty_like(kept)


WAIT = torch.ops.passes_test.wait.default


class Split:
    """Half precision in a large and a small part."""

    def __init__(self, toy):
        self.half = toy.Half()
        self.needs_seed, self.exact, self.name = False, False, "split"

    def encode(self, x, seed, dim_order):
        del seed, dim_order
        return (x.to(torch.float16), x.new_ones([1]))

    def decode(self, parts, seed, size, dtype, dim_order):
        return self.half.decode(parts[:1], seed, size, dtype, dim_order) * parts[1]


def waiting(position):
    return Wait(WAIT, {aten.mul.Tensor: position})


def test_the_small_part_of_a_sketch_waits_for_the_readers_other_argument(toy, net):
    decided = plan_of(("mm", Action.SKETCH, Split(toy)))
    planned = apply_plan(net, decided, wait=waiting(0))
    (waited,) = calls(planned.graph, WAIT)
    assert waited.args[0].target is aten.new_ones.default
    assert waited.meta["recompute"].name == "MUST_RECOMPUTE"
    scaled = next(n for n in planned.graph.nodes if waited in n.all_input_nodes)
    assert scaled.target is aten.mul.Tensor
    inputs = [torch.randn(2, 3), torch.randn(3, 4), torch.randn(2, 4), torch.randn(2, 4)]
    expected = run(apply_plan(net, decided), *inputs)
    torch.testing.assert_close(run(planned, *inputs), expected, rtol=0, atol=0, equal_nan=False)


def test_beside_a_lone_part_the_seed_waits(toy, net):
    planned = apply_plan(net, plan_of(("mm", Action.SKETCH, toy.Signed())), wait=waiting(0))
    (waited,) = calls(planned.graph, WAIT)
    assert waited.args[0].target is aten.select.int
    assert waited.users


@pytest.mark.parametrize("codec", ["Half", "Signed"])
def test_nothing_waits_for_an_argument_that_is_none_or_not_named(toy, net, codec):
    decided = plan_of(("mm", Action.SKETCH, getattr(toy, codec)()))
    others = Wait(WAIT, {aten.add.Tensor: 0})
    assert not calls(apply_plan(net, decided, wait=others).graph, WAIT)
    if codec == "Half":  # neither a second part nor a seed could wait
        assert not calls(apply_plan(net, decided, wait=waiting(0)).graph, WAIT)


@pytest.fixture
def derived(toy):
    """A graph whose backward reads twice a sine, and a plan that doubles the decoded sine."""
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 3, 4, 4), b.input("tangents_1", 2, 3, 4, 4)
    sine = b.call(aten.sin.default, x)
    double = b.call(aten.mul.Tensor, sine, 2.0)
    joint = b.joint([double], [b.call(aten.mul.Tensor, grad, double)])
    doubled = Decision("mul", Action.DERIVE, None, 0, 0, 0.0, Derivation(("sin",), ()))
    plan = Plan((*plan_of(("sin", Action.SKETCH, toy.Half())).decisions, doubled), 0.0)
    return joint, plan


def test_a_derived_value_is_laid_out_like_a_decoded_one(derived):
    """Made of a contiguous mask, it would be contiguous itself."""
    joint, plan = derived
    for channels_last in (False, True):
        planned = apply_plan(joint, plan, channels_last=channels_last)
        (read,) = [n for n in planned.outputs[1].all_input_nodes if n.name != "tangents_1"]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert read.meta["val"].is_contiguous(memory_format=layout)


def test_a_layout_that_the_inner_compiler_takes_apart_is_made_again_whole(derived):
    joint, plan = derived

    def taken_apart(x, *, memory_format):
        del memory_format
        return (x + 1) - 1

    planned = apply_plan(
        joint, plan, channels_last=True, primitives={aten.clone.default: taken_apart}
    )
    (added,) = calls(planned.graph, aten.add.Tensor)
    assert added.meta["recompute"].name == "MUST_RECOMPUTE"
    verify_planned(planned, "sketch")
