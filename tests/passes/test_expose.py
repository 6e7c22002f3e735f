"""Linear uses and masks made visible, with the numbers kept."""

import pytest
import torch
from expecttest import assert_expected_inline
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointPolicy

from passes.expose import expose

aten = torch.ops.aten


def relu_net(x, weight, scale):
    return torch.relu(x @ weight) * scale


def captured(toy):
    return toy.capture(
        relu_net,
        torch.randn(2, 3),
        torch.randn(3, 4, requires_grad=True),
        torch.randn(4, requires_grad=True),
        static=(1, 2),
    )


def test_the_mask_of_relu_becomes_visible_and_the_input_is_untouched(toy):
    joint = captured(toy)
    with toy.untouched(joint.module):
        exposed = expose(joint, toy.rules().exposures, {})
    assert_expected_inline(
        toy.text(joint.graph),
        """\
%primals_1: f32[2,3]
%primals_2: f32[3,4]
%primals_3: f32[4]
%tangents_1: f32[2,4]
%mm: f32[2,4] = aten.mm.default(%primals_1, %primals_2)
%relu: f32[2,4] = aten.relu.default(%mm)
%detach: f32[2,4] = aten.detach.default(%relu)
%mul: f32[2,4] = aten.mul.Tensor(%relu, %primals_3)
%mul_1: f32[2,4] = aten.mul.Tensor(%tangents_1, %relu)
%mul_2: f32[2,4] = aten.mul.Tensor(%tangents_1, %primals_3)
%sum_1: f32[1,4] = aten.sum.dim_IntList(%mul_1, [0], True)
%view: f32[4] = aten.view.default(%sum_1, [4])
%detach_1: f32[2,4] = aten.detach.default(%detach)
%threshold_backward: f32[2,4] = aten.threshold_backward.default(%mul_2, %detach_1, 0)
%t: f32[3,2] = aten.t.default(%primals_1)
%mm_1: f32[3,4] = aten.mm.default(%t, %threshold_backward)
return [%mul, None, %mm_1, %view]""",
    )
    assert_expected_inline(
        toy.text(exposed.graph),
        """\
%primals_1: f32[2,3]
%primals_2: f32[3,4]
%primals_3: f32[4]
%tangents_1: f32[2,4]
%scalar_tensor: f32[] = aten.scalar_tensor.default(0.0, dtype=f32)
%t: f32[3,2] = aten.t.default(%primals_1)
%mm: f32[2,4] = aten.mm.default(%primals_1, %primals_2)
%relu: f32[2,4] = aten.relu.default(%mm)
%detach: f32[2,4] = aten.detach.default(%relu)
%detach_1: f32[2,4] = aten.detach.default(%detach)
%le: b8[2,4] = aten.le.Scalar(%detach_1, 0)
%mul: f32[2,4] = aten.mul.Tensor(%relu, %primals_3)
%mul_1: f32[2,4] = aten.mul.Tensor(%tangents_1, %relu)
%mul_2: f32[2,4] = aten.mul.Tensor(%tangents_1, %primals_3)
%sum_1: f32[1,4] = aten.sum.dim_IntList(%mul_1, [0], True)
%view: f32[4] = aten.view.default(%sum_1, [4])
%where: f32[2,4] = aten.where.self(%le, %scalar_tensor, %mul_2)
%mm_1: f32[3,4] = aten.mm.default(%t, %where)
return [%mul, None, %mm_1, %view]""",
    )
    assert (exposed.num_fwd_outputs, exposed.static_input_indices) == (1, (1, 2))


def test_numbers_are_kept(toy):
    joint = captured(toy)
    exposed = expose(joint, toy.rules().exposures, {})
    inputs = [torch.randn(2, 3), torch.randn(3, 4), torch.randn(4), torch.randn(2, 4)]
    expected = pytree.tree_leaves(torch.fx.Interpreter(joint.module).run(*inputs))
    got = pytree.tree_leaves(torch.fx.Interpreter(exposed.module).run(*inputs))
    assert [output is None for output in expected] == [False, True, False, False]
    assert got[1] is None
    for i in (0, 2, 3):
        assert torch.equal(got[i], expected[i])


def test_names_of_the_nodes_that_stay_are_kept(toy):
    joint = captured(toy)
    exposed = expose(joint, toy.rules().exposures, {})
    before = {n.name for n in joint.graph.nodes}
    after = {n.name for n in exposed.graph.nodes}
    assert before - after == {"threshold_backward"}
    assert after - before == {"le", "scalar_tensor", "where"}


def test_forward_values_written_among_backward_ones_move_up_to_their_inputs(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    first = b.call(aten.sin.default, x)
    second = b.call(aten.cos.default, first)
    third = b.call(aten.exp.default, second)
    scaled = b.call(aten.mul.Tensor, grad, second)
    mask = b.call(aten.gt.Scalar, first, 0)
    turned = b.call(aten.logical_not.default, mask)
    of_input = b.call(aten.lt.Scalar, x, 0)
    kept = b.call(aten.logical_and.default, turned, of_input)
    joint = b.joint([third], [b.call(aten.where.ScalarOther, kept, scaled, 0.0)])
    with toy.untouched(joint.module):
        exposed = expose(joint, {}, {})
    order = [node.name for node in exposed.graph.nodes]
    assert order == [
        "primals_1", "tangents_1", "lt", "sin", "gt", "logical_not", "logical_and", "cos", "exp",
        "mul", "where", "output",
    ]  # fmt: skip


def test_equal_calls_are_merged_and_what_nobody_reads_is_dropped(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2), b.input("tangents_1", 2)
    y = b.call(aten.sin.default, x)
    b.call(aten.exp.default, x)
    again = b.call(aten.sin.default, x)
    joint = b.joint([y], [b.call(aten.mul.Tensor, grad, again)])
    with toy.untouched(joint.module):
        exposed = expose(joint, {}, {})
    assert_expected_inline(
        toy.text(exposed.graph),
        """\
%primals_1: f32[2]
%tangents_1: f32[2]
%sin: f32[2] = aten.sin.default(%primals_1)
%sin_1: f32[2] = aten.sin.default(%primals_1)
%mul: f32[2] = aten.mul.Tensor(%tangents_1, %sin_1)
return [%sin, %mul]""",
    )


def test_a_random_call_that_nobody_reads_stays_for_the_sake_of_the_stream(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2)
    b.call(aten.rand_like.default, x)
    exposed = expose(b.joint([x], []), {}, {})
    assert [n.name for n in exposed.graph.nodes] == ["primals_1", "rand_like", "output"]


def concatenated(toy, *, dim=-1, dtype=torch.float32, recompute=None):
    b = toy.Builder()
    x, y = (b.input(f"primals_{i}", 2, 2) for i in (1, 2))
    z = b.input("primals_3", 2, 4)
    w = b.input("primals_4", 2, 4, dtype=dtype)
    inner = b.call(aten.cat.default, [x, y], 1)
    outer = b.call(aten.cat.default, [inner, z, b.call(aten.cat.default, [w])], dim)
    if recompute is not None:
        inner.meta["recompute"] = recompute
    return b.joint([outer, b.call(aten.sin.default, inner)], [None] * 4)


def parts_of_the_larger(toy, joint):
    exposed = expose(joint, toy.rules().exposures, {})
    outer, _ = exposed.outputs[:2]
    return [part.name for part in outer.args[0]]


def test_a_concatenation_reads_the_parts_of_those_it_joins_and_they_stay(toy):
    joint = concatenated(toy)
    with toy.untouched(joint.module):
        exposed = expose(joint, toy.rules().exposures, {})
    assert_expected_inline(
        toy.text(exposed.graph),
        """\
%primals_1: f32[2,2]
%primals_2: f32[2,2]
%primals_3: f32[2,4]
%primals_4: f32[2,4]
%cat: f32[2,4] = aten.cat.default([%primals_1, %primals_2], 1)
%cat_1: f32[2,4] = aten.cat.default([%primals_4])
%cat_2: f32[2,12] = aten.cat.default([%primals_1, %primals_2, %primals_3, %cat_1], -1)
%sin: f32[2,4] = aten.sin.default(%cat)
return [%cat_2, %sin, None, None, None, None]""",
    )


@pytest.mark.parametrize(
    "changes",
    [{"dim": 0}, {"dtype": torch.float64}, {"recompute": CheckpointPolicy.MUST_RECOMPUTE}],
)
def test_a_concatenation_is_kept_where_its_parts_would_give_another_value(toy, changes):
    parts = parts_of_the_larger(toy, concatenated(toy, **changes))
    assert "cat" in parts
