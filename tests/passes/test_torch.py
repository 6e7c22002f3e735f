"""What ``passes`` takes from private torch modules still behaves as it relies on."""

import functools

import pytest
import torch
from expecttest import assert_expected_inline
from functorch.compile import config, min_cut_rematerialization_partition
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

from passes import _torch

aten = torch.ops.aten


def test_tags_are_those_that_torchs_partitioner_reads():
    assert _torch.MUST_SAVE is CheckpointPolicy.MUST_SAVE
    assert _torch.MUST_RECOMPUTE is CheckpointPolicy.MUST_RECOMPUTE


def test_equal_pure_calls_are_merged_and_random_ones_are_not(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2)
    sines = b.call(aten.mul.Tensor, b.call(aten.sin.default, x), b.call(aten.sin.default, x))
    draws = [b.call(aten.rand_like.default, x) for _ in range(2)]
    joint = b.joint([sines, b.call(aten.mul.Tensor, *draws)], [])
    merged = _torch.merge_common_subexpressions(joint.graph)
    assert len(joint.graph.nodes) == 8
    assert_expected_inline(
        toy.text(merged),
        """\
%primals_1: f32[2]
%sin: f32[2] = aten.sin.default(%primals_1)
%mul: f32[2] = aten.mul.Tensor(%sin, %sin)
%rand_like: f32[2] = aten.rand_like.default(%primals_1)
%rand_like_1: f32[2] = aten.rand_like.default(%primals_1)
%mul_1: f32[2] = aten.mul.Tensor(%rand_like, %rand_like_1)
return [%mul, %mul_1]""",
    )


def test_the_partitioner_is_told_to_leave_the_graph_alone_for_a_while():
    with config.patch(cse=True, activation_memory_budget=0.5):
        with _torch.partitioner_takes_graph_as_is():
            assert (config.cse, config.activation_memory_budget) == (False, 1.0)
        assert (config.cse, config.activation_memory_budget) == (True, 0.5)


def test_the_partitioner_is_stopped_when_it_has_chosen(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2), b.input("tangents_1", 2)
    y = b.call(aten.sin.default, x)
    joint = b.joint([y], [b.call(aten.mul.Tensor, grad, y)])
    names = min_cut_rematerialization_partition.__globals__
    extract = names["_extract_fwd_bwd_modules"]
    with pytest.raises(_torch.ChosenError) as caught, _torch.partitioning(joint.graph):
        _torch.choosing_partitioner()(joint.module, None, num_fwd_outputs=1)
    assert [node.name for node in caught.value.saved] == ["sin"]
    assert caught.value.module is joint.module
    assert names["_extract_fwd_bwd_modules"] is extract


def test_a_partitioner_that_extracts_in_another_way_is_not_stopped(monkeypatch):
    def whole(module):
        return module, _extract_fwd_bwd_modules

    def _extract_fwd_bwd_modules(graph, kept):
        return graph, kept

    monkeypatch.setattr(_torch, "min_cut_rematerialization_partition", whole)
    assert _torch.choosing_partitioner() is whole
    monkeypatch.setitem(whole.__globals__, "_extract_fwd_bwd_modules", _extract_fwd_bwd_modules)
    assert _torch.choosing_partitioner() is whole
    monkeypatch.setattr(_torch, "min_cut_rematerialization_partition", functools.partial(whole))
    assert isinstance(_torch.choosing_partitioner(), functools.partial)


def test_traced_ops_run_in_the_dtypes_they_are_written_for(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 2).meta["val"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.mm(x, x).dtype == torch.bfloat16
        with _torch.tracing_over(b.mode):
            assert torch.mm(x, x).dtype == torch.float32
            assert not torch.is_grad_enabled()
            assert torch.empty(2).fake_mode is b.mode


def test_a_trace_leaves_modules_alone_and_the_next_one_does_not(toy):
    mode = toy.Builder().mode
    original = torch.nn.Module.__call__
    calls = []

    def traced(x):
        calls.append(torch.nn.Module.__call__)
        return x.sin()

    with mode:
        x = torch.empty(2)
    with _torch.tracing_over(mode):
        make_fx(traced)(x)
    with pytest.raises(ZeroDivisionError), _torch.tracing_over(mode):
        make_fx(lambda x: x / (1 // 0))(x)
    make_fx(traced)(torch.empty(2))
    assert [call is original for call in calls] == [True, False]
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert [n.op for n in fx.symbolic_trace(layers).graph.nodes][1] == "call_module"


def test_the_fake_mode_is_found_behind_nodes_without_one(toy):
    b = toy.Builder()
    b.graph.placeholder("primals_0")
    b.input("primals_1", 2)
    assert _torch.fake_mode_of(b.graph) is b.mode


def test_a_graph_without_fake_tensors_is_refused():
    graph = fx.Graph()
    graph.placeholder("primals_1").meta["val"] = torch.zeros(2)
    with pytest.raises(ValueError, match="no fake tensor found in the graph: expected meta"):
        _torch.fake_mode_of(graph)


def test_size_hints_are_read_without_a_guard(toy):
    b = toy.Builder(dynamic=True)
    backed, unbacked = b.input("primals_1", "batch", "?").meta["val"].shape
    assert [_torch.size_hint(size) for size in (3, backed, unbacked)] == [3, 8, None]
    assert b.shape_env.guards == []
