"""The walk over both graphs, on steps small enough to be counted by hand."""

import dataclasses

import pytest
import torch
from torch import fx

from passes.kernels import interpret
from passes.liveness import LiveValue, predict_memory
from passes.partition import Partition

aten = torch.ops.aten

# One value of the nets below: 2x4 floats.
V = 32


def module_of(builder, *outputs):
    builder.graph.output(tuple(outputs))
    return fx.GraphModule({}, builder.graph)


def predict(split, **changes):
    programs = (interpret(split.forward.graph), interpret(split.backward.graph))
    return predict_memory(split, *(dataclasses.replace(p, **changes) for p in programs))


def chain(toy, *, kept=2):
    """Forward: three values in a row, of which the last is returned and `kept` are kept.

    Backward: one product with each kept value, the last one first.
    """
    b = toy.Builder()
    values = [b.input("primals_1", 2, 4)]
    for target in (aten.sin.default, aten.cos.default, aten.tan.default):
        values.append(b.call(target, values[-1]))
    forward = module_of(b, values[3], *values[1 : 1 + kept])
    b = toy.Builder()
    inputs = [b.input(f"saved_{i}", 2, 4) for i in range(kept)]
    grad = b.input("tangents_1", 2, 4)
    for saved in reversed(inputs):
        grad = b.call(aten.mul.Tensor, grad, saved)
    return Partition(forward, module_of(b, grad), 1)


def test_kept_values_and_outputs_are_live_between_the_graphs(toy):
    memory = predict(chain(toy))
    assert memory.kept_nbytes == 2 * V
    assert memory.live_after_forward_nbytes == 3 * V
    assert memory.unknown == ()


def test_the_peak_is_where_most_is_live(toy):
    memory = predict(chain(toy))
    # The first product: output, tangent, both kept values, and the product itself.
    assert memory.peak_nbytes == 5 * V
    assert memory.peak.phase == "backward"
    assert memory.peak.kernel == "mul"
    named = {value.name for value in memory.peak.largest}
    assert named == {"saved_0", "saved_1", "tangents_1", "mul"}


def test_a_kept_value_is_freed_after_its_last_reader(toy):
    split = chain(toy)
    graph = split.backward.graph
    last = next(node for node in graph.nodes if node.name == "mul_1")
    with graph.inserting_before(last):
        for i in range(2):
            node = graph.create_node("call_function", aten.neg.default, (last.args[0],))
            node.meta["val"], node.name = last.meta["val"], f"neg_{i}"
            last.replace_input_with(last.args[0], node)
    # Nothing grows: what the first product read is gone when the next is formed.
    assert predict(split).peak_nbytes == 5 * V


def test_a_value_is_freed_in_the_forward_when_nobody_needs_it_any_more(toy):
    # Two values at a time, whatever the length of the chain.
    memory = predict(chain(toy, kept=0))
    assert memory.kept_nbytes == 0
    assert memory.live_after_forward_nbytes == V
    assert memory.peak_nbytes == 2 * V


def test_inputs_of_the_forward_are_the_callers(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 4)
    forward = module_of(b, b.call(aten.sin.default, x), x)
    b = toy.Builder()
    saved, grad = b.input("saved", 2, 4), b.input("tangents_1", 2, 4)
    split = Partition(forward, module_of(b, b.call(aten.mul.Tensor, grad, saved)), 1)
    memory = predict(split)
    assert memory.kept_nbytes == 0
    # Output, tangent and gradient.
    assert memory.peak_nbytes == 3 * V


def test_a_kept_output_and_its_view_count_once(toy):
    b = toy.Builder()
    y = b.call(aten.sin.default, b.input("primals_1", 2, 4))
    forward = module_of(b, y, b.call(aten.view.default, y, [8]), y)
    b = toy.Builder()
    flat, saved = b.input("flat", 8), b.input("saved", 2, 4)
    grad = b.input("tangents_1", 2, 4)
    product = b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, grad, saved), saved)
    split = Partition(forward, module_of(b, product, b.call(aten.sum.default, flat)), 1)
    memory = predict(split)
    assert memory.kept_nbytes == V
    assert memory.live_after_forward_nbytes == V
    # The output stays, so it is not freed with its last reader: output, tangent, two products and
    # their sum of four bytes is less than the moment before.
    assert memory.peak_nbytes == 4 * V


def test_a_kernel_in_place_takes_the_memory_of_what_it_read_last(toy):
    split = chain(toy)
    forward, backward = interpret(split.forward.graph), interpret(split.backward.graph)
    kernels = tuple(dataclasses.replace(k, reused=k.reads[1:]) for k in backward.kernels)
    memory = predict_memory(split, forward, dataclasses.replace(backward, kernels=kernels))
    # The product takes the place of the kept value.
    assert memory.peak_nbytes == 4 * V


def test_workspace_is_part_of_the_peak(toy):
    split = chain(toy)
    forward, backward = interpret(split.forward.graph), interpret(split.backward.graph)
    first = dataclasses.replace(forward.kernels[0], workspace_nbytes=1000)
    forward = dataclasses.replace(forward, kernels=(first, *forward.kernels[1:]))
    memory = predict_memory(split, forward, backward)
    assert memory.peak_nbytes == V + 1000
    assert (memory.peak.phase, memory.peak.workspace_nbytes) == ("forward", 1000)
    assert memory.peak.largest == (LiveValue("sin", V),)


def test_new_values_of_mutated_inputs_are_not_held(toy):
    from torch._functorch._aot_autograd.descriptors import (  # noqa: TID251  made by AOTAutograd
        InputMutationAOTOutput,
        PlainAOTInput,
    )

    split = chain(toy)
    output = next(iter(split.forward.graph.find_nodes(op="output")))
    output.meta["desc"] = [InputMutationAOTOutput(PlainAOTInput(0)), None, None]
    assert predict(split).live_after_forward_nbytes == 2 * V


def test_unknown_sizes_are_named(toy):
    b = toy.Builder(dynamic=True)
    y = b.call(aten.sin.default, b.input("primals_1", "?", 4))
    forward = module_of(b, y, y)
    b = toy.Builder(dynamic=True)
    saved, grad = b.input("saved", "?", 4), b.input("tangents_1", "?", 4)
    split = Partition(forward, module_of(b, b.call(aten.neg.default, saved), grad), 1)
    memory = predict(split)
    assert "sin" in memory.unknown
    assert memory.peak_nbytes == 0


def test_graphs_without_a_call_have_no_peak(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 4)
    forward = module_of(b, x)
    b = toy.Builder()
    split = Partition(forward, module_of(b, b.input("tangents_1", 2, 4)), 1)
    memory = predict(split)
    assert memory.peak is None
    assert memory.peak_nbytes == V


def test_a_backward_that_receives_another_number_of_tensors_is_our_bug(toy):
    split = chain(toy)
    with pytest.raises(AssertionError, match="1 tensors kept and 2 received"):
        predict_memory(
            dataclasses.replace(split, num_fwd_outputs=2),
            interpret(split.forward.graph),
            interpret(split.backward.graph),
        )
