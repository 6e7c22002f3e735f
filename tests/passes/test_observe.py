"""A step run node by node gives the joint graph's own numbers, and parts of it run again."""

import copy

import pytest
import torch

from passes.observe import Replay, observed_partition, values_read

aten = torch.ops.aten


@pytest.fixture
def joint(toy):
    """Gradients of sin(x) * v for both factors."""
    b = toy.Builder()
    x, v = b.input("primals_1", 2, 3), b.input("primals_2", 2, 3)
    grad = b.input("tangents_1", 2, 3)
    y = b.call(aten.sin.default, x)
    out = b.call(aten.mul.Tensor, y, v)
    grad_v = b.call(aten.mul.Tensor, grad, y)
    grad_y = b.call(aten.mul.Tensor, grad, v)
    grad_x = b.call(aten.mul.Tensor, grad_y, b.call(aten.cos.default, x))
    return b.joint([out], [grad_x, grad_v])


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    x, v, grad = (torch.randn(2, 3, generator=generator) for _ in range(3))
    return {"primals_1": x, "primals_2": v, "tangents_1": grad, "sin": x.sin(), "cos": x.cos()}


def test_what_the_backward_reads_is_named_in_graph_order(joint):
    assert values_read(joint) == ("primals_2", "sin", "cos")


def test_a_number_known_only_when_the_step_runs_is_refused(toy):
    b = toy.Builder(dynamic=True)
    x, grad = b.input("primals_1", "?", 2), b.input("tangents_1", 2)
    size = b.call(aten.sym_size.int, x, 0)
    joint = b.joint([x], [b.call(aten.expand.default, grad, [size, 2])])
    with pytest.raises(ValueError, match="the backward reads sym_size") as caught:
        values_read(joint)
    text = str(caught.value)
    assert "only graphs whose sizes are all known when they are compiled" in text
    assert "Compile with dynamic=False" in text


def test_the_partition_runs_the_function_on_what_was_kept(toy, joint, given):
    seen = []

    def run_backward(values):
        seen.append(values)
        return Replay.of(joint, values).gradients()

    with toy.untouched(joint.module):
        split = observed_partition(joint, values_read(joint), run_backward)
    x, v, grad = (given[name] for name in ("primals_1", "primals_2", "tangents_1"))
    out, *kept = split.forward(x, v)
    # AOTAutograd copies a backward; the function must stay the same one.
    grad_x, grad_v = copy.deepcopy(split.backward)(*kept, grad)

    torch.testing.assert_close(out, x.sin() * v)
    torch.testing.assert_close(grad_x, grad * v * x.cos())
    torch.testing.assert_close(grad_v, grad * x.sin())
    assert list(seen[0]) == ["primals_2", "sin", "cos", "tangents_1"]


def test_only_what_follows_from_a_change_is_run_again(joint, given):
    replay = Replay.of(joint, given)
    nodes = {node.name: node for node in joint.graph.nodes}
    sketched = torch.ones(2, 3)

    changed = replay.call(nodes["mul_1"], {nodes["sin"]: sketched})
    assert torch.equal(changed, given["tangents_1"])
    assert list(replay.after({nodes["mul_1"]: changed})) == [nodes["mul_1"]]

    found = replay.after({nodes["mul_2"]: sketched})
    assert list(found) == [nodes["mul_2"], nodes["mul_3"]]
    assert torch.equal(found[nodes["mul_3"]], given["cos"])
