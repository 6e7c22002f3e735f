"""Every check of the verifier, on a graph that breaks it."""

import operator

import pytest
import torch

from passes import JointGraph, VerifierError, _torch, partition
from passes.joint import output_node
from passes.verify import verify_absent, verify_joint, verify_partition, verify_planned

aten = torch.ops.aten


@pytest.fixture
def joint(toy):
    b = toy.Builder()
    x, w, grad = b.input("primals_1", 2, 3), b.input("primals_2", 3, 4), b.input("tangents_1", 2, 4)
    h = b.call(aten.mm.default, x, w)
    y = b.call(aten.sin.default, h)
    grad_h = b.call(aten.mul.Tensor, grad, b.call(aten.cos.default, h))
    return b.joint([y], [None, b.call(aten.mm.default, b.call(aten.t.default, x), grad_h)])


def node_of(joint, name):
    return next(node for node in joint.graph.nodes if node.name == name)


def set_output(joint, index, value):
    output = output_node(joint.graph)
    outputs = list(output.args[0])
    outputs[index] = value
    output.args = (outputs,)


def error_of(check, *args):
    with pytest.raises(VerifierError) as caught:
        check(*args)
    return str(caught.value)


def test_a_failed_check_is_a_bug_of_ours():
    assert issubclass(VerifierError, AssertionError)


class TestJoint:
    """A pass keeps the interface of the joint graph, and every value is typed."""

    def test_a_copy_is_sound(self, toy, joint):
        with toy.untouched(joint.module):
            verify_joint(joint, joint.copy(), "copy")

    def test_a_value_that_is_read_must_have_a_fake_value(self, joint):
        after = joint.copy()
        del node_of(after, "cos").meta["val"]
        assert error_of(verify_joint, joint, after, "expose") == (
            "after pass 'expose': cos (aten.cos.default) has no meta['val']"
        )

    def test_inputs_stay(self, joint):
        after = joint.copy()
        with after.graph.inserting_before(next(iter(after.graph.nodes))):
            after.graph.placeholder("primals_9").meta["val"] = None
        assert error_of(verify_joint, joint, after, "expose") == (
            "after pass 'expose': inputs: expected ['primals_1', 'primals_2', 'tangents_1'], "
            "got ['primals_9', 'primals_1', 'primals_2', 'tangents_1']"
        )

    def test_the_number_of_outputs_stays(self, joint):
        after = joint.copy()
        output = output_node(after.graph)
        output.args = (output.args[0][:2],)
        assert error_of(verify_joint, joint, after, "sketch") == (
            "after pass 'sketch': number of outputs: expected 3, got 2"
        )

    @pytest.mark.parametrize(
        ("change", "got"),
        [
            (lambda x: x.double(), "(torch.Size([3, 4]), torch.float64, device(type='cpu'))"),
            (lambda x: x[:2], "(torch.Size([2, 4]), torch.float32, device(type='cpu'))"),
            (lambda x: x.to("meta"), "(torch.Size([3, 4]), torch.float32, device(type='meta'))"),
        ],
    )
    def test_outputs_keep_shape_dtype_and_device(self, joint, change, got):
        after = joint.copy()
        gradient = node_of(after, "mm_1")
        gradient.meta["val"] = change(gradient.meta["val"])
        assert error_of(verify_joint, joint, after, "sketch") == (
            "after pass 'sketch': output 2 (mm_1): expected "
            f"(torch.Size([3, 4]), torch.float32, device(type='cpu')), got {got}"
        )

    def test_a_gradient_must_not_get_lost(self, joint):
        after = joint.copy()
        set_output(after, 2, None)
        assert "'sketch': output 2 (mm_1): expected (torch.Size([3, 4])" in error_of(
            verify_joint, joint, after, "sketch"
        )

    def test_a_node_must_not_be_read_before_it_is_made(self, joint):
        after = joint.copy()
        node_of(after, "sin").append(node_of(after, "mm"))
        with pytest.raises((VerifierError, RuntimeError), match="was used before it has been"):
            verify_joint(joint, after, "sketch")


class TestPlanned:
    """The backward reads inputs, kept values and recomputed ones."""

    def test_a_value_without_a_tag_must_not_be_read(self, joint):
        assert error_of(verify_planned, joint, "sketch") == (
            "after pass 'sketch': mul (aten.mul.Tensor) reads cos, "
            "which is neither kept nor recomputed"
        )

    @pytest.mark.parametrize("tag", [_torch.MUST_SAVE, _torch.MUST_RECOMPUTE])
    def test_either_tag_will_do(self, joint, tag):
        for name in ("cos", "t"):
            node_of(joint, name).meta["recompute"] = tag
        node_of(joint, "mm").meta["recompute"] = _torch.MUST_SAVE
        verify_planned(joint, "sketch")

    def test_what_is_remade_reads_nothing_that_is_gone(self, joint):
        for name in ("cos", "t"):
            node_of(joint, name).meta["recompute"] = _torch.MUST_RECOMPUTE
        assert error_of(verify_planned, joint, "sketch") == (
            "after pass 'sketch': cos (aten.cos.default) reads mm, "
            "which is neither kept nor recomputed"
        )

    def test_a_tag_for_a_preference_will_not(self, joint):
        policy = torch.utils.checkpoint.CheckpointPolicy.PREFER_SAVE
        for name in ("cos", "t"):
            node_of(joint, name).meta["recompute"] = policy
        assert "reads cos, which is neither" in error_of(verify_planned, joint, "sketch")

    def test_inputs_constants_and_sizes_are_there_anyway(self, toy):
        b = toy.Builder(dynamic=True)
        x, grad = b.input("primals_1", "n", 4), b.input("tangents_1", "n", 4)
        size = b.call(aten.sym_size.int, x, 0)
        scaled = b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, grad, x), size)
        b.graph.owning_module = torch.nn.Module()
        b.graph.owning_module.register_buffer("constant", torch.ones(4))
        with b.graph.inserting_before(scaled):
            constant = b.graph.get_attr("constant")
        constant.meta["val"] = b.mode.from_tensor(torch.ones(4))
        output = b.graph.output([x, b.call(aten.mul.Tensor, scaled, constant)])
        module = torch.fx.GraphModule(b.graph.owning_module, output.graph)
        verify_planned(JointGraph(module, 1), "sketch")

    def test_a_tuple_needs_a_tag_as_well(self, toy):
        b = toy.Builder()
        x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2)
        pair = b.call(aten.var_mean.correction, x, [1])
        item = b.graph.call_function(operator.getitem, (pair, 1))
        item.meta.update(val=grad.meta["val"], partitioner_tag="must_be_in_backward")
        joint = b.joint([x], [b.call(aten.mul.Tensor, grad, item)])
        assert "getitem (<built-in function getitem>) reads var_mean, which" in error_of(
            verify_planned, joint, "sketch"
        )


class TestPartition:
    """The forward keeps what is tagged, and the backward draws nothing."""

    @pytest.fixture
    def tagged(self, joint):
        node_of(joint, "cos").meta["recompute"] = _torch.MUST_SAVE
        node_of(joint, "t").meta["recompute"] = _torch.MUST_RECOMPUTE
        return joint

    @pytest.fixture
    def split(self, tagged):
        return partition(tagged, None)

    def test_tagged_values_and_inputs_are_kept(self, toy, tagged, split):
        assert [node.name for node in split.kept_nodes()] == ["primals_1", "cos"]
        with toy.untouched(split.forward, split.backward, tagged.module):
            verify_partition(tagged, split)

    def test_a_value_that_the_plan_did_not_keep_must_not_be_kept(self, tagged, split):
        output = output_node(split.forward.graph)
        (mm,) = split.forward.graph.find_nodes(op="call_function", target=aten.mm.default)
        output.args = ((*output.args[0], mm),)
        assert error_of(verify_partition, tagged, split) == (
            "after pass 'partition': mm is kept, but the plan did not keep it"
        )

    def test_a_size_may_be_kept_untagged(self, toy):
        b = toy.Builder(dynamic=True)
        x, grad = b.input("primals_1", "n", 4), b.input("tangents_1", "n", 4)
        size = b.call(aten.sym_size.int, x, 0)
        joint = b.joint([x], [b.call(aten.mul.Tensor, grad, size)])
        split = partition(joint, None)
        assert [node.name for node in split.kept_nodes()] == ["sym_size"]
        verify_partition(joint, split)

    def test_the_backward_must_not_draw(self, tagged, split):
        first = next(n for n in split.backward.graph.nodes if n.op == "call_function")
        with split.backward.graph.inserting_before(first):
            split.backward.graph.call_function(aten.randint.low, (0, 2, [1]))
        assert error_of(verify_partition, tagged, split) == (
            "after pass 'partition': the backward draws random numbers: [randint_low]"
        )

    def test_forward_outputs_keep_shape_dtype_and_device(self, tagged, split):
        sine = output_node(split.forward.graph).args[0][0]
        sine.meta = {"val": sine.meta["val"].half()}
        assert error_of(verify_partition, tagged, split) == (
            "after pass 'partition': forward output 0: expected "
            "(torch.Size([2, 4]), torch.float32, device(type='cpu')), got "
            "(torch.Size([2, 4]), torch.float16, device(type='cpu'))"
        )


def test_calls_that_should_be_gone_are_listed(joint):
    verify_absent(joint.graph, [aten.exp.default], "lower")
    assert error_of(verify_absent, joint.graph, [aten.mm.default, aten.sin.default], "lower") == (
        "after pass 'lower': still present: [('mm', 'aten.mm.default'), "
        "('sin', 'aten.sin.default'), ('mm_1', 'aten.mm.default')]"
    )
