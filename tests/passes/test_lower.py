"""Inserted ops taken apart after partitioning."""

import pytest
import torch
from expecttest import assert_expected_inline
from functorch.compile import default_partition

from passes import Partition, VerifierError
from passes.joint import copy_module, output_node
from passes.lower import lower
from xconv_fx.ops.sketching import store

aten = torch.ops.aten


@pytest.fixture
def split(toy):
    """A partition whose forward and backward both call silu and logit."""
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    y = b.call(aten.silu.default, x)
    z = b.call(aten.logit.default, x)
    joint = b.joint([y, z], [b.call(aten.silu.default, b.call(aten.mul.Tensor, grad, x))])
    forward, backward = default_partition(joint.module, None, num_fwd_outputs=2)
    return Partition(forward, backward, 2)


def test_both_graphs_are_taken_apart(toy, split):
    table = {aten.silu.default: lambda x: x * torch.ops.aten.sigmoid.default(x)}
    inner_table = {aten.sigmoid.default: lambda x: 1 / (1 + torch.exp(-x))}
    lower(split, table, inner_table)
    assert_expected_inline(
        toy.text(split.forward.graph),
        """\
%primals_1: f32[2,4]
%neg: f32[2,4] = aten.neg.default(%primals_1)
%exp: f32[2,4] = aten.exp.default(%neg)
%add: f32[2,4] = aten.add.Tensor(%exp, 1)
%reciprocal: f32[2,4] = aten.reciprocal.default(%add)
%mul: f32[2,4] = aten.mul.Tensor(%reciprocal, 1)
%mul_1: f32[2,4] = aten.mul.Tensor(%primals_1, %mul)
%logit: f32[2,4] = aten.logit.default(%primals_1)
return [%mul_1, %logit, %primals_1]""",
    )
    assert_expected_inline(
        toy.text(split.backward.graph),
        """\
%primals_1: f32[2,4]
%tangents_1: f32[2,4]
%mul: f32[2,4] = aten.mul.Tensor(%tangents_1, %primals_1)
%neg: f32[2,4] = aten.neg.default(%mul)
%exp: f32[2,4] = aten.exp.default(%neg)
%add: f32[2,4] = aten.add.Tensor(%exp, 1)
%reciprocal: f32[2,4] = aten.reciprocal.default(%add)
%mul_1: f32[2,4] = aten.mul.Tensor(%reciprocal, 1)
%mul_2: f32[2,4] = aten.mul.Tensor(%mul, %mul_1)
return [%mul_2]""",
    )


def test_kept_inputs_of_a_convolution_are_copied_for_an_inner_compiler_that_would(toy):
    b = toy.Builder()
    x, w, grad = (b.input(n, 2, 2, 3, 3) for n in ("primals_1", "primals_2", "tangents_1"))
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    y = b.call(aten.convolution.default, b.call(aten.neg.default, x), w, None, *geometry)
    z = b.call(aten.convolution.default, x, w, None, *geometry)
    joint = b.joint([y, z], [None, b.call(aten.mul.Tensor, grad, w)])
    modules = default_partition(joint.module, None, num_fwd_outputs=2)
    split, copied = Partition(*modules, 2), Partition(*map(copy_module, modules), 2)
    with toy.untouched(*modules):
        lower(split, {}, {})
    lower(copied, {}, {}, channels_last=True)
    assert toy.text(copied.backward.graph) == toy.text(split.backward.graph)
    (kept,) = (n for n in copied.forward.graph.nodes if n.name == "primals_2")
    first, second = copied.forward.graph.find_nodes(
        op="call_function", target=aten.convolution.default
    )
    assert [first.args[0].name, second.args[0].name] == ["neg", "primals_1"]
    for node in (first, second):
        copy = node.args[1]
        assert copy.target is aten.clone.default
        assert copy.kwargs["memory_format"] == torch.channels_last
        assert copy is not kept
    assert output_node(copied.forward.graph).args[0][-1] is kept
    inputs = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    for got, expected in zip(copied.forward(*inputs), split.forward(*inputs), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("channels_last", "order"), [(True, [0, 2, 3, 1]), (False, [0, 1, 2, 3])])
def test_what_is_encoded_and_convolved_is_stored_in_one_layout_before(toy, channels_last, order):
    b = toy.Builder()
    x, w, grad = (b.input(n, 2, 2, 3, 3) for n in ("primals_1", "primals_2", "tangents_1"))
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    value = b.call(aten.relu.default, x)
    y = b.call(aten.convolution.default, value, w, None, *geometry)
    z = b.call(aten.silu.default, y)  # whose layout is fixed, and read by nothing costly
    kept = b.call(aten.silu.default, value)  # stands for an encode
    joint = b.joint([y, z, kept], [None, b.call(aten.mul.Tensor, grad, grad)])
    split = Partition(*default_partition(joint.module, None, num_fwd_outputs=3), 3)
    table = {aten.silu.default: torch.sin}
    lower(split, table, {}, channels_last=channels_last, store=store)
    (stored,) = split.forward.graph.find_nodes(op="call_function", target=store)
    assert [stored.args[0].name, stored.args[1]] == ["relu", order]
    assert stored.prev is stored.args[0]
    assert {user.name.split("_")[0] for user in stored.users} == {"sin", "convolution"}
    assert list(stored.args[0].users) == [stored]


def test_a_call_that_its_function_refuses_is_an_error(split):
    with pytest.raises(VerifierError) as caught:
        lower(split, {aten.logit.default: lambda _: NotImplemented}, {})
    assert str(caught.value) == (
        "after pass 'lower': still present: [('logit', 'aten.logit.default')]"
    )


def test_a_function_made_of_an_op_of_the_table_is_an_error(split):
    table = {
        aten.logit.default: torch.ops.aten.silu.default,
        aten.silu.default: torch.exp,
    }
    with pytest.raises(VerifierError, match=r"'lower': still present: \[\('silu_1', 'aten.silu"):
        lower(split, table, {})
