"""What each way to have a forward value costs, and which ways there are."""

import operator

import pytest
import torch

from passes import LinearUse
from passes.estimate import estimate_costs
from passes.joint import hinted_shape

aten = torch.ops.aten


def costs_of(joint, rules, must_recompute=()):
    return {value.node: value for value in estimate_costs(joint, rules, must_recompute).values}


@pytest.fixture
def net(toy):
    """The function (x @ w) * v, with the gradients of w and v; the product is the activation."""
    b = toy.Builder()
    x, w, v = b.input("primals_1", 8, 3), b.input("primals_2", 3, 64), b.input("primals_3", 8, 64)
    grad = b.input("tangents_1", 8, 64)
    h = b.call(aten.mm.default, x, w)
    y = b.call(aten.mul.Tensor, h, v)
    grad_v = b.call(aten.mul.Tensor, grad, h)
    grad_h = b.call(aten.mul.Tensor, grad, v)
    grad_w = b.call(aten.mm.default, b.call(aten.t.default, x), grad_h)
    return b.joint([y], [None, grad_w, grad_v], static=(1, 2))


def test_a_linear_use_that_was_asked_to_be_exact_reads_the_exact_value(toy, net):
    rules = toy.rules(toy.Coin())
    assert costs_of(net, rules)["mm"].linear_users == ("mul_1",)
    asked = toy.rules(toy.Coin(), keep_exact=lambda n: "asked" if n.name == "mul_1" else None)
    value = costs_of(net, asked)["mm"]
    assert (value.raw_users, value.linear_users, value.codecs) == (("mul_1",), (), ())


def test_a_row_for_each_value_that_no_tangent_reaches_in_graph_order(toy, net):
    with toy.untouched(net.module):
        table = estimate_costs(net, toy.rules(toy.Half()))
    assert [value.node for value in table.values] == [
        "primals_1", "primals_2", "primals_3", "mm", "mul", "t",
    ]  # fmt: skip
    assert [value.inputs for value in table.values][3:] == [
        ("primals_1", "primals_2"), ("mm", "primals_3"), ("primals_1",),
    ]  # fmt: skip
    assert [value.is_input for value in table.values] == [True] * 3 + [False] * 3


def test_a_linear_use_brings_the_codecs_that_fit(toy, net):
    mm = costs_of(net, toy.rules(toy.Half(), toy.Coin(limit=3)))["mm"]
    assert (mm.linear_users, mm.raw_users) == (("mul_1",), ())
    assert [(c.codec, c.nbytes, c.noise, c.sensitivity) for c in mm.codecs] == [
        # Eight positions (8x64) are 1,024 times fewer than those from which on nothing is added.
        (toy.Half(), 8 * 64 * 2, 1e-7, 1024.0)
    ]
    assert mm.unsketchable is None
    assert (mm.nbytes, mm.keep_nbytes) == (2048, 2048)
    assert (mm.recompute_cost, mm.ban_reason) == (None, "costly op")


def test_a_use_without_a_rule_needs_the_exact_value(toy, net):
    rules = toy.rules(toy.Half(), linear={})
    mm = costs_of(net, rules)["mm"]
    assert (mm.linear_users, mm.raw_users) == ((), ("mul_1",))
    assert mm.codecs == ()
    assert mm.unsketchable is None


def test_a_value_that_only_the_forward_reads_is_not_needed(toy, net):
    y = costs_of(net, toy.rules(toy.Half()))["mul"]
    assert (y.linear_users, y.raw_users, y.codecs) == ((), (), ())


def backward_use(toy, use):
    """The costs of h = x @ w after one backward use of it, made by ``use``."""
    b = toy.Builder()
    x, w = b.input("primals_1", 4, 4), b.input("primals_2", 4, 4)
    grad = b.input("tangents_1", 4, 4)
    h = b.call(aten.mm.default, x, w)
    gradient = use(b, grad, h)
    joint = b.joint([h], [None, gradient], static=(0, 1))
    return lambda rules: costs_of(joint, rules)["mm"]


def test_a_value_at_a_linear_and_at_another_position_of_one_op_is_exact(toy):
    # grad + 2 h h: linear in neither h
    rules = toy.rules(toy.Half(), linear={aten.addcmul.default: (LinearUse(arg=1),)})
    once = backward_use(toy, lambda b, g, h: b.call(aten.addcmul.default, g, h, g))
    twice = backward_use(toy, lambda b, g, h: b.call(aten.addcmul.default, g, h, h))
    assert (once(rules).linear_users, once(rules).raw_users) == (("addcmul",), ())
    assert (twice(rules).linear_users, twice(rules).raw_users) == ((), ("addcmul",))


def test_a_value_at_two_linear_positions_of_one_op_is_exact(toy):
    # the product of a value with itself is not linear in it, though it is in either factor
    both = (LinearUse(arg=1), LinearUse(arg=2))
    rules = toy.rules(toy.Half(), linear={aten.addcmul.default: both})
    twice = backward_use(toy, lambda b, g, h: b.call(aten.addcmul.default, g, h, h))
    assert (twice(rules).linear_users, twice(rules).raw_users) == ((), ("addcmul",))


def test_an_argument_by_keyword_is_exact(toy):
    rules = toy.rules(toy.Half(), linear={aten.addcmul.default: (LinearUse(arg=1),)})
    named = backward_use(toy, lambda b, g, h: b.call(aten.addcmul.default, g, tensor1=h, tensor2=g))
    also = backward_use(toy, lambda b, g, h: b.call(aten.addcmul.default, g, h, tensor2=h))
    assert named(rules).raw_users == also(rules).raw_users == ("addcmul",)


def test_a_linear_and_an_exact_user_are_both_noted(toy):
    def use(b, g, h):
        linear = b.call(aten.mul.Tensor, g, h)
        return b.call(aten.add.Tensor, linear, b.call(aten.atan2.default, g, h))

    cost = backward_use(toy, use)(toy.rules(toy.Half()))
    assert (cost.linear_users, cost.raw_users) == (("mul",), ("atan2",))
    assert [c.codec.name for c in cost.codecs] == ["half"]


def test_sensitivities_of_several_linear_uses_add_up(toy):
    def use(b, g, h):
        return b.call(
            aten.add.Tensor, b.call(aten.mul.Tensor, g, h), b.call(aten.addcmul.default, g, h, g)
        )

    linear = {aten.mul.Tensor: (LinearUse(1, 0.5),), aten.addcmul.default: (LinearUse(1, 4.0),)}
    cost = backward_use(toy, use)(toy.rules(toy.Half(), linear=linear))
    (codec,) = cost.codecs
    assert codec.sensitivity % 4.5 == 0


def test_a_use_on_the_gradients_path_brings_the_codecs_for_paths(toy):
    linear = {aten.mul.Tensor: (LinearUse(1, on_path=True),)}
    rules = toy.rules(toy.Coin(), linear=linear, path_codecs=(toy.Half(),))
    cost = backward_use(toy, lambda b, g, h: b.call(aten.mul.Tensor, g, h))(rules)
    assert [c.codec.name for c in cost.codecs] == ["half"]


@pytest.mark.parametrize(
    ("then", "name"),
    [
        (lambda _, use: use, "coin"),
        (lambda b, use: b.call(aten.t.default, use), "coin"),
        (lambda b, use: b.call(aten._to_copy.default, use, dtype=torch.float64), "coin"),
        (lambda b, use: b.call(aten.neg.default, use), "half"),
        (lambda b, use: b.call(aten.neg.default, b.call(aten.t.default, use)), "half"),
    ],
    ids=["output", "view", "cast", "op", "op of a view"],
)
def test_where_the_op_does_not_tell_the_readers_of_its_result_decide(toy, then, name):
    linear = {aten.mul.Tensor: (LinearUse(1, on_path=None),)}
    rules = toy.rules(toy.Coin(), linear=linear, path_codecs=(toy.Half(),))
    use = backward_use(toy, lambda b, g, h: then(b, b.call(aten.mul.Tensor, g, h)))
    assert [c.codec.name for c in use(rules).codecs] == [name]


def test_uses_that_feed_one_another_are_not_sketched(toy):
    # grad * h * h in two steps: the noise of one sketch would meet itself
    def use(b, g, h):
        return b.call(aten.mul.Tensor, b.call(aten.neg.default, b.call(aten.mul.Tensor, g, h)), h)

    cost = backward_use(toy, use)(toy.rules(toy.Half()))
    assert cost.codecs == ()
    assert cost.unsketchable == (
        "one of its uses feeds another, and the product of their noise is no zero"
    )


def test_why_nothing_fits_is_told_in_the_codecs_words(toy, net):
    mm = costs_of(net, toy.rules(toy.Coin(limit=3), toy.Coin(limit=4)))["mm"]
    assert (mm.codecs, mm.unsketchable) == ((), "a coin needs 3 dimensions and got 2")


def test_without_codecs_that_is_the_reason(toy, net):
    assert costs_of(net, toy.rules())["mm"].unsketchable == "no codec is configured"


def test_a_sketch_must_be_smaller_than_the_value(toy):
    b = toy.Builder()
    x = b.input("primals_1", 4, 4, dtype=torch.float16)
    grad = b.input("tangents_1", 4, 4, dtype=torch.float16)
    h = b.call(aten.mm.default, x, x)
    joint = b.joint([h], [b.call(aten.mul.Tensor, grad, h)])

    class Wide(toy.Half):
        def supports(self, shape, dtype):
            del shape, dtype

    cost = costs_of(joint, toy.rules(Wide()))["mm"]
    assert cost.codecs == ()
    assert cost.unsketchable == "a sketch of 32 bytes is no smaller than the value's 32 bytes"
    ladder = costs_of(joint, toy.rules(Wide(), toy.Coin()))["mm"]
    assert [c.codec.name for c in ladder.codecs] == ["coin"]


def test_parameters_and_the_callers_data_are_free_and_activations_are_not(toy):
    b = toy.Builder()
    data, weight, activation = (b.input(f"primals_{i}", 4, 4) for i in (1, 2, 3))
    grad = b.input("tangents_1", 4, 4)
    y = b.call(aten.add.Tensor, b.call(aten.add.Tensor, data, weight), activation)
    gradients = [b.call(aten.mul.Tensor, grad, v) for v in (data, weight, activation)]
    total = b.call(aten.add.Tensor, gradients[0], gradients[1])
    joint = b.joint([y], [None, total, gradients[2]], static=(1,))
    costs = costs_of(joint, toy.rules(toy.Half()))
    for name in ("primals_1", "primals_2"):
        assert (costs[name].nbytes, costs[name].keep_nbytes, costs[name].codecs) == (0, 0, ())
        assert len(costs[name].linear_users) == 1
    activation = costs["primals_3"]
    assert (activation.nbytes, activation.keep_nbytes) == (64, 64)
    assert [c.codec.name for c in activation.codecs] == ["half"]
    assert {costs[f"primals_{i}"].ban_reason for i in (1, 2, 3)} == {"graph input"}


def test_a_size_unknown_at_compile_time_is_no_guess(toy):
    b = toy.Builder(dynamic=True)
    x, w = b.input("primals_1", "?", 4), b.input("primals_2", 4, 4)
    h = b.call(aten.mm.default, x, w)
    grad = b.call(aten.zeros_like.default, h)
    grad.meta["partitioner_tag"] = "must_be_in_backward"
    joint = b.joint([h], [None, b.call(aten.mul.Tensor, grad, h)], static=(0, 1))
    mm = costs_of(joint, toy.rules(toy.Half()))["mm"]
    assert (mm.codecs, mm.unsketchable) == ((), "its size is unknown at compile time")


def test_symbolic_sizes_count_with_their_hints(toy):
    b = toy.Builder(dynamic=True)
    x, w, grad = (
        b.input("primals_1", "n", 4),
        b.input("primals_2", 4, 4),
        b.input("tangents_1", "n", 4),
    )
    h = b.call(aten.mm.default, x, w)
    size = b.call(aten.sym_size.int, h, 0)
    joint = b.joint([h, size], [None, b.call(aten.mul.Tensor, grad, h)], static=(0, 1))
    costs = costs_of(joint, toy.rules(toy.Half()))
    assert (costs["mm"].nbytes, costs["mm"].codecs[0].nbytes) == (8 * 4 * 4, 8 * 4 * 2)
    assert hinted_shape(h.meta["val"]) == (8, 4)
    assert costs["sym_size"].keep_nbytes == 0
    assert b.shape_env.guards == []


def test_recomputing_a_view_costs_nothing_and_other_ops_a_64th(toy, net):
    costs = costs_of(net, toy.rules())
    assert costs["t"].recompute_cost == 0
    assert costs["mul"].recompute_cost == 2048 // 64
    assert costs["mul"].ban_reason is None


def test_a_gradient_that_is_a_forward_value_is_needed_exactly(toy):
    b = toy.Builder()
    x = b.input("primals_1", 4, 4)
    b.input("tangents_1", 4, 4)
    h = b.call(aten.mm.default, x, x)
    cost = costs_of(b.joint([x], [h]), toy.rules(toy.Half()))["mm"]
    assert cost.raw_users == ("output",)


def test_values_are_kept_packed_where_the_rules_know_how(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 4, 4), b.input("tangents_1", 4, 4)
    mask = b.call(aten.gt.Scalar, x, 0)
    joint = b.joint([x], [b.call(aten.where.ScalarOther, mask, grad, 0.0)])
    asked = []

    def packing(node):
        asked.append(node.name)
        return toy.Pairs() if node.name == "gt" else None

    packed = costs_of(joint, toy.rules(packing=packing))["gt"]
    assert (packed.nbytes, packed.keep_nbytes, packed.packing) == (16, 8, toy.Pairs())
    assert asked == ["primals_1", "gt"]
    plain = costs_of(joint, toy.rules(packing=None))["gt"]
    assert (plain.nbytes, plain.keep_nbytes, plain.packing) == (16, 16, None)


def test_a_value_that_the_caller_holds_is_not_packed(toy):
    b = toy.Builder()
    mask = b.input("primals_1", 4, 4, dtype=torch.bool)
    cost = costs_of(b.joint([mask], [None]), toy.rules())["primals_1"]
    assert (cost.keep_nbytes, cost.packing) == (0, None)


def test_a_tuple_cannot_be_kept_and_its_items_can(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 4, 4), b.input("tangents_1", 4)
    pair = b.call(aten.var_mean.correction, x, [1])
    mean = b.call(operator.getitem, pair, 1)
    joint = b.joint([mean], [b.call(aten.mul.Tensor, grad, mean)])
    costs = costs_of(joint, toy.rules())
    assert costs["var_mean"].keep_nbytes is None
    assert costs["getitem"].keep_nbytes == 16


def test_a_checkpoint_region_lifts_bans_but_not_for_random_ops(toy):
    b = toy.Builder()
    x = b.input("primals_1", 4, 4)
    noise, product = b.call(aten.rand_like.default, x), b.call(aten.mm.default, x, x)
    joint = b.joint([noise, product], [])
    costs = costs_of(joint, toy.rules(), ["rand_like", "mm"])
    assert costs["mm"].must_recompute
    assert (costs["mm"].recompute_cost, costs["mm"].ban_reason) == (1, None)
    assert not costs["rand_like"].must_recompute
    assert (costs["rand_like"].recompute_cost, costs["rand_like"].ban_reason) == (None, "random op")


def test_only_noise_that_a_plan_weighs_is_priced(toy):
    b = toy.Builder()
    x, w, v = b.input("primals_1", 8, 8), b.input("primals_2", 8, 8), b.input("primals_3", 8, 8)
    grad = b.input("tangents_1", 8, 8)
    made_of_weights = b.call(aten.sin.default, w)
    needed = b.call(aten.mm.default, x, v)
    weighed = b.call(aten.mm.default, x, w)
    exact = b.call(aten.sigmoid_backward.default, grad, needed)
    gradients = [b.call(aten.mul.Tensor, exact, n) for n in (made_of_weights, needed, weighed)]
    joint = b.joint([weighed], [None, *gradients[1:]], static=(1, 2))
    table = estimate_costs(joint, toy.rules(toy.Half()))
    assert list(table.priced()) == ["mm_1"]
    assert table.priced()["mm_1"].codecs[0].harm == pytest.approx(1e-7 * 1024)
    free = toy.rules(toy.Half(), linear={aten.mul.Tensor: (LinearUse(arg=1, sensitivity=0.0),)})
    assert estimate_costs(joint, free).priced() == {}
