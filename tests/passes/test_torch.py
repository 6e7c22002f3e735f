"""What ``passes`` takes from private torch modules still behaves as it relies on."""

import pytest
import torch
from expecttest import assert_expected_inline
from functorch.compile import config
from torch import fx
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


def test_traced_ops_run_in_the_dtypes_they_are_written_for(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 2).meta["val"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.mm(x, x).dtype == torch.bfloat16
        with _torch.tracing_over(b.mode):
            assert torch.mm(x, x).dtype == torch.float32
            assert not torch.is_grad_enabled()
            assert torch.empty(2).fake_mode is b.mode


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
