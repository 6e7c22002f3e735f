"""Reading a joint graph: which nodes are what, sizes, copies."""

import dataclasses

import pytest
import torch

from passes.joint import (
    JointGraph,
    argument_nodes,
    is_tangent,
    output_node,
    tensor_nbytes,
    tensor_val,
)

aten = torch.ops.aten


@pytest.fixture
def joint(toy):
    """Three primals (data, parameter, activation), one output, gradients of the last two."""
    b = toy.Builder()
    data, weight, activation = (b.input(f"primals_{i}", 2, 4) for i in (1, 2, 3))
    grad = b.input("tangents_1", 2, 4)
    y = b.call(aten.mul.Tensor, b.call(aten.add.Tensor, data, activation), weight)
    grad_activation = b.call(aten.mul.Tensor, grad, weight)
    return b.joint([y], [None, grad, grad_activation], static=(1,))


def names(nodes):
    return [node.name for node in nodes]


def test_inputs_are_told_apart_by_name(joint):
    placeholders = joint.graph.find_nodes(op="placeholder")
    assert [is_tangent(node) for node in placeholders] == [False, False, False, True]
    assert names(joint.primals) == ["primals_1", "primals_2", "primals_3"]


def test_a_call_with_tangents_in_its_name_is_no_tangent(toy):
    b = toy.Builder()
    call = b.call(aten.sin.default, b.input("primals_1", 2))
    call.name = "tangents_7"
    assert not is_tangent(call)


def test_outputs_are_split_and_none_is_left_out(joint):
    assert [str(output) for output in joint.outputs] == ["mul", "None", "tangents_1", "mul_1"]
    assert names(joint.bwd_outputs()) == ["tangents_1", "mul_1"]
    assert output_node(joint.graph).op == "output"


def test_nested_outputs_are_flattened(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2)
    b.graph.output(([x], (None, [x])))
    joint = JointGraph(torch.fx.GraphModule({}, b.graph), 1)
    assert joint.outputs == (x, None, x)


def test_parameters_and_data_of_the_caller_are_told_apart_from_activations(joint):
    assert names(joint.static_inputs()) == ["primals_2"]
    assert names(joint.caller_held_inputs()) == ["primals_1"]


def test_a_frozen_parameter_is_not_taken_for_data_of_the_caller(joint):
    frozen = dataclasses.replace(joint, static_input_indices=(0, 1))
    assert names(frozen.static_inputs()) == ["primals_1", "primals_2"]
    assert frozen.caller_held_inputs() == []


def test_without_one_gradient_a_primal_no_input_counts_as_held_by_the_caller(joint):
    fewer = dataclasses.replace(joint, num_fwd_outputs=2)
    assert fewer.caller_held_inputs() == []


def test_backward_is_what_depends_on_a_tangent_or_is_tagged_so(joint):
    (add,) = joint.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    assert names(joint.backward_nodes()) == ["tangents_1", "mul_1"]
    add.meta["partitioner_tag"] = "must_be_in_backward"
    assert names(joint.backward_nodes()) == ["tangents_1", "add", "mul", "mul_1"]


def test_a_copy_shares_no_node_and_keeps_names_and_metadata(toy, joint):
    joint.graph.find_nodes(op="placeholder")[0].meta["custom"] = {"a": 1}
    with toy.untouched(joint.module):
        copied = joint.copy()
        for node in copied.graph.nodes:
            node.meta["new"] = True
        copied.graph.erase_node(output_node(copied.graph))
    assert not set(joint.graph.nodes) & set(copied.graph.nodes)
    assert names(copied.graph.nodes) == names(joint.graph.nodes)[:-1]
    assert next(iter(copied.graph.nodes)).meta["custom"] == {"a": 1}
    assert (copied.num_fwd_outputs, copied.static_input_indices) == (1, (1,))


def test_a_copy_keeps_names_that_fx_would_change(joint):
    # a builtin's name, which fx gives to no node of its own accord
    (mul, _) = joint.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    mul.name = "sum"
    assert "sum" in names(joint.copy().graph.nodes)


def test_a_copy_of_a_traced_graph_is_called_alike_and_gives_the_same_numbers(toy):
    weight = torch.randn(4, requires_grad=True)
    joint = toy.capture(lambda x, w: (x * w).sin(), torch.randn(2, 4), weight)
    copied = joint.copy()
    assert copied.module.code == joint.module.code
    primals, tangents = [torch.randn(2, 4), torch.randn(4)], [torch.randn(2, 4)]
    (ours, our_grads), (theirs, their_grads) = (
        module(primals, tangents) for module in (copied.module, joint.module)
    )
    assert torch.equal(ours[0], theirs[0])
    assert our_grads[0] is their_grads[0] is None
    assert torch.equal(our_grads[1], their_grads[1])


@pytest.mark.parametrize(
    ("size", "dtype", "nbytes"),
    [
        ((2, 3), torch.float32, 24),
        ((2, 3), torch.bfloat16, 12),
        ((5,), torch.bool, 5),
        ((), torch.float64, 8),
        ((0, 3), torch.float32, 0),
        (("batch", 4), torch.float32, 8 * 4 * 4),
        (("?", 4), torch.float32, None),
    ],
)
def test_nbytes_is_exact_hinted_or_unknown(toy, size, dtype, nbytes):
    b = toy.Builder(dynamic=True)
    assert tensor_nbytes(tensor_val(b.input("primals_1", *size, dtype=dtype))) == nbytes


def test_nbytes_of_an_expanded_tensor_are_those_of_a_dense_one():
    assert tensor_nbytes(torch.zeros(()).expand(3, 5)) == 60


def test_only_tensors_have_a_tensor_value(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 4)
    both = b.call(aten.var_mean.correction, x, [1])
    assert tensor_val(x) is x.meta["val"]
    assert tensor_val(both) is None
    del x.meta["val"]
    assert tensor_val(x) is None


def test_nodes_of_an_argument_are_found_inside_lists(toy):
    b = toy.Builder()
    x, y = b.input("primals_1", 2), b.input("primals_2", 2)
    assert argument_nodes(x) == [x]
    assert argument_nodes([x, 3, [y, x]]) == [x, y, x]
    assert argument_nodes(3) == []
