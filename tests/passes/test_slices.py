"""An op of whose result only slices are read is called once a slice."""

import torch
from expecttest import assert_expected_inline
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from passes.decompose import Inserter
from passes.slices import form_slices_apart

aten = torch.ops.aten


def slice_of_product(x, weight, start, stop):
    return aten.mm.default(x, weight.narrow(1, start, stop - start))


def refuse(*_args):
    return NotImplemented


def product(slices, *, also_whole=False):
    """A graph that reads these slices, ``(dim, start, stop, step)``, of a matrix product."""
    graph = fx.Graph()
    mode = FakeTensorMode()
    with mode:
        x, weight = torch.empty(4, 3), torch.empty(3, 6)
        nodes = [graph.placeholder("x"), graph.placeholder("weight")]
        for node, val in zip(nodes, (x, weight), strict=True):
            node.meta["val"] = val
        whole = graph.call_function(aten.mm.default, tuple(nodes))
        whole.meta["val"] = x @ weight
        parts = []
        for bounds in slices:
            part = graph.call_function(aten.slice.Tensor, (whole, *bounds))
            part.meta["val"] = aten.slice.Tensor(whole.meta["val"], *bounds)
            parts.append(part)
    graph.output([*parts, whole] if also_whole else parts)
    # the interpreter of a graph wants a module
    fx.GraphModule(torch.nn.Module(), graph)
    return graph


def result(graph, table=None):
    form_slices_apart(graph, table or {aten.mm.default: slice_of_product}, Inserter())
    graph.lint()
    return graph


def test_each_slice_is_formed_from_its_part_of_the_weight(toy):
    graph = result(product([(1, 4, 9223372036854775807), (1, 0, 4)]))
    assert_expected_inline(
        toy.text(graph),
        """\
%x: f32[4,3]
%weight: f32[3,6]
%slice_1: f32[3,2] = aten.slice.Tensor(%weight, 1, 4, 6)
%mm: f32[4,2] = aten.mm.default(%x, %slice_1)
%slice_2: f32[3,4] = aten.slice.Tensor(%weight, 1, 0, 4)
%mm_1: f32[4,4] = aten.mm.default(%x, %slice_2)
return [%mm, %mm_1]""",
    )


def test_the_numbers_are_kept():
    bounds = [(1, 1, 3), (1, -2, 6)]
    x, weight = torch.randn(4, 3), torch.randn(3, 6)
    parts = fx.GraphModule(torch.nn.Module(), result(product(bounds)))(x, weight)
    whole = fx.GraphModule(torch.nn.Module(), product(bounds))(x, weight)
    # the same sums of three products each, in the order of another blocking
    torch.testing.assert_close(parts, whole)


def test_a_result_that_is_read_otherwise_stays_whole(toy):
    for graph in (
        product([(1, 0, 4), (1, 4, 6)], also_whole=True),
        product([(1, 0, 4)]),
        product([(1, 0, 4), (1, 3, 6)]),
        product([(0, 0, 2), (0, 2, 4)]),
        product([(1, 0, 6, 2), (1, 4, 6)]),
    ):
        before = toy.text(graph)
        assert toy.text(result(graph)) == before


def test_a_function_may_refuse(toy):
    graph = product([(1, 0, 4), (1, 4, 6)])
    before = toy.text(graph)
    assert toy.text(result(graph, {aten.mm.default: refuse})) == before
