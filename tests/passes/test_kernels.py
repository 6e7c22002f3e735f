"""A graph as an interpreter's kernels: what each allocates and reads, and where outputs live."""

import operator

import torch

from passes.kernels import Kernel, interpret

aten = torch.ops.aten


def test_each_call_is_a_kernel_that_allocates_its_result(toy):
    b = toy.Builder()
    x = b.input("x", 2, 4)
    y = b.call(aten.sin.default, x)
    z = b.call(aten.mul.Tensor, y, x)
    b.graph.output([z, y, None])
    program = interpret(b.graph)
    assert program.kernels == (
        Kernel("sin", "unknown", ("sin",), ("x",)),
        Kernel("mul", "unknown", ("mul",), ("sin", "x")),
    )
    assert program.nbytes == {"x": 32, "sin": 32, "mul": 32}
    assert program.inputs == ("x",)
    assert program.outputs == ("mul", "sin", None)


def test_a_view_lives_in_what_it_views(toy):
    b = toy.Builder()
    x = b.input("x", 2, 4)
    y = b.call(aten.sin.default, x)
    flat = b.call(aten.view.default, y, [8])
    turned = b.call(aten.t.default, b.call(aten.view.default, flat, [4, 2]))
    z = b.call(aten.cos.default, turned)
    b.graph.output([z, flat])
    program = interpret(b.graph)
    made = {kernel.name: (kernel.outputs, kernel.reads) for kernel in program.kernels}
    assert made["view"] == ((), ("sin",))
    assert made["cos"] == (("cos",), ("sin",))
    assert set(program.nbytes) == {"x", "sin", "cos"}
    assert program.outputs == ("cos", "sin")


def test_of_several_results_each_that_is_taken_is_allocated(toy):
    b = toy.Builder()
    x = b.input("x", 2, 4)
    pair = b.call(aten.max.dim, x, 1)
    values = b.call(operator.getitem, pair, 0)
    where = b.call(operator.getitem, pair, 1)
    b.graph.output([values, where])
    program = interpret(b.graph)
    (kernel,) = program.kernels
    assert kernel.outputs == ("getitem", "getitem_1")
    assert program.nbytes == {"x": 32, "getitem": 8, "getitem_1": 16}


def test_parts_of_a_view_live_in_what_it_views(toy):
    b = toy.Builder()
    y = b.call(aten.sin.default, b.input("x", 2, 4))
    parts = b.call(aten.split.Tensor, y, 2, 1)
    first, second = (b.call(operator.getitem, parts, i) for i in range(2))
    b.graph.output([b.call(aten.cos.default, first), second])
    program = interpret(b.graph)
    made = {kernel.name: (kernel.outputs, kernel.reads) for kernel in program.kernels}
    assert made["split"] == ((), ("sin",))
    assert made["cos"] == (("cos",), ("sin",))
    assert program.nbytes == {"x": 32, "sin": 32, "cos": 16}
    assert program.outputs == ("cos", "sin")


def test_an_unknown_size_stays_unknown(toy):
    b = toy.Builder(dynamic=True)
    x = b.input("x", "?", 4)
    y = b.call(aten.sin.default, x)
    b.graph.output([y])
    assert interpret(b.graph).nbytes == {"x": None, "sin": None}


def test_workspace_of_foreign_ops_is_asked_for(toy):
    b = toy.Builder()
    y = b.call(aten.sin.default, b.input("x", 2, 4))
    b.graph.output([y])
    asked = []

    def nbytes(node, laid_out):
        asked.append((node.name, laid_out))
        return 123

    (kernel,) = interpret(b.graph, workspaces={aten.sin.default: nbytes}).kernels
    assert kernel.workspace_nbytes == 123
    assert asked == [("sin", {})]
