"""A graph as lines that are the same in every process."""

import operator

import torch

from passes import JointGraph
from passes.fingerprint import (
    describe_closest,
    fingerprint,
    first_difference,
    graph_lines,
    without_numbers,
)
from passes.joint import copy_module

aten = torch.ops.aten


def small(toy, rows=2):
    b = toy.Builder()
    x, w = b.input("primals_1", rows, 4), b.input("primals_2", 4, 4)
    grad = b.input("tangents_1", rows, 4)
    pair = b.call(aten.var_mean.correction, b.call(aten.mm.default, x, w), [1], correction=0)
    y = b.call(operator.getitem, pair, 0)
    zeros = b.call(aten.full.default, [rows, 4], 0.0, device=torch.device("cpu"))
    out = b.call(aten.add.Tensor, zeros, x, alpha=2)
    return b.joint([out, y], [None, b.call(aten.mul.Tensor, grad, 1.5)], static=(1,))


def test_a_line_a_node(toy):
    joint = small(toy)
    with toy.untouched(joint.module):
        lines = graph_lines(joint)
    assert lines == (
        "%0 = input: float32[2, 4]",
        "%1 = parameter: float32[4, 4]",
        "%2 = tangent: float32[2, 4]",
        "%3 = aten.mm.default(%0, %1): float32[2, 4]",
        "%4 = aten.var_mean.correction(%3, [1], correction=0): (float32[2], float32[2])",
        "%5 = _operator.getitem(%4, 0): float32[2]",
        "%6 = aten.full.default([2, 4], 0.0): float32[2, 4]",
        "%7 = aten.add.Tensor(%6, %0, alpha=2): float32[2, 4]",
        "%8 = aten.mul.Tensor(%2, 1.5): float32[2, 4]",
        "return [%7, %5, None, %8], of which 2 of the forward",
    )


def test_names_do_not_matter_and_shapes_do(toy):
    joint = small(toy)
    module = copy_module(joint.module)
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.name = f"other_{node.name}"
    renamed = JointGraph(module, joint.num_fwd_outputs, joint.static_input_indices)
    assert graph_lines(renamed) == graph_lines(joint)
    assert fingerprint(graph_lines(joint)) != fingerprint(graph_lines(small(toy, rows=3)))


def test_symbols_are_numbered_as_they_appear(toy):
    def build(unused):
        b = toy.Builder(dynamic=True)
        for i in range(unused):
            b._size(f"unused_{i}")
        x = b.input("primals_1", "rows", "columns")
        size = b.call(aten.sym_size.int, x, 0)
        y = b.call(aten.view.default, x, [size, -1])
        return graph_lines(b.joint([y], [None]))

    lines = build(0)
    assert lines[:2] == (
        "%0 = input: float32[s0, s1]",
        "%1 = aten.sym_size.int(%0, 0): s0",
    )
    assert build(2) == lines


def test_no_address_and_no_device_is_in_a_line(toy):
    b = toy.Builder()
    x = b.input("primals_1", 4)
    node = b.call(aten.sin.default, x)
    joint = b.joint([node], [None])
    node.args = (x, object(), slice(0, None), {"a": x}, torch.device("cpu"))
    assert graph_lines(joint)[1] == (
        "%1 = aten.sin.default(%0, <object object>, 0:None:None, {a: %0}, device): float32[4]"
    )


def test_constants_are_known_by_their_type(toy):
    b = toy.Builder()
    b.input("primals_1", 4)
    constant = b.graph.get_attr("constant")
    joint = JointGraph(torch.fx.GraphModule({"constant": torch.ones(2)}, b.graph), 1)
    b.graph.output([constant])
    assert graph_lines(joint)[1] == "%1 = get_attr: NoneType"


def test_the_first_difference():
    assert first_difference(["a", "b"], ["a", "b"]) is None
    assert first_difference(["a", "b"], ["a", "c"]) == 1
    assert first_difference(["a", "b"], ["a"]) == 1
    assert first_difference([], ["a"]) == 0


def test_the_closest_graph_is_the_one_that_agrees_longest():
    near, far = ("a", "b", "c"), ("a", "x")
    assert describe_closest([far, near], ("a", "b")) == (
        f"the closest of 2 is {fingerprint(near)} (3 lines). First difference at node 2: expected "
        "'c', got 'the end of the graph'"
    )


def test_sizes_and_other_numbers_can_be_left_out():
    lines = ("%12 = aten.var_mean.correction(%3, [1], x=0.5): (float32[2, s0])", "return [%1, -4]")
    assert without_numbers(lines) == (
        "%12 = aten.var_mean.correction(%3, [#], x=#): (float32[#, s0])",
        "return [%1, -#]",
    )
