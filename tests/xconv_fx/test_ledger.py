"""Which graphs make up a step: what Dynamo says of them, told by hand."""

import gc
import itertools

import torch
from torch import nn

from xconv_fx._torch import DynamoCall, dynamo_call
from xconv_fx.ledger import Ledger, Place, Step, StepGraph
from xconv_fx.step_memory import GraphInputs, HeldTensor

_traces = itertools.count()


class Compiled:
    """Stands for what one torch.compile call makes."""


def call(compiled, frame=0, trace=None, *, ends_in_break=False, modules=(), inputs=()):
    trace = f"{frame}/{next(_traces)}" if trace is None else trace
    return DynamoCall(compiled, frame, trace, "forward", ends_in_break, modules, inputs)


def entry(place, *statics):
    return StepGraph(place, GraphInputs(tuple(HeldTensor(s, 8, 8) for s in statics), 0), None)


def add(step, *statics, **told):
    graph = entry(step.place(call(None, **told)), *statics)
    step.record(graph)
    return graph


def test_a_step_belongs_to_a_compile_call():
    ledger, one, other = Ledger(), Compiled(), Compiled()
    first = ledger.step_of(call(one))
    assert ledger.step_of(call(other)) is not first
    assert ledger.step_of(call(one, frame=1)) is first is ledger.last
    ledger.clear()
    assert ledger.last is None
    assert ledger.step_of(call(one)) is not first


def test_outside_of_dynamo_each_graph_is_a_step():
    ledger = Ledger()
    told = dynamo_call(torch.fx.symbolic_trace(nn.ReLU()))
    assert (told.compiled, told.frame, told.trace) == (None, None, None)
    assert ledger.step_of(told) is not ledger.step_of(told)


def test_a_model_that_is_gone_leaves_nothing():
    ledger, compiled = Ledger(), Compiled()
    ledger.step_of(call(compiled))
    del compiled
    gc.collect()
    assert len(ledger._steps) == 0


def test_the_same_code_over_the_same_parameters_is_a_version():
    step = Step()
    first, second = add(step, 1), add(step, 2, frame=1)
    assert step.graphs == (first, second)
    # Batch norm in evaluation does not read all its buffers: a part of them is enough.
    again = add(step, 1, 5)
    assert step.graphs == (again, second)
    other_block = add(step, 3)
    assert step.graphs == (again, second, other_block)


def test_parts_of_one_trace_are_graphs_of_their_own():
    step = Step()
    parts = [add(step, n, trace="0/0") for n in (1, 2, 3)]
    assert [graph.place.position for graph in parts] == [0, 1, 2]
    assert len(step.graphs) == 3
    add(step, 1)
    assert len(step.graphs) == 3


def test_without_a_frame_nothing_is_a_version_of_another():
    assert not entry(Place(), 1).is_version_of(entry(Place(), 1))


def room(step, frame, num_graphs=None, **told):
    place = step.place(call(None, frame=frame, **told))
    return step.room(place, GraphInputs((), 0), num_graphs)


def test_what_is_to_come_is_said_known_or_seen_in_a_break():
    step = Step()
    assert room(step, 0).num_to_come == 0
    assert room(step, 0, ends_in_break=True).num_to_come == 1
    assert room(step, 0, 4).num_to_come == 3
    assert room(step, 0, 1, ends_in_break=True).num_to_come == 0
    for frame in range(3):
        add(step, frame, frame=frame)
    known = room(step, 0, ends_in_break=True)
    assert (known.num_to_come, len(known.after), known.is_followed) == (2, 2, False)
    assert len(room(step, 2).before) == 2
    assert room(step, 2).num_to_come == 0


def test_the_model_is_resident_where_its_parameters_can_be_told_apart():
    model = nn.Linear(2, 3)
    step = Step()
    step.place(call(None, modules=(model,)))
    sizes = {tensor.identity: tensor for tensor in step.held}
    weight = sizes[id(model.weight)]
    assert (len(sizes), weight.nbytes, weight.gradient_nbytes) == (2, 24, 24)
    step.record(entry(Place(), object()))
    assert step.held == ()


def test_lazy_parameters_have_no_size_yet():
    step = Step()
    step.place(call(None, modules=(nn.Linear(2, 2), nn.LazyLinear(2))))
    assert len(step.held) == 2
