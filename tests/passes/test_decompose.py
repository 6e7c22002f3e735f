"""Calls replaced by graphs: text in, text out."""

import dataclasses
import operator

import pytest
import torch
from expecttest import assert_expected_inline

from passes.decompose import Inserter, Traces, decompose
from passes.joint import output_node

aten = torch.ops.aten

PROVENANCE = {
    "stack_trace": 'File "model.py", line 3, in forward\n    y = sin(x)',
    "nn_module_stack": {"": ("net.act", object)},
    "fwd_nn_module_stack": {"": ("net.act", object)},
    "source_fn_stack": [("sin", torch.sin)],
    "fwd_source_fn_stack": [("sin", torch.sin)],
    "seq_nr": 7,
    "custom": {"user": 1},
    "partitioner_tag": "is_forward",
    "autograd_backward": True,
}


def one_call(toy, target, *args, **kwargs):
    """A joint graph with two inputs, one call of ``target`` on the first, and one gradient."""
    b = toy.Builder()
    x = b.input("primals_1", 2, 4)
    grad = b.input("tangents_1", 2, 4)
    y = b.call(target, x, *args, **kwargs)
    joint = b.joint([y], [b.call(aten.mul.Tensor, grad, x)])
    return joint.module, y


def test_a_call_is_replaced_in_place_and_the_input_is_untouched(toy):
    module, _ = one_call(toy, aten.sin.default)
    with toy.untouched(module):
        result = decompose(module, {aten.sin.default: lambda x: x.exp() + 1}, {})
    assert_expected_inline(
        toy.text(module.graph),
        """\
%primals_1: f32[2,4]
%tangents_1: f32[2,4]
%sin: f32[2,4] = aten.sin.default(%primals_1)
%mul: f32[2,4] = aten.mul.Tensor(%tangents_1, %primals_1)
return [%sin, %mul]""",
    )
    assert_expected_inline(
        toy.text(result.graph),
        """\
%primals_1: f32[2,4]
%tangents_1: f32[2,4]
%exp: f32[2,4] = aten.exp.default(%primals_1)
%add: f32[2,4] = aten.add.Tensor(%exp, 1)
%mul: f32[2,4] = aten.mul.Tensor(%tangents_1, %primals_1)
return [%add, %mul]""",
    )


def test_nodes_take_over_the_provenance_of_the_call_and_no_other(toy):
    module, call = one_call(toy, aten.sin.default)
    call.meta.update(PROVENANCE)
    result = decompose(module, {aten.sin.default: lambda x: x.exp() + 1}, {})
    exp, add = (n for n in result.graph.nodes if n.target in (aten.exp.default, aten.add.Tensor))
    for node in (exp, add):
        assert {key: node.meta.get(key) for key in PROVENANCE} == PROVENANCE
    (mul,) = result.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    assert not set(PROVENANCE) & set(mul.meta)


def test_tracing_leaves_no_provenance_of_its_own(toy):
    module, _ = one_call(toy, aten.sin.default)
    result = decompose(module, {aten.sin.default: lambda x: x.exp() + 1}, {})
    for node in result.graph.nodes:
        assert not set(PROVENANCE) & set(node.meta), node


def test_new_nodes_carry_values_of_the_same_fake_mode(toy):
    module, call = one_call(toy, aten.sin.default)
    result = decompose(module, {aten.sin.default: lambda x: x.exp() + 1}, {})
    modes = {n.meta["val"].fake_mode for n in result.graph.nodes if n.op != "output"}
    assert modes == {call.meta["val"].fake_mode}


def test_not_implemented_leaves_the_call(toy):
    module, _ = one_call(toy, aten.sin.default)
    result = decompose(module, {aten.sin.default: lambda _: NotImplemented}, {})
    assert toy.text(result.graph) == toy.text(module.graph)


def test_not_implemented_is_asked_for_each_call(toy):
    b = toy.Builder()
    large, small = b.input("primals_1", 8), b.input("primals_2", 2)
    module = b.joint([b.call(aten.sin.default, large), b.call(aten.sin.default, small)], []).module
    table = {aten.sin.default: lambda x: x.exp() if x.numel() > 4 else NotImplemented}
    assert_expected_inline(
        toy.text(decompose(module, table, {}).graph),
        """\
%primals_1: f32[8]
%primals_2: f32[2]
%exp: f32[8] = aten.exp.default(%primals_1)
%sin_1: f32[2] = aten.sin.default(%primals_2)
return [%exp, %sin_1]""",
    )


def test_keyword_arguments_reach_the_function_by_name(toy):
    module, _ = one_call(toy, aten.add.Tensor, 3.0, alpha=2)

    def add(x, other, *, alpha=1):
        return x.sin() * (other * alpha)

    assert_expected_inline(
        toy.text(decompose(module, {aten.add.Tensor: add}, {}).graph),
        """\
%primals_1: f32[2,4]
%tangents_1: f32[2,4]
%sin: f32[2,4] = aten.sin.default(%primals_1)
%mul_1: f32[2,4] = aten.mul.Tensor(%sin, 6.0)
%mul: f32[2,4] = aten.mul.Tensor(%tangents_1, %primals_1)
return [%mul_1, %mul]""",
    )


def test_tensors_in_lists_and_keyword_tensors_are_arguments_too(toy):
    b = toy.Builder()
    x, y = b.input("primals_1", 2, 3), b.input("primals_2", 2, 3)
    cat = b.call(aten.cat.default, [x, y], 1)
    clamp = b.call(aten.clamp.Tensor, x, max=y)
    table = {
        aten.cat.default: lambda tensors, dim: torch.stack(tensors, dim).reshape(2, 6),
        aten.clamp.Tensor: lambda x, max: torch.minimum(x, max),
    }
    assert_expected_inline(
        toy.text(decompose(b.joint([cat, clamp], []).module, table, {}).graph),
        """\
%primals_1: f32[2,3]
%primals_2: f32[2,3]
%stack: f32[2,2,3] = aten.stack.default([%primals_1, %primals_2], 1)
%view: f32[2,6] = aten.view.default(%stack, [2, 6])
%minimum: f32[2,3] = aten.minimum.default(%primals_1, %primals_2)
return [%view, %minimum]""",
    )


def test_results_of_a_multi_output_op_replace_its_getitems(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 4)
    both = b.call(aten.var_mean.correction, x, [1], correction=0)
    mean = b.call(operator.getitem, both, 1)
    var = b.call(operator.getitem, both, 0)

    def var_mean(x, dim, **_):
        mean = x.mean(dim)
        return (x * x).mean(dim) - mean * mean, mean

    table = {aten.var_mean.correction: var_mean}
    module = b.joint([mean, var], []).module
    with toy.untouched(module):
        result = decompose(module, table, {})
    assert_expected_inline(
        toy.text(result.graph),
        """\
%primals_1: f32[2,4]
%mean: f32[2] = aten.mean.dim(%primals_1, [1])
%mul: f32[2,4] = aten.mul.Tensor(%primals_1, %primals_1)
%mean_1: f32[2] = aten.mean.dim(%mul, [1])
%mul_1: f32[2] = aten.mul.Tensor(%mean, %mean)
%sub: f32[2] = aten.sub.Tensor(%mean_1, %mul_1)
return [%mean, %sub]""",
    )


def test_none_results_become_none_where_they_were_read(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 4)
    both = b.call(aten.var_mean.correction, x, [1], correction=0)
    outputs = [b.call(operator.getitem, both, i) for i in range(2)]
    table = {aten.var_mean.correction: lambda x, dim, **_: (x.sum(dim), None)}
    assert_expected_inline(
        toy.text(decompose(b.joint(outputs, []).module, table, {}).graph),
        """\
%primals_1: f32[2,4]
%sum_1: f32[2] = aten.sum.dim_IntList(%primals_1, [1])
return [%sum_1, None]""",
    )


def test_unused_results_of_the_function_are_not_inserted(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 4)
    both = b.call(aten.var_mean.correction, x, [1], correction=0)
    module = b.joint([b.call(operator.getitem, both, 1)], []).module
    table = {aten.var_mean.correction: lambda x, dim, **_: (None, x.sum(dim))}
    targets = [n.target for n in decompose(module, table, {}).graph.nodes]
    assert targets == ["primals_1", aten.sum.dim_IntList, "output"]


def test_a_tuple_that_is_read_whole_is_a_bug_of_ours(toy):
    b = toy.Builder()
    both = b.call(aten.var_mean.correction, b.input("primals_1", 2, 4), [1], correction=0)
    module = b.joint([both], []).module
    table = {aten.var_mean.correction: lambda x, dim, **_: (x.sum(dim), x.sum(dim))}
    with pytest.raises(AssertionError, match="var_mean yields a tuple, output reads it whole"):
        decompose(module, table, {})


def test_constants_move_into_the_new_module_under_names_of_their_own(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2)
    module = b.joint([b.call(aten.sin.default, b.call(aten.sin.default, x))], []).module
    table = {aten.sin.default: lambda x: x * torch.tensor([1.0, 3.0])}
    with toy.untouched(module):
        result = decompose(module, table, {})
    assert torch.equal(result(torch.ones(2))[0], torch.tensor([1.0, 9.0]))
    names = [n.target for n in result.graph.find_nodes(op="get_attr")]
    assert len(set(names)) == 2
    assert [getattr(result, name).tolist() for name in names] == [[1.0, 3.0], [1.0, 3.0]]
    assert all(n.meta["val"].shape == (2,) for n in result.graph.find_nodes(op="get_attr"))


def test_the_inner_table_takes_apart_what_the_function_is_made_of(toy):
    module, _ = one_call(toy, aten.sin.default)
    table = {aten.sin.default: lambda x: torch.ops.aten.silu.default(x)}
    inner = {aten.silu.default: lambda x: x * x.sigmoid()}
    assert_expected_inline(
        toy.text(decompose(module, table, inner).graph),
        """\
%primals_1: f32[2,4]
%tangents_1: f32[2,4]
%sigmoid: f32[2,4] = aten.sigmoid.default(%primals_1)
%mul_1: f32[2,4] = aten.mul.Tensor(%primals_1, %sigmoid)
%mul: f32[2,4] = aten.mul.Tensor(%tangents_1, %primals_1)
return [%mul_1, %mul]""",
    )


def test_a_function_may_return_its_argument(toy):
    module, _ = one_call(toy, aten.sin.default)
    result = decompose(module, {aten.sin.default: lambda x: x}, {})
    assert result.graph.find_nodes(op="output")[0].args[0][0].name == "primals_1"


def test_equal_sites_get_nodes_of_their_own(toy):
    b = toy.Builder()
    x, y = b.input("primals_1", 2), b.input("primals_2", 2)
    first, second = b.call(aten.sin.default, x), b.call(aten.sin.default, y)
    first.meta["seq_nr"], second.meta["seq_nr"] = 1, 2
    result = decompose(b.joint([first, second], []).module, {aten.sin.default: torch.exp}, {})
    sites = result.graph.find_nodes(op="call_function", target=aten.exp.default)
    assert [(n.args[0].name, n.meta["seq_nr"]) for n in sites] == [
        ("primals_1", 1),
        ("primals_2", 2),
    ]


def test_sites_that_differ_in_a_constant_or_in_strides_are_traced_apart(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 3)
    turned = b.call(aten.t.default, b.input("primals_2", 3, 2))
    outputs = [
        b.call(aten.add.Tensor, x, 1),
        b.call(aten.add.Tensor, x, 1.0),
        b.call(aten.add.Tensor, x, True),
        b.call(aten.add.Tensor, turned, 1),
    ]

    def add(x, other):
        is_dense = x.is_contiguous()
        return x.clone() * (10 if is_dense else 20) + (100 if other is True else other)

    result = decompose(b.joint(outputs, []).module, {aten.add.Tensor: add}, {})
    ones = result(torch.ones(2, 3), torch.ones(3, 2))
    assert [out[0, 0].item() for out in ones] == [11.0, 11.0, 110.0, 21.0]


def test_symbolic_sizes_stay_symbolic(toy):
    b = toy.Builder(dynamic=True)
    x = b.input("primals_1", "batch", 4)
    b.input("tangents_1", "batch", 4)
    module = b.joint([b.call(aten.sin.default, x)], []).module
    result = decompose(module, {aten.sin.default: lambda x: x.reshape(x.shape[0] * 4)}, {})
    assert [out.shape for out in result(torch.ones(5, 4), None)] == [(20,)]


def test_a_call_without_a_node_among_its_arguments(toy):
    b = toy.Builder()
    b.input("primals_1", 2)
    module = b.joint([b.call(aten.full.default, [2], 1.0)], []).module
    decompose(module, {aten.full.default: lambda size, value: torch.ones(size) * value}, {})


def test_insert_returns_the_structure_of_the_function(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2)
    y = b.call(aten.sin.default, x)
    joint = b.joint([y], [])
    made = Inserter().insert(
        lambda pair, scale: {"sum": pair[0] + pair[1], "scaled": [pair[0] * scale]},
        [(x, y), 3],
        joint.graph.find_nodes(op="output")[0],
        provenance=y,
    )
    assert [made["sum"].target, made["scaled"][0].target] == [aten.add.Tensor, aten.mul.Tensor]
    assert [n.name for n in joint.graph.nodes] == ["primals_1", "sin", "add", "mul", "output"]


def test_a_trace_is_used_again_in_a_later_graph_but_not_under_another_table(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2)
    module = b.joint([b.call(aten.sin.default, x)], []).module
    traced = []

    def twice(x):
        traced.append(x.shape)
        return x.sigmoid() * 2

    table, traces = {aten.sin.default: twice}, Traces()
    first = decompose(module, table, {}, traces=traces)
    again = decompose(module, table, {}, traces=traces)
    assert len(traced) == 1
    assert toy.text(again.graph) == toy.text(first.graph)
    apart = decompose(module, table, {aten.sigmoid.default: torch.tanh}, traces=traces)
    assert len(traced) == 2
    assert [n.target for n in apart.graph.nodes][1] == aten.tanh.default


def test_values_made_by_one_trace_are_told_apart(toy):
    b = toy.Builder()
    x, y = b.input("primals_1", 2), b.input("primals_2", 2)
    joint = b.joint([b.call(aten.sin.default, x)], [])
    output = joint.graph.find_nodes(op="output")[0]
    inserter = Inserter()
    first, second = (inserter.insert(torch.exp, [n], output, provenance=x) for n in (x, y))
    difference = inserter.insert(torch.sub, [first, second], output, provenance=x)
    assert difference.args == (first, second)


def test_methods_of_equal_objects_share_a_trace(toy):
    traced = []

    @dataclasses.dataclass(frozen=True)
    class Scale:
        factor: int

        def apply(self, x):
            traced.append(self.factor)
            return x * self.factor

    b = toy.Builder()
    x = b.input("primals_1", 2)
    joint = b.joint([b.call(aten.sin.default, x)], [])
    inserter = Inserter()
    for factor in (2, 2, 3):
        output = joint.graph.find_nodes(op="output")[0]
        inserter.insert(Scale(factor).apply, [x], output, provenance=x)
    assert traced == [2, 3]


def test_a_trace_is_used_again_whatever_the_order_of_its_arguments_in_the_graph(toy):
    b = toy.Builder()
    x, y = b.input("primals_1", 2), b.input("primals_2", 2)
    pairs = ((x, y), (y, x), (x, x))
    joint = b.joint([b.call(aten.sub.Tensor, *pair) for pair in pairs], [])
    traced = []

    def subtract(a, b):
        traced.append(a is b)
        return a + (-1) * b

    taken_apart = decompose(joint.module, {aten.sub.Tensor: subtract}, {})
    assert traced == [False, True]  # one value given twice is another graph
    values = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 9.0])
    got = taken_apart(*values)
    assert [g.tolist() for g in got] == [[-4.0, -7.0], [4.0, 7.0], [0.0, 0.0]]


def test_a_single_call_is_inserted_as_it_is(toy):
    b = toy.Builder()
    x, y = b.input("primals_1", 2, 3, 4, 4), b.call(aten.sin.default, b.input("primals_2", 2))
    y.meta |= PROVENANCE
    joint = b.joint([y], [])
    node = Inserter().call(
        aten.clone.default, [x], y.next, provenance=y, kwargs={"memory_format": torch.channels_last}
    )
    assert (node.target, node.args) == (aten.clone.default, (x,))
    assert node.meta["val"].is_contiguous(memory_format=torch.channels_last)
    assert {key: node.meta[key] for key in PROVENANCE} == PROVENANCE
    assert [n.name for n in joint.graph.nodes][-3:] == ["sin", "clone", "output"]


def test_a_single_call_is_taken_apart_where_the_inner_compiler_wants_it(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2)
    output = output_node(b.joint([x], []).graph)
    table = {aten.sub.Tensor: lambda a, b, *, alpha=1: a + b * -alpha}
    node = Inserter(table).call(aten.sub.Tensor, [x, x], output, provenance=x, kwargs={"alpha": 3})
    assert node.target is aten.add.Tensor
    (product,) = (n for n in node.all_input_nodes if n is not x)
    assert product.args == (x, -3)
