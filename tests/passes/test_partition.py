"""Forward and backward exactly as the tags say, and where torch's partitioner alone fails."""

import sys

import pytest
import torch
from expecttest import assert_expected_inline
from functorch.compile import min_cut_rematerialization_partition

from passes import Action, Decision, Plan, _torch, apply_plan
from passes.joint import output_node
from passes.partition import kept_exactly, partition, partition_exact, random_nodes

aten = torch.ops.aten


def plan_of(*decisions):
    rows = [(name, action, codec[0] if codec else None) for name, action, *codec in decisions]
    return Plan(tuple(Decision(*row, 0, 0, 0.0) for row in rows), 0.0)


def names(nodes):
    return [node.name for node in nodes]


@pytest.fixture
def net(toy):
    """The function sin(x) * v of a parameter x, with the gradient of v, sketched by hand.

    An exact plan would rebuild the sine from the parameter for nothing.
    """
    b = toy.Builder()
    x, v = b.input("primals_1", 2, 4), b.input("primals_2", 2, 4)
    grad = b.input("tangents_1", 2, 4)
    y = b.call(aten.sin.default, x)
    out = b.call(aten.mul.Tensor, y, v)
    joint = b.joint([out], [None, b.call(aten.mul.Tensor, grad, y)], static=(0, 1))
    return apply_plan(joint, plan_of(("sin", Action.SKETCH, toy.Signed())))


def partition_by_tags_alone(joint):
    """Torch's partitioner on the tagged graph, without handing kept values over as outputs."""
    with _torch.partitioner_takes_graph_as_is():
        return min_cut_rematerialization_partition(
            joint.copy().module,
            None,
            num_fwd_outputs=joint.num_fwd_outputs,
            static_lifetime_input_indices=list(joint.static_input_indices),
        )


def test_seed_and_sketch_are_kept_and_the_input_is_untouched(toy, net):
    with toy.untouched(net.module):
        split = partition(net, None)
    assert_expected_inline(
        toy.text(split.forward.graph),
        """\
%primals_1: f32[2,4]
%primals_2: f32[2,4]
%randint: i64[1] = aten.randint.low(0, 4611686018427387904, [1])  # save
%select: i64[] = aten.select.int(%randint, 0, 0)  # recompute
%sin: f32[2,4] = aten.sin.default(%primals_1)
%remainder: i64[] = aten.remainder.Scalar(%select, 2)
%mul_2: i64[] = aten.mul.Tensor(%remainder, 2)
%rsub: i64[] = aten.rsub.Scalar(%mul_2, 1)
%mul_3: f32[2,4] = aten.mul.Tensor(%sin, %rsub)
%_to_copy: f16[2,4] = aten._to_copy.default(%mul_3, dtype=f16)  # save
%mul: f32[2,4] = aten.mul.Tensor(%sin, %primals_2)
return [%mul, %randint, %_to_copy]""",
    )
    assert_expected_inline(
        toy.text(split.backward.graph),
        """\
%randint: i64[1]
%_to_copy: f16[2,4]
%tangents_1: f32[2,4]
%select: i64[] = aten.select.int(%randint, 0, 0)  # recompute
%_to_copy_1: f32[2,4] = aten._to_copy.default(%_to_copy, dtype=f32)  # recompute
%remainder_1: i64[] = aten.remainder.Scalar(%select, 2)  # recompute
%mul_4: i64[] = aten.mul.Tensor(%remainder_1, 2)  # recompute
%rsub_1: i64[] = aten.rsub.Scalar(%mul_4, 1)  # recompute
%mul_5: f32[2,4] = aten.mul.Tensor(%_to_copy_1, %rsub_1)  # recompute
%mul_1: f32[2,4] = aten.mul.Tensor(%tangents_1, %mul_5)
return [None, %mul_1]""",
    )
    assert names(split.kept_nodes()) == ["randint", "_to_copy"]
    assert split.num_fwd_outputs == 1


def test_tags_alone_do_not_keep_a_sketch(net):
    """The trap: no forward output depends on a sketch, and its tag is ignored (torch 2.13).

    The seed itself is safe in 2.13, because dead code elimination spares random calls and so
    makes them part of the forward; the encoding is done once more in the backward, from an
    exact value that the plan did not keep.
    """
    forward, backward = partition_by_tags_alone(net)
    kept = names(output_node(forward.graph).args[0])[1:]
    assert kept == ["primals_1", "randint"]
    (encode,) = (node for node in backward.graph.nodes if node.name == "_to_copy")
    assert (encode.target, encode.meta["val"].dtype) == (aten._to_copy.default, torch.float16)
    assert encode.meta["recompute"] == _torch.MUST_SAVE
    assert random_nodes(backward.graph) == []


def test_no_random_call_is_in_the_backward(toy):
    """Whatever the number of sites, a seed is drawn once: drawn twice, gradients are noise."""
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    value, gradient, sites = x, grad, []
    for _ in range(3):
        value = b.call(aten.sin.default, value)
        gradient = b.call(aten.mul.Tensor, gradient, value)
        sites.append((value.name, Action.SKETCH, toy.Signed()))
    joint = b.joint([value], [gradient])
    split = partition(apply_plan(joint, plan_of(*sites)), None)
    assert names(random_nodes(split.forward.graph)) == ["randint"]
    assert random_nodes(split.backward.graph) == []
    assert names(split.kept_nodes()) == ["randint", "_to_copy", "_to_copy_1", "_to_copy_2"]


def test_forward_and_backward_see_the_same_seed(net):
    split = partition(net, None)
    x, v, grad = torch.ones(2, 4), torch.randn(2, 4), torch.randn(2, 4)
    expected = grad * x.sin().half().float()
    for _ in range(20):
        out, *kept = split.forward(x, v)
        assert torch.equal(out, x.sin() * v)
        _, gradient = split.backward(*kept, grad)
        assert torch.equal(gradient, expected)


def test_the_mean_over_many_steps_is_the_exact_gradient(toy):
    """A gradient decoded with another seed than it was encoded with has another mean."""
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    y = b.call(aten.sin.default, x)
    joint = b.joint([y], [b.call(aten.mul.Tensor, grad, y)])
    split = partition(apply_plan(joint, plan_of(("sin", Action.SKETCH, toy.Coin()))), None)
    x, grad = torch.arange(1.0, 9.0).reshape(2, 4), torch.ones(2, 4)
    seen = set()
    for _ in range(40):
        _, *kept = split.forward(x)
        (gradient,) = split.backward(*kept, grad)
        seen.add(tuple(gradient.flatten().tolist()))
    # The two outcomes have probability one half each: their mean is the expectation.
    assert len(seen) == 2
    assert torch.allclose(torch.tensor(list(seen)).mean(0), x.sin().flatten())


def test_kept_values_that_are_outputs_too_are_handed_over_once(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    y = b.call(aten.mm.default, x, b.input("primals_2", 4, 4))
    joint = b.joint([y, x], [b.call(aten.mul.Tensor, grad, y), None])
    split = partition(apply_plan(joint, plan_of(("mm", Action.KEEP))), None)
    assert names(output_node(split.forward.graph).args[0]) == ["mm", "primals_1", "mm"]
    assert names(split.kept_nodes()) == ["mm"]


def test_descriptions_of_the_outputs_keep_their_places(toy):
    joint = toy.capture(
        lambda x, w: (torch.sin(x @ w), x * 2),
        torch.randn(2, 4),
        torch.randn(4, 4, requires_grad=True),
    )
    plan = plan_of(("cos", Action.KEEP), ("t", Action.RECOMPUTE))
    split = partition(apply_plan(joint, plan), None)
    assert "cos" in names(split.kept_nodes())
    output = output_node(split.forward.graph)
    expected = [type(d).__name__ for d in output_node(joint.graph).meta["desc"][:2]]
    assert expected == ["PlainAOTOutput", "PlainAOTOutput"]
    assert [type(d).__name__ for d in output.meta["desc"]][:2] == expected
    assert len(output.meta["desc"]) == len(output.args[0])
    assert None not in output.meta["desc"][:2]


def test_the_users_random_ops_stay_in_the_forward(toy):
    joint = toy.capture(
        lambda x, w: torch.nn.functional.dropout(x @ w, 0.5),
        torch.randn(2, 4),
        torch.randn(4, 4, requires_grad=True),
    )
    (draw,) = random_nodes(joint.graph)
    kept = [(item.name, Action.KEEP) for item in draw.users if item.meta["val"].dtype == torch.bool]
    planned = apply_plan(joint, plan_of(*kept, ("t", Action.RECOMPUTE)))
    for split in (partition(planned, None), partition_exact(joint, None)):
        assert names(random_nodes(split.forward.graph)) == [draw.name]
        assert random_nodes(split.backward.graph) == []


def test_arguments_of_the_partitioner_are_passed_through(net):
    with pytest.raises(TypeError, match="no_such_argument"):
        partition(net, None, no_such_argument=1)
    with pytest.raises(TypeError, match="no_such_argument"):
        partition_exact(net, None, no_such_argument=1)
    with pytest.raises(TypeError, match="no_such_argument"):
        kept_exactly(net, None, no_such_argument=1)
    assert len(partition(net, None, compiler="inductor").kept_nodes()) == 2


def test_the_exact_partition_is_torchs_own(toy):
    joint = toy.capture(
        lambda x, w, v: torch.relu(x @ w) * v,
        torch.randn(2, 3),
        torch.randn(3, 4, requires_grad=True),
        torch.randn(4, requires_grad=True),
        static=(1, 2),
    )
    with toy.untouched(joint.module):
        split = partition_exact(joint, None)
    stock = min_cut_rematerialization_partition(
        joint.copy().module, None, num_fwd_outputs=1, static_lifetime_input_indices=[1, 2]
    )
    assert toy.text(split.forward.graph) == toy.text(stock[0].graph)
    assert toy.text(split.backward.graph) == toy.text(stock[1].graph)
    assert split.num_fwd_outputs == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.relu(x @ w),
        lambda x, w: torch.nn.functional.dropout(x @ w, 0.5).sin(),
        lambda x, w: torch.softmax(x @ w, 1) * (x @ w).exp(),
        lambda x, w: x @ w + 1,
    ],
)
def test_what_is_kept_exactly_is_what_the_exact_partition_keeps(toy, function):
    joint = toy.capture(
        function, torch.randn(2, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    )
    expected = partition_exact(joint, None).kept_nodes()
    with toy.untouched(joint.module):
        kept = kept_exactly(joint, None)
    assert names(kept) == names(expected) != []
    assert [n.meta["val"].shape for n in kept] == [n.meta["val"].shape for n in expected]


def test_a_value_that_no_gradient_is_computed_from_is_not_kept_exactly(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2), b.input("tangents_1", 2)
    read, unread = b.call(aten.sin.default, x), b.call(aten.cos.default, x)
    for value in (read, unread):
        value.meta["recompute"] = _torch.MUST_SAVE
    joint = b.joint([read, unread], [b.call(aten.mul.Tensor, grad, read)])
    assert names(kept_exactly(joint, None)) == ["sin"]
    assert names(partition_exact(joint, None).kept_nodes()) == ["sin"]


def test_the_size_of_a_value_is_kept_exactly_without_the_value(toy):
    b = toy.Builder(dynamic=True)
    x, grad = b.input("primals_1", "n", 4), b.input("tangents_1", "n", 4)
    sized, read = b.call(aten.sin.default, x), b.call(aten.cos.default, x)
    for value in (sized, read):
        value.meta["recompute"] = _torch.MUST_SAVE
    size = b.call(aten.sym_size.int, sized, 0)
    scaled = b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, grad, size), read)
    joint = b.joint([sized, read], [scaled])
    kept = partition_exact(joint, None).kept_nodes()
    expected = [n for n in kept if isinstance(n.meta["val"], torch.Tensor)]
    assert names(kept_exactly(joint, None)) == names(expected) == ["cos"]


def test_what_the_backward_writes_is_kept_exactly(toy):
    b = toy.Builder()
    x, grad, buffer = b.input("primals_1", 2), b.input("tangents_1", 2), b.input("primals_2", 2)
    y = b.call(aten.sin.default, x)
    y.meta["recompute"] = _torch.MUST_SAVE
    write = b.call(aten.copy_.default, buffer, y)
    write.meta["partitioner_tag"] = "must_be_in_backward"
    joint = b.joint([y], [b.call(aten.neg.default, grad), None])
    expected = partition_exact(joint, None).kept_nodes()
    assert names(kept_exactly(joint, None)) == names(expected)
    assert "sin" in names(expected)


def test_a_graph_that_draws_again_is_partitioned_whole(toy, monkeypatch):
    """The state of the generator is kept as well, which torch adds when it has both graphs."""
    chosen = []
    monkeypatch.setattr(
        sys.modules[kept_exactly.__module__],
        "min_cut_rematerialization_partition",
        lambda module, *_, **__: chosen.append(module) or (module, module),
    )
    b = toy.Builder()
    x, grad = b.input("primals_1", 2), b.input("tangents_1", 2)
    noise = b.call(aten.rand_like.default, x)
    joint = b.joint([b.call(aten.mul.Tensor, x, noise)], [b.call(aten.mul.Tensor, grad, noise)])
    assert names(kept_exactly(joint, None)) == ["rand_like"]
    assert chosen == []
    noise.meta["recompute"] = _torch.MUST_RECOMPUTE
    kept_exactly(joint, None)
    assert len(chosen) == 1


def test_the_graphs_share_no_metadata(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2), b.input("tangents_1", 2)
    joint = b.joint([b.call(aten.sin.default, x)], [b.call(aten.mul.Tensor, grad, x)])
    split = partition(apply_plan(joint, plan_of(("primals_1", Action.KEEP))), None)
    metas = [id(n.meta) for m in (split.forward, split.backward) for n in m.graph.nodes]
    assert len(set(metas)) == len(metas)


def test_a_graph_without_a_backward_has_nothing_to_keep(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2)
    split = partition(b.joint([b.call(aten.sin.default, x)], [None]), None)
    assert names(split.kept_nodes()) == []
    assert names(split.backward.graph.nodes) == ["output"]
    assert kept_exactly(b.joint([x], [None]), None) == []


def test_the_exact_partition_takes_apart_what_was_traced_whole(toy):
    joint = toy.capture(
        lambda x, w: torch.sigmoid(x @ w), torch.randn(2, 3), torch.randn(3, 4, requires_grad=True)
    )
    table = {torch.ops.aten.sigmoid_backward.default: lambda grad, y: grad * (y * (1 - y))}
    with toy.untouched(joint.module):
        split = partition_exact(joint, None, table)
    targets = {node.target for node in split.backward.graph.nodes}
    assert torch.ops.aten.sigmoid_backward.default not in targets
    assert torch.ops.aten.mul.Tensor in targets
