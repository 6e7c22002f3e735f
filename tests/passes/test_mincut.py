"""The solver against brute force on small networks."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.mincut import SINK, SOURCE, Edge, UnboundedCutError, min_cut

_VERTICES = range(4)
_edge = st.builds(
    Edge,
    tail=st.sampled_from([SOURCE, *_VERTICES]),
    head=st.sampled_from([*_VERTICES, SINK]),
    capacity=st.one_of(st.none(), st.integers(0, 9)),
)


def _cut_value(edges, sink_side):
    side = {SOURCE: False, SINK: True, **{v: v in sink_side for v in _VERTICES}}
    cut = [e for e in edges if not side[e.tail] and side[e.head]]
    return None if any(e.capacity is None for e in cut) else sum(e.capacity for e in cut)


def _all_sides():
    for size in range(len(_VERTICES) + 1):
        yield from itertools.combinations(_VERTICES, size)


@settings(max_examples=150, deadline=None)
@given(st.lists(_edge, max_size=12))
def test_agrees_with_brute_force_and_is_nearest_to_the_sink(edges):
    edges = [e for e in edges if e.tail != e.head]
    values = {side: _cut_value(edges, side) for side in _all_sides()}
    finite = [v for v in values.values() if v is not None]
    if not finite:
        with pytest.raises(UnboundedCutError, match="no finite cut"):
            min_cut(edges)
        return
    value, sink_side = min_cut(edges)
    assert value == min(finite)
    assert _cut_value(edges, sink_side) == value
    best = [set(side) for side, v in values.items() if v == value]
    assert set(sink_side) == set.intersection(*best)


def test_order_of_edges_does_not_matter():
    edges = [Edge(SOURCE, 0, 3), Edge(0, 1, 3), Edge(1, SINK, 3), Edge(SOURCE, 1, 0)]
    assert {min_cut(list(p)) for p in itertools.permutations(edges)} == {(3, frozenset())}


def test_what_infinite_edges_tie_to_the_ends_is_on_their_side_of_the_cut():
    edges = [Edge(SOURCE, 0, None), Edge(0, 1, None), Edge(1, 2, 5), Edge(2, 3, None)]
    edges += [Edge(3, SINK, None), Edge(3, 0, 7), Edge(2, 4, None), Edge(SOURCE, 3, 2)]
    assert min_cut(edges) == (7, frozenset({2, 3}))


def test_contradiction_names_the_path():
    with pytest.raises(UnboundedCutError, match=r"\[-1, 0, -2\]"):
        min_cut([Edge(SOURCE, 0, None), Edge(0, SINK, None)])


def test_capacities_that_do_not_fit_the_solver_are_rounded():
    # Both sinks cost 2**40 and more, so the unit is above 2**11; the cut is right all the same.
    edges = [Edge(SOURCE, 0, 2**40), Edge(0, 1, 2**40 - 2**20), Edge(0, 2, 2**19)]
    edges += [Edge(1, SINK, None), Edge(2, SINK, None)]
    assert min_cut(edges) == (2**40 - 2**20 + 2**19, frozenset({1, 2}))


def test_a_capacity_beside_the_point_costs_no_precision():
    # 10**30 fits no integer of the solver, and taken for a scale would make 5 and 6 the same.
    edges = [Edge(SOURCE, 0, 10**30), Edge(0, 1, 5), Edge(1, 2, 6), Edge(2, SINK, None)]
    assert min_cut(edges) == (5, frozenset({1, 2}))


def test_an_infinite_edge_against_a_large_flow_stays_open():
    # Flow 2**29 from 0 to 1; what is left of the infinite edge back is that and its own capacity.
    edges = [Edge(SOURCE, 0, 2**29 - 1), Edge(0, 1, None), Edge(1, 0, None), Edge(1, SINK, None)]
    assert min_cut(edges) == (2**29 - 1, frozenset({0, 1}))


def test_without_edges_nothing_is_cut():
    assert min_cut([]) == (0, frozenset())
