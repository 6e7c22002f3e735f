"""Which values follow linearly from others, and what plan and graph make of it."""

import dataclasses

import pytest
import torch
from expecttest import assert_expected_inline

from passes import Action
from passes.derive import Derivation, FeedsRelation, find_derivations, uses_served
from passes.estimate import estimate_costs
from passes.plan import make_plan
from passes.sketch import apply_plan

aten = torch.ops.aten


class Lab:
    """A graph with one activation ``h`` that has a linear use, and what is made from it."""

    def __init__(self, toy, *size):
        self.b = toy.Builder()
        self.x = self.b.input("primals_1", *(size or (2, 3, 4, 4)))
        self.grad = self.b.input("tangents_1", *(size or (2, 3, 4, 4)))
        self.h = self.b.call(aten.sin.default, self.x)
        self.uses = {}

    def use(self, value, grad=None):
        """A linear use: a product with a gradient of the same size."""
        grad = self.grad if grad is None else grad
        user = self.b.call(aten.mul.Tensor, grad, value)
        self.uses.setdefault(value, []).append(user)
        return user

    def found(self, *, fixed=()):
        users = {value: tuple(own) for value, own in self.uses.items()}
        joint = self.b.joint([self.h], [u for own in users.values() for u in own])
        found = find_derivations(joint, users, frozenset(fixed), FeedsRelation(joint, users))
        return {node.name: derivation for node, derivation in found.items()}


def derived(lab, value, **kwargs):
    """The derivation of a value that has a linear use beside that of ``h``."""
    lab.use(lab.h)
    gradient = lab.grad
    if value.meta["val"].shape != gradient.meta["val"].shape:
        gradient = lab.b.input("tangents_2", *value.meta["val"].shape)
    if value.meta["val"].dtype != torch.float32:
        gradient = lab.b.call(aten._to_copy.default, gradient, dtype=value.meta["val"].dtype)
    lab.use(value, gradient)
    return lab.found(**kwargs).get(value.name)


def per_channel(lab):
    return lab.b.call(aten.mean.dim, lab.h, [0, 2, 3], True)


# "h" is the activation, "c" a number for each of its channels.
AFFINE = {
    "add-constant": (aten.add.Tensor, "h", 2.0),
    "add-per-channel": (aten.add.Tensor, "h", "c"),
    "sub-from-per-channel": (aten.sub.Tensor, "c", "h"),
    "mul-constant": (aten.mul.Tensor, "h", 0.5),
    "mul-per-channel": (aten.mul.Tensor, "h", "c"),
    "mul-by-it": (aten.mul.Tensor, "c", "h"),
    "div-per-channel": (aten.div.Tensor, "h", "c"),
    "neg": (aten.neg.default, "h"),
    "view": (aten.view.default, "h", [2, 48]),
    "permute": (aten.permute.default, "h", [0, 2, 3, 1]),
    "slice": (aten.slice.Tensor, "h", 1, 0, 2),
    "expand": (aten.expand.default, "h", [2, 3, 4, 4]),
    "pad": (aten.constant_pad_nd.default, "h", [1, 1], 0.5),
    "clone": (aten.clone.default, "h"),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_ops_are_linear_in_the_activation_and_need_the_rest_exactly(toy, name):
    lab = Lab(toy)
    channels = per_channel(lab)
    target, *args = AFFINE[name]
    args = [{"h": lab.h, "c": channels}.get(arg, arg) if type(arg) is str else arg for arg in args]
    value = lab.b.call(target, *args)
    exact = ("mean",) if channels in args else ()
    assert derived(lab, value) == Derivation(("sin",), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_between_floating_dtypes(toy, dtype):
    lab = Lab(toy)
    value = lab.b.call(aten._to_copy.default, lab.h, dtype=dtype)
    assert derived(lab, value) == Derivation(("sin",), ())


def test_a_selection_by_a_mask_is_linear_in_both_branches(toy):
    lab = Lab(toy)
    mask, other = lab.b.call(aten.gt.Scalar, lab.x, 0), lab.b.call(aten.cos.default, lab.x)
    value = lab.b.call(aten.where.self, mask, lab.h, other)
    assert derived(lab, value) == Derivation(("sin", "cos"), ("gt",))


def test_a_concatenation_is_linear_in_all_its_parts(toy):
    lab = Lab(toy)
    other = lab.b.call(aten.cos.default, lab.x)
    value = lab.b.call(aten.cat.default, [lab.h, other], 1)
    assert derived(lab, value) == Derivation(("sin", "cos"), ())


def test_parameters_and_the_batch_are_exact_parts(toy):
    lab = Lab(toy)
    value = lab.b.call(aten.cat.default, [lab.h, lab.x], 1)
    assert derived(lab, value, fixed=[lab.x]) == Derivation(("sin",), ("primals_1",))


def product_of_two(lab):
    return lab.b.call(aten.mul.Tensor, lab.h, lab.b.call(aten.cos.default, lab.x))


def gate(lab):
    return lab.b.call(aten.mul.Tensor, lab.h, lab.b.call(aten.sigmoid.default, lab.h))


def square(lab):
    return lab.b.call(aten.mul.Tensor, lab.h, lab.h)


def divisor(lab):
    return lab.b.call(aten.div.Tensor, per_channel(lab), lab.h)


def relu_without_a_mask(lab):
    return lab.b.call(aten.relu.default, lab.h)


def matrix_product(lab):
    matrices = lab.b.call(aten.view.default, lab.h, [6, 4, 4])
    return lab.b.call(aten.bmm.default, matrices, matrices)


@pytest.mark.parametrize(
    "make",
    [gate, product_of_two, square, divisor, per_channel, relu_without_a_mask, matrix_product],
)
def test_what_is_not_affine_or_not_cheap_is_not_derived(toy, make):
    lab = Lab(toy)
    assert derived(lab, make(lab)) is None


def test_an_input_that_is_at_hand_is_no_source(toy):
    lab = Lab(toy)
    value = lab.b.call(aten.neg.default, lab.x)
    assert derived(lab, value, fixed=[lab.x]) is None


def test_a_relu_is_linear_given_the_mask_that_its_backward_reads(toy):
    lab = Lab(toy)
    relu = lab.b.call(aten.relu.default, lab.h)
    alias = lab.b.call(aten.alias.default, lab.b.call(aten.alias.default, relu))
    lab.b.call(aten.le.Scalar, alias, 1)
    mask = lab.b.call(aten.le.Scalar, alias, 0)
    derivation = derived(lab, relu)
    assert (derivation.linear, derivation.exact) == (("sin",), (mask.name,))
    x = torch.tensor([-1.0, 0.0, 2.0])
    noisy = torch.tensor([5.0, 6.0, 7.0])
    assert torch.equal(derivation.rebuild(x <= 0, noisy), torch.tensor([0.0, 0.0, 7.0]))


def test_a_mask_in_the_backward_is_none_to_derive_a_relu_with(toy):
    lab = Lab(toy)
    relu = lab.b.call(aten.relu.default, lab.h)
    late = lab.b.call(aten.add.Tensor, relu, lab.grad)
    lab.b.call(aten.le.Scalar, late, 0)
    assert derived(lab, relu) is None


def clamp(lab, low, high, *bounds):
    inner = lab.b.call(aten.clamp_min.default, lab.h, low)
    value = lab.b.call(aten.clamp_max.default, inner, high)
    for target, bound in bounds:
        lab.b.call(target, lab.h, bound)
    return value


def test_a_clamp_is_linear_given_which_elements_are_at_which_bound(toy):
    lab = Lab(toy)
    value = clamp(lab, -1.0, 6.0, (aten.le.Scalar, -1.0), (aten.ge.Scalar, 6.0))
    derivation = derived(lab, value)
    assert (derivation.linear, derivation.exact) == (("sin",), ("le", "ge"))
    x = torch.tensor([-2.0, 0.5, 6.0, 7.0])
    rebuilt = derivation.rebuild(x <= -1, x >= 6, torch.tensor([9.0, 9.0, 9.0, 9.0]))
    assert torch.equal(rebuilt, torch.tensor([-1.0, 9.0, 6.0, 6.0]))


@pytest.mark.parametrize(
    "bounds",
    [
        (),
        ((aten.le.Scalar, -1.0),),
        ((aten.le.Scalar, -1.0), (aten.ge.Scalar, 5.0)),
        ((aten.lt.Scalar, -1.0), (aten.ge.Scalar, 6.0)),
    ],
)
def test_a_clamp_without_both_its_masks_is_not_derived(toy, bounds):
    lab = Lab(toy)
    assert derived(lab, clamp(lab, -1.0, 6.0, *bounds)) is None


def test_what_nothing_linear_needs_is_not_derived(toy):
    lab = Lab(toy)
    lab.b.call(aten.neg.default, lab.h)
    lab.use(lab.h)
    assert lab.found() == {}


def test_values_on_the_way_are_derived_as_well(toy):
    lab = Lab(toy)
    doubled = lab.b.call(aten.mul.Tensor, lab.h, 2.0)
    value = lab.b.call(aten.view.default, doubled, [2, 48])
    lab.use(lab.h)
    lab.use(value, lab.b.input("tangents_2", 2, 48))
    assert lab.found() == {"mul": Derivation(("sin",), ()), "view": Derivation(("mul",), ())}


def test_a_chain_of_values_with_uses_ends_after_two(toy):
    lab = Lab(toy)
    value = lab.h
    lab.use(value)
    for _ in range(4):
        value = lab.b.call(aten.neg.default, value)
        lab.use(value)
    # The third of the chain is a source of its own, and the fourth is derived from it.
    assert lab.found() == {
        "neg": Derivation(("sin",), ()),
        "neg_1": Derivation(("neg",), ()),
        "neg_3": Derivation(("neg_2",), ()),
    }


def test_a_use_that_feeds_another_has_a_sketch_of_its_own(toy):
    lab = Lab(toy)
    value = lab.b.call(aten.neg.default, lab.h)
    first = lab.use(value)
    lab.use(lab.h, lab.b.call(aten.add.Tensor, first, 1.0))
    assert lab.found() == {}


def test_uses_beside_each_other_share_a_sketch(toy):
    lab = Lab(toy)
    value = lab.b.call(aten.neg.default, lab.h)
    lab.use(value)
    lab.use(lab.h)
    assert lab.found() == {"neg": Derivation(("sin",), ())}


def test_two_values_of_one_source_whose_uses_feed_each_other_do_not_share_it(toy):
    # As in DenseNet: each block normalises the same features anew.
    lab = Lab(toy)
    one = lab.b.call(aten.mul.Tensor, lab.h, 2.0)
    two = lab.b.call(aten.mul.Tensor, lab.h, 3.0)
    second = lab.use(two)
    lab.use(one, second)
    found = lab.found()
    assert found == {"mul": Derivation(("sin",), ())}


def test_a_sum_meets_each_of_its_sources(toy):
    lab = Lab(toy)
    other = lab.b.call(aten.cos.default, lab.x)
    total = lab.b.call(aten.add.Tensor, lab.h, other)
    last = lab.use(total)
    lab.use(other, last)
    lab.use(lab.h)
    # A use of the sum feeds one of its second part.
    assert lab.found() == {}


def test_uses_served_are_those_of_a_value_and_of_what_is_derived_from_it(toy):
    lab = Lab(toy)
    one = lab.b.call(aten.neg.default, lab.h)
    two = lab.b.call(aten.neg.default, one)
    own, last = lab.use(lab.h), lab.use(two)
    users = {value: tuple(own) for value, own in lab.uses.items()}
    joint = lab.b.joint([lab.h], [own, last])
    found = find_derivations(joint, users, frozenset(), FeedsRelation(joint, users))
    served = uses_served(found, users)
    assert served == {"sin": (own, last), "neg": (last,), "neg_1": (last,)}


@pytest.fixture
def net(toy):
    """An activation and its relu, both with a linear use; its mask comes behind it."""
    b = toy.Builder()
    x, w = b.input("primals_1", 4, 8), b.input("primals_2", 8, 8)
    grad, other = b.input("tangents_1", 4, 8), b.input("tangents_2", 4, 8)
    h = b.call(aten.mm.default, x, w)
    scaled = b.call(aten.mul.Tensor, h, 3.0)
    relu = b.call(aten.relu.default, scaled)
    mask = b.call(aten.le.Scalar, relu, 0)
    gradients = [b.call(aten.mul.Tensor, grad, relu), b.call(aten.mul.Tensor, grad, h)]
    masked = b.call(aten.where.ScalarSelf, mask, 0.0, other)
    return b.joint([relu], [*gradients, masked], static=(1,))


def test_a_plan_sketches_the_source_and_derives_the_rest(toy, net):
    costs = estimate_costs(net, toy.rules(toy.Signed()))
    by_name = {value.node: value for value in costs.values}
    assert by_name["relu"].derivation.linear == ("mul",)
    assert by_name["relu"].derivation.exact == ("le",)
    assert by_name["mul"].derivation == Derivation(("mm",), ())
    plan = make_plan(costs, 0.0)
    actions = {d.node: d.action for d in plan.decisions if d.nbytes}
    assert actions == {
        "mm": Action.SKETCH,
        "mul": Action.DERIVE,
        "relu": Action.DERIVE,
        "le": Action.PACK,
    }
    noise = {d.node: d.noise for d in plan.decisions}
    assert noise["relu"] == noise["mul"] == noise["mm"] > 0


def test_stand_ins_are_made_in_the_order_in_which_they_depend(toy, net):
    costs = estimate_costs(net, toy.rules(toy.Half()))
    with toy.untouched(net.module):
        planned = apply_plan(net, make_plan(costs, 0.0))
    assert_expected_inline(
        toy.text(planned.graph),
        """\
%primals_1: f32[4,8]
%primals_2: f32[8,8]
%tangents_1: f32[4,8]
%tangents_2: f32[4,8]
%mm: f32[4,8] = aten.mm.default(%primals_1, %primals_2)
%_to_copy: f16[4,8] = aten._to_copy.default(%mm, dtype=f16)  # save
%mul: f32[4,8] = aten.mul.Tensor(%mm, 3.0)
%relu: f32[4,8] = aten.relu.default(%mul)
%le: b8[4,8] = aten.le.Scalar(%relu, 0)
%view: b8[16,2] = aten.view.default(%le, [-1, 2])
%_to_copy_1: u8[16,2] = aten._to_copy.default(%view, dtype=u8)
%select: u8[16] = aten.select.int(%_to_copy_1, 1, 0)
%select_1: u8[16] = aten.select.int(%_to_copy_1, 1, 1)
%mul_3: u8[16] = aten.mul.Tensor(%select_1, 2)
%add: u8[16] = aten.add.Tensor(%select, %mul_3)  # save
%_to_copy_2: f32[4,8] = aten._to_copy.default(%_to_copy, dtype=f32)  # recompute
%mul_4: f32[4,8] = aten.mul.Tensor(%_to_copy_2, 3.0)  # recompute
%bitwise_and: u8[16] = aten.bitwise_and.Scalar(%add, 1)  # recompute
%rshift: u8[16] = aten.__rshift__.Scalar(%add, 1)  # recompute
%stack: u8[16,2] = aten.stack.default([%bitwise_and, %rshift], 1)  # recompute
%view_1: u8[4,8] = aten.view.default(%stack, [4, 8])  # recompute
%_to_copy_3: b8[4,8] = aten._to_copy.default(%view_1, dtype=b8)  # recompute
%scalar_tensor: f32[] = aten.scalar_tensor.default(0.0, dtype=f32)  # recompute
%where_1: f32[4,8] = aten.where.self(%_to_copy_3, %scalar_tensor, %mul_4)  # recompute
%mul_1: f32[4,8] = aten.mul.Tensor(%tangents_1, %where_1)
%_to_copy_4: f32[4,8] = aten._to_copy.default(%_to_copy, dtype=f32)  # recompute
%mul_2: f32[4,8] = aten.mul.Tensor(%tangents_1, %_to_copy_4)
%where: f32[4,8] = aten.where.ScalarSelf(%_to_copy_3, 0.0, %tangents_2)
return [%relu, %mul_1, %mul_2, %where]""",
    )
    inputs = [torch.randint(-4, 5, size).float() for size in ((4, 8), (8, 8), (4, 8), (4, 8))]
    # Small integers fit in half precision: what is rebuilt is exact.
    expected = torch.fx.Interpreter(net.module).run(*inputs)
    got = torch.fx.Interpreter(planned.module).run(*inputs)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_without_a_codec_that_fits_nothing_is_sketched(toy, net):
    costs = estimate_costs(net, toy.rules(dataclasses.replace(toy.Coin(), limit=9)))
    plan = make_plan(costs, 0.0)
    assert Action.SKETCH not in {d.action for d in plan.decisions}
    inputs = [torch.randn(size) for size in ((4, 8), (8, 8), (4, 8), (4, 8))]
    planned = apply_plan(net, plan)
    expected = torch.fx.Interpreter(net.module).run(*inputs)
    got = torch.fx.Interpreter(planned.module).run(*inputs)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
