"""The peak of a step over several graphs, and what is left for one that is being planned."""

from dataclasses import replace

import pytest

from xconv_fx.step_memory import (
    GraphMemory,
    HeldTensor,
    StepRoom,
    resident_nbytes,
    step_peak_nbytes,
)


def graph(name, **figures):
    """A graph with one parameter of 10 bytes, named after it."""
    return GraphMemory(statics=(HeldTensor(name, 10, 10),), **figures)


FIRST = graph(
    "a",
    batch_nbytes=7,
    kept_nbytes=100,
    returned_nbytes=40,
    forward_peak_nbytes=200,
    backward_peak_nbytes=900,
    followed_peak_nbytes=300,
)
SECOND = graph(
    "b",
    kept_nbytes=60,
    returned_nbytes=4,
    kept_inputs_nbytes=40,
    forward_peak_nbytes=80,
    backward_peak_nbytes=90,
    followed_peak_nbytes=85,
)


def test_parameters_count_once_and_the_batch_of_each_graph():
    shared = replace(SECOND, statics=FIRST.statics, batch_nbytes=3)
    assert resident_nbytes([FIRST, shared]) == 10 + 7 + 3
    assert resident_nbytes([FIRST], [HeldTensor("a", 10, 10), HeldTensor("c", 5, 5)]) == 22


def test_a_graph_alone_holds_what_it_returns():
    assert step_peak_nbytes([FIRST]) == 17 + 900
    assert step_peak_nbytes([FIRST], is_followed=True) == 17 + 300
    assert step_peak_nbytes([]) == 0


@pytest.mark.parametrize(
    ("first", "second", "peak"),
    [
        # The first's backward, with the gradient of the second's parameter.
        ({}, {}, 300 + 10),
        # The second's forward, with what the first keeps and returns.
        ({}, {"forward_peak_nbytes": 500}, 100 + 40 + 500),
        # The second's backward, with what the first keeps and what it keeps of the first's.
        ({}, {"backward_peak_nbytes": 500}, 100 + 40 + 500),
        ({}, {"backward_peak_nbytes": 500, "kept_inputs_nbytes": 0}, 100 + 500),
        ({"forward_peak_nbytes": 1000}, {}, 1000),
    ],
)
def test_the_peak_of_two_graphs(first, second, peak):
    graphs = [replace(FIRST, **first), replace(SECOND, **second)]
    assert step_peak_nbytes(graphs) == 27 + peak


def test_a_shared_parameter_has_one_gradient():
    shared = replace(SECOND, statics=FIRST.statics)
    assert step_peak_nbytes([FIRST, shared]) == 17 + 300


def test_gradients_still_to_come_are_live_in_every_backward():
    assert step_peak_nbytes([FIRST, SECOND], gradients_to_come_nbytes=50) == 27 + 300 + 60


def test_a_last_graph_gets_all_that_is_left():
    room = StepRoom(before=(FIRST,))
    assert room.num_parts == 1
    assert room.assumed_peak_nbytes(SECOND) == room.known_peak_nbytes(SECOND)
    assert room.known_peak_nbytes(SECOND) == step_peak_nbytes([FIRST, SECOND])


def test_graphs_to_come_are_taken_to_keep_as_much():
    room = StepRoom(num_to_come=2, is_followed=True)
    assert room.num_parts == 3
    # The last one's backward has what two keep; the batch and the parameters count once.
    assert room.assumed_peak_nbytes(FIRST) == 17 + 2 * 100 + 300
    assert room.known_peak_nbytes(FIRST) == 17 + 300


def test_parameters_of_graphs_to_come_are_resident_and_get_gradients():
    held = (HeldTensor("a", 10, 10), HeldTensor("b", 1000, 500))
    followed = StepRoom(held=held, num_to_come=1, is_followed=True)
    assert followed.known_peak_nbytes(FIRST) == 1017 + 300 + 500
    assert followed.assumed_peak_nbytes(FIRST) == 1017 + 100 + 300 + 500
    # Without a graph to come nobody trains them in this step.
    assert StepRoom(held=held).known_peak_nbytes(FIRST) == 1017 + 900


def test_known_graphs_after_it_count_as_they_were():
    room = StepRoom(after=(replace(SECOND, forward_peak_nbytes=5000),), num_to_come=1)
    assert room.known_peak_nbytes(FIRST) == 27 + 140 + 5000
    assert room.assumed_peak_nbytes(FIRST) == 27 + 140 + 5000
