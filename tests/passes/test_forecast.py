"""The memory of a step before its graphs are made, on steps small enough to be counted by hand."""

import dataclasses
import functools
import math
import operator

import pytest
import torch

import passes
from passes.derive import Derivation
from passes.forecast import Forecast
from passes.kernels import interpret
from passes.plan import Action, Decision, Plan

aten = torch.ops.aten

# One value of the steps below: 2x4 floats.
V = 32


def keep(*names):
    return Plan(tuple(Decision(name, Action.KEEP, None, V, V, 0.0) for name in names), math.inf)


def sketch(toy, name, nbytes):
    return Plan((Decision(name, Action.SKETCH, toy.Half(), V, nbytes, 0.1),), 0.0)


def between_products(toy, *between, backward_calls=0):
    """Forward: a product, calls on it, and a product. Backward: of the second factor alone.

    Weights and batch are the caller's, so that only what the calls make counts.
    """
    b = toy.Builder()
    x, w, grad = b.input("primals_1", 2, 4), b.input("primals_2", 4, 4), b.input("tangents_1", 2, 4)
    value = b.call(aten.mm.default, x, w)
    for target in between:
        value = b.call(target, value)
    y = b.call(aten.mm.default, value, w)
    gradient = b.call(aten.mm.default, b.call(aten.t.default, value), grad)
    for _ in range(backward_calls):
        gradient = b.call(aten.neg.default, gradient)
    return b.joint([y], [None, gradient], static=(1,))


def forecast(joint, plan, **changes):
    return Forecast.of(joint, lowered=(), **changes).memory(plan)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_chain_of_cheap_calls_is_one_value(toy, length):
    joint = between_products(toy, *[aten.sin.default] * length)
    name = f"sin_{length - 1}" if length > 1 else "sin"
    memory = forecast(joint, keep(name))
    # The first product and the end of the chain; the second product takes the place of the first.
    assert memory.forward_peak_nbytes == 2 * V
    assert memory.kept_nbytes == V
    assert memory.live_after_forward_nbytes == 2 * V


# Where the gradient is formed: the output, the tangent, the factor as a whole, and the gradient.
GRADIENT_PEAK = 3 * V + 4 * 4 * 4


def test_what_is_computed_again_is_stored_where_a_product_reads_it(toy):
    joint = between_products(toy, aten.sin.default)
    kept, again = forecast(joint, keep("sin")), forecast(joint, keep("mm"))
    assert kept.backward_peak_nbytes == again.backward_peak_nbytes == GRADIENT_PEAK
    assert "sin" in {value.name for value in kept.peak.largest}
    assert "t for mm_2" in {value.name for value in again.peak.largest}
    assert again.peak.phase == "backward"
    assert again.peak.kernel == "mm_2"


def test_a_product_that_is_run_again_is_in_memory_until_its_last_reader(toy):
    b = toy.Builder()
    x, w, grad = b.input("primals_1", 2, 4), b.input("primals_2", 4, 4), b.input("tangents_1", 2, 4)
    product = b.call(aten.mm.default, x, w)
    value = b.call(aten.sin.default, product)
    y = b.call(aten.mm.default, value, w)
    gradient = b.call(aten.mm.default, b.call(aten.t.default, value), grad)
    joint = b.joint([y], [b.call(aten.mul.Tensor, grad, product), gradient], static=(1,))
    kept, again = forecast(joint, keep("mm")), forecast(joint, keep())
    assert (kept.kept_nbytes, again.kept_nbytes) == (V, 0)
    assert kept.backward_peak_nbytes == again.backward_peak_nbytes == GRADIENT_PEAK + V
    assert "mm:again" in {value.name for value in again.peak.largest}


def test_what_has_several_readers_is_run_again_once(toy):
    b = toy.Builder()
    x, w, grad = b.input("primals_1", 2, 4), b.input("primals_2", 4, 4), b.input("tangents_1", 2, 4)
    product = b.call(aten.mm.default, x, w)
    # Resolved by way of one of its readers, with itself waiting to be.
    both = b.call(aten.add.Tensor, product, b.call(aten.sin.default, product))
    y = b.call(aten.mm.default, both, w)
    read = [b.call(aten.mul.Tensor, grad, value) for value in (both, product, product)]
    joint = b.joint([y], [b.call(aten.sum.dim_IntList, value, [0]) for value in read], static=(1,))
    kernels, _ = Forecast.of(joint, lowered=())._backward_kernels({})
    made = [name for kernel in kernels for name in kernel.outputs]
    assert made.count("mm:again") == 1


def test_parts_of_what_is_run_again_are_stored_together_and_those_that_are_kept_are_read(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 1)
    both = b.call(aten.var_mean.correction, x, [1], keepdim=True)
    var, mean = (b.call(operator.getitem, both, i) for i in range(2))
    y = b.call(aten.sub.Tensor, var, mean)
    read = [b.call(aten.mul.Tensor, grad, part) for part in (var, mean)]
    joint = b.joint([y], [b.call(aten.add.Tensor, *read)])
    none, one = forecast(joint, keep()), forecast(joint, keep("getitem"))
    small = 2 * 4
    # Output, tangent, the two parts once more, of which the gradient takes the place of none.
    assert none.backward_peak_nbytes == 5 * small
    assert one.backward_peak_nbytes == 5 * small


def test_a_stand_in_is_kept_in_place_of_the_value_which_is_made_for_its_reader(toy):
    memory = forecast(between_products(toy, aten.sin.default), sketch(toy, "sin", 6))
    assert memory.kept_nbytes == 6
    assert memory.live_after_forward_nbytes == 6 + V
    assert memory.backward_peak_nbytes == GRADIENT_PEAK


def test_cheap_calls_on_a_gradient_cost_nothing(toy):
    short, long = (between_products(toy, backward_calls=n) for n in (1, 4))
    assert forecast(short, keep("mm")).peak_nbytes == forecast(long, keep("mm")).peak_nbytes


def test_a_value_made_of_many_is_stored_once_for_its_readers(toy):
    b = toy.Builder()
    w = b.input("primals_1", 4, 4)
    grads = [b.input(f"tangents_{i}", 2, 4) for i in range(1, 4)]
    total = grads[0]
    for grad in grads[1:]:
        total = b.call(aten.add.Tensor, total, grad)
    products = [
        b.call(aten.sum.dim_IntList, b.call(f, total), [0]) for f in (aten.sin.default,) * 2
    ]
    joint = b.joint([w], [b.call(aten.add.Tensor, *products)], static=(0,))
    inlined, stored = (forecast(joint, keep(), max_reads=n) for n in (3, 2))
    assert stored.backward_peak_nbytes > inlined.backward_peak_nbytes


def test_kept_bytes_are_those_of_the_graphs(toy):
    def net(x, weight, scale):
        return torch.relu((x @ weight) * scale)

    joint = toy.capture(
        net,
        torch.randn(2, 3),
        torch.randn(3, 4, requires_grad=True),
        torch.randn(4, requires_grad=True),
        static=(1, 2),
    )
    for price in (0.0, math.inf):
        outcome = passes.run(joint, toy.rules(toy.Half()), passes.at_price(price), None)
        programs = (interpret(m.graph) for m in (outcome.split.forward, outcome.split.backward))
        predicted = passes.predict_memory(outcome.split, *programs)
        memory = forecast(outcome.exposed, outcome.plan)
        assert memory.kept_nbytes == predicted.kept_nbytes
        assert memory.live_after_forward_nbytes == predicted.live_after_forward_nbytes
        # Each call of an interpreter stores its result.
        assert memory.peak_nbytes <= predicted.peak_nbytes


def test_an_input_that_gets_a_gradient_is_told_apart_from_what_the_forward_makes(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    joint = b.joint([b.call(aten.sin.default, x)], [b.call(aten.mul.Tensor, grad, x)])
    memory = forecast(joint, keep("primals_1"))
    assert memory.kept_nbytes == 0
    assert [(value.name, value.nbytes) for value in memory.kept_inputs] == [("primals_1", V)]


@pytest.mark.parametrize(
    ("kept", "nbytes"),
    [(("getitem",), V), (("getitem", "getitem_1"), V), (("getitem", "sin"), V), ((), 0)],
)
def test_kept_parts_of_a_split_hold_all_of_it_once(toy, kept, nbytes):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 2)
    parts = b.call(aten.split.Tensor, b.call(aten.sin.default, x), 2, 1)
    first, second = (b.call(operator.getitem, parts, i) for i in range(2))
    y = b.call(aten.mul.Tensor, first, second)
    read = [b.call(aten.mul.Tensor, grad, part) for part in (first, second)]
    joint = b.joint([y], [b.call(aten.cat.default, read, 1)])
    memory = forecast(joint, keep(*kept))
    assert memory.kept_nbytes == nbytes
    # The output, of half the size, is made from what is held for the backward.
    assert memory.live_after_forward_nbytes == nbytes + V // 2


@dataclasses.dataclass(frozen=True)
class TwoSteps:
    """A codec as far as a forecast looks at it, which stores ten values before it has one."""

    needs_seed = False
    exact = False

    def decoding_nbytes(self, shape, dtype):
        return 10 * torch.Size(shape).numel() * dtype.itemsize


def test_what_decoding_stores_on_its_way_is_beside_what_it_makes(toy):
    joint = between_products(toy, aten.sin.default)
    plan = Plan((Decision("sin", Action.SKETCH, TwoSteps(), V, 6, 0.1),), 0.0)
    memory = forecast(joint, plan)
    # The output, the tangent, what is stored, and the factor; the stand-in is no longer needed.
    assert memory.backward_peak_nbytes == (2 + 10 + 1) * V
    assert memory.peak.phase == "backward"


DERIVED = Decision("neg", Action.DERIVE, None, 2 * V, 0, 0.1, Derivation(("sin",), ()))


@pytest.mark.parametrize("derived", [(), (DERIVED,)])
def test_a_sketched_operand_is_decoded_after_the_loops_before_a_call_that_waits(toy, derived):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    w, v = b.input("primals_2", 4, 8), b.input("primals_3", 8, 4)
    value = b.call(aten.sin.default, b.call(aten.mm.default, x, w))
    if derived:
        value = b.call(aten.neg.default, value)
    y = b.call(aten.mm.default, value, v)
    square = b.input("primals_4", 4, 4)
    parts = [b.call(aten.mm.default, grad, square) for _ in range(8)]
    total = functools.reduce(functools.partial(b.call, aten.add.Tensor), parts)
    gradient = b.call(aten.mm.default, b.call(aten.t.default, value), total)
    joint = b.joint([y], [None, None, gradient, None], static=(1, 2, 3))
    sketched, waiting = sketch(toy, "sin", 6).decisions, (aten.mm.default,)
    plan = Plan((*sketched, *derived), 0.0)
    # The output, the tangent, the stand-in and the summands, of which the sum replaces one; beside
    # them, or later, the factor of twice that size.
    assert forecast(joint, plan).backward_peak_nbytes == (2 + 8 + 2) * V + 6
    assert forecast(joint, plan, waiting=waiting).backward_peak_nbytes == (2 + 8) * V + 6
    exact = keep("neg" if derived else "sin")
    assert forecast(joint, exact, waiting=waiting) == forecast(joint, exact)


def test_what_decoding_stores_on_its_way_to_one_value_is_made_anew_for_the_next(toy):
    b = toy.Builder()
    x, grad = b.input("primals_1", 2, 4), b.input("tangents_1", 2, 4)
    w = b.input("primals_2", 4, 4)
    value = b.call(aten.sin.default, b.call(aten.mm.default, x, w))
    first, second = b.call(aten.neg.default, value), b.call(aten.abs.default, value)
    y = b.call(aten.add.Tensor, first, second)
    gradients = [b.call(aten.mm.default, b.call(aten.t.default, v), grad) for v in (first, second)]
    joint = b.joint([y], [None, b.call(aten.add.Tensor, *gradients)], static=(1,))
    decisions = {
        "sin": Decision("sin", Action.SKETCH, TwoSteps(), V, 6, 0.1),
        "neg": Decision("neg", Action.DERIVE, None, V, 0, 0.1, Derivation(("sin",), ())),
        "abs": Decision("abs", Action.DERIVE, None, V, 0, 0.1, Derivation(("sin",), ())),
    }
    kernels, nbytes = Forecast.of(joint, lowered=())._backward_kernels(decisions)
    made = [name for kernel in kernels for name in kernel.outputs if "halfway" in name]
    assert len(made) == len(set(made)) == 2
    assert [nbytes[name] for name in made] == [10 * V, 10 * V]
    for name in made:
        assert sum(name in kernel.reads for kernel in kernels) == 1


@pytest.mark.parametrize("action", [Action.PACK, Action.SKETCH])
def test_a_value_of_unknown_size_has_nothing_stored_on_its_way(toy, action):
    b = toy.Builder(dynamic=True)
    x, grad = b.input("primals_1", "?", 4), b.input("tangents_1", "?", 4)
    value = b.call(aten.sin.default, x)
    joint = b.joint([value], [b.call(aten.mul.Tensor, grad, value)])
    decision = Decision("sin", action, TwoSteps(), 0, 0, 0.0)
    assert forecast(joint, Plan((decision,), 0.0)).unknown == forecast(joint, keep()).unknown
