"""Calibrating a model: what it measures, what it leaves alone, what it refuses."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import xconv_fx
from passes import JointGraph, make_plan
from passes import run as run_passes
from xconv_fx import _torch
from xconv_fx.audit import last_report
from xconv_fx.backend import xconv
from xconv_fx.errors import CalibrationError, OptionError
from xconv_fx.options import Options
from xconv_fx.rules import make_rules, tracing_decompositions

EAGER = {"inner": "aot_eager"}


def make_model(*, norm=True):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def make_batch(count=16, side=8):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, side, side, generator=generator)
    return images, torch.randint(0, 4, (count,), generator=generator)


IMAGES, LABELS = make_batch()


@torch.compiler.disable
def as_it_is(x):
    """Breaks the graph."""
    return x


def loss_of(output):
    return nn.functional.cross_entropy(output, LABELS[: len(output)])


@pytest.fixture(scope="module")
def calibration():
    torch.manual_seed(0)
    return xconv_fx.calibrate(make_model(), IMAGES, loss=loss_of, options=EAGER, num_draws=8)


def run_with_one_sketch(model, position, codec):
    """Compile a model so that one value of its graph is sketched, and all else is exact."""

    def planner(joint, costs, carry_out):
        del carry_out
        name = list(joint.graph.nodes)[position].name
        rows = [
            dataclasses.replace(value, codecs=tuple(c for c in value.codecs if c.codec == codec))
            if value.node == name
            else dataclasses.replace(value, codecs=())
            for value in costs.values
        ]
        plan = make_plan(dataclasses.replace(costs, values=tuple(rows)), 0.0)
        assert [d.node for d in plan.decisions if d.action.value == "sketch"] == [name]
        return plan

    def partition(module, joint_inputs, *, num_fwd_outputs, **kwargs):
        static = tuple(kwargs.pop("static_lifetime_input_indices", None) or ())
        joint = JointGraph(module, num_fwd_outputs, static)
        outcome = run_passes(joint, make_rules(Options()), planner, joint_inputs, **kwargs)
        return outcome.split.forward, outcome.split.backward

    def backend(module, example_inputs):
        return _torch.compile_with_aot_eager(
            module, example_inputs, partition, tracing_decompositions()
        )

    return torch.compile(model, backend=backend)


@pytest.mark.parametrize(("name", "at"), [("mul_9", 2), ("mul_9", 4), ("convolution", 2)])
def test_harm_is_what_sketching_the_value_does_to_the_gradients(calibration, name, at):
    """Brute force: many steps with that sketch alone, a weight's input and the input of a norm."""
    (graph,) = calibration.graphs
    (value,) = (v for v in graph.values if v.node == name)
    model = make_model()
    parameters = list(model.parameters())
    exact = torch.autograd.grad(loss_of(model(IMAGES)), parameters)
    run = run_with_one_sketch(model, value.position, value.codecs[at].codec)
    torch.manual_seed(5)
    num_steps = 60
    harm = 0.0
    for _ in range(num_steps):
        found = torch.autograd.grad(loss_of(run(IMAGES)), parameters)
        for one, other in zip(exact, found, strict=True):
            energy = one.double().square().sum().item()
            measured = min(graph.gradients, key=lambda g: abs(g.energy - energy))
            if measured.weight:
                assert measured.energy == pytest.approx(energy, rel=1e-3)
            harm += measured.weight * (other - one).double().square().sum().item() / num_steps
    # Both are means of squares over some hundred directions, of 60 draws and of 8.
    assert value.codecs[at].harm == pytest.approx(harm, rel=0.25)


def test_a_weights_input_reaches_one_gradient_and_a_norms_reaches_more(calibration):
    (graph,) = calibration.graphs
    on_path = {value.node: value.on_path for value in graph.values if value.is_read}
    assert on_path == {"mul_17": True, "relu": False, "mul_16": True, "mul_9": False}


def test_noise_is_that_of_the_values_and_not_of_their_shapes(calibration):
    (graph,) = calibration.graphs
    (relu,) = (value for value in graph.values if value.node == "relu")
    exact = make_model()[:3](IMAGES)
    codec = relu.codecs[1]
    seeds = torch.randint(0, 2**62, [200], dtype=torch.int64)
    keys = torch.ops.xconv.key_schedule(seeds)
    errors = [
        codec.codec.decode(
            codec.codec.encode(exact, key, range(4)), key, exact.shape, exact.dtype, range(4)
        )
        - exact
        for key in keys
    ]
    expected = torch.stack(errors).square().sum() / len(errors) / exact.square().sum()
    # Both are means over 4,096 elements, of 8 draws and of 200.
    assert codec.noise == pytest.approx(expected.item(), rel=0.03)
    assert relu.zeros == pytest.approx((exact == 0).float().mean().item())
    assert abs(codec.noise / codec.modelled_noise - 1) > 0.2


def test_mini_batch_noise_is_that_of_groups_of_samples(calibration):
    del calibration
    model = make_model(norm=False)
    found = xconv_fx.calibrate(model, IMAGES, loss=loss_of, options=EAGER, num_groups=4)
    weight = model[3].weight
    groups = []
    for i in range(4):
        share = nn.functional.cross_entropy(model(IMAGES[i::4]), LABELS[i::4]) / 4
        groups.append(torch.autograd.grad(share, weight)[0].double())
    energy = torch.stack(groups).sum(0).square().sum().item()
    mean = torch.stack(groups).mean(0)
    deviation = 4 / 3 * sum((g - mean).square().sum().item() for g in groups)
    gradient = min(found.graphs[0].gradients, key=lambda g: abs(g.energy - energy))
    # float32 gradients in another order of additions.
    assert gradient.energy == pytest.approx(energy, rel=1e-4)
    assert gradient.noise_energy == pytest.approx(deviation, rel=1e-3)
    assert found.graphs[0].num_groups == 4


def test_the_model_and_the_random_state_are_left_as_they_were():
    model = make_model()
    loss_of(model(IMAGES)).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    xconv_fx.calibrate(model, IMAGES, loss=loss_of, options=EAGER, num_draws=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert model.training


def test_the_plan_uses_it_and_the_report_says_so(calibration):
    torch.compiler.reset()
    model = make_model()
    compiled = torch.compile(model, backend=xconv, options={**EAGER, "calibration": calibration})
    loss_of(compiled(IMAGES)).backward()
    report = last_report()
    (graph,) = calibration.graphs
    measured = {v.node: {c.codec.name: c.noise for c in v.codecs} for v in graph.values}
    sketched = [row for row in report.values if row.decision == "sketch"]
    assert sketched
    for row in sketched:
        assert row.noise == measured[row.name][row.codec]
    assert (
        f"noise and sensitivities are measured (calibration {calibration.digest}, graph "
        f"{graph.fingerprint})"
    ) in report.notes


# Dynamo looks at what one graph hands to the next (2.13).
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_several_graphs_give_several_measurements():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = make_model()[:4], make_model()[4:]

        def forward(self, x):
            x = self.one(x)
            return self.other(as_it_is(x))

    found = xconv_fx.calibrate(Broken(), IMAGES, loss=loss_of, options=EAGER, num_draws=1)
    assert len(found.graphs) == 2
    # The second graph hands a gradient to the first: its error counts as that of 16 parameters.
    later = found.graphs[0]
    handed = [g for g in later.gradients if g.weight * g.energy == pytest.approx(16.0)]
    assert len(handed) == 1


def test_a_model_that_returns_its_loss_is_measured_without_mini_batch_noise():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_model()

        def forward(self, x):
            return loss_of(self.net(x))

    found = xconv_fx.calibrate(WithLoss(), IMAGES, options=EAGER, num_draws=1)
    assert found.graphs[0].num_groups == 1
    assert "the gradients themselves count as noise" in " ".join(str(found).split())


def test_without_a_loss_outputs_are_set_against_random_numbers():
    found = xconv_fx.calibrate(make_model(), IMAGES, options=EAGER, num_draws=1)
    assert found.graphs[0].num_groups == 8
    assert any(gradient.weight for gradient in found.graphs[0].gradients)


class TestRefusals:
    def test_numbers_out_of_range(self):
        with pytest.raises(CalibrationError) as caught:
            xconv_fx.calibrate(make_model(), IMAGES, num_draws=0)
        assert str(caught.value) == "num_draws: expected an int of at least 1, got 0"
        with pytest.raises(CalibrationError) as caught:
            xconv_fx.calibrate(make_model(), IMAGES, num_groups=1)
        assert str(caught.value) == "num_groups: expected an int of at least 2, got 1"

    def test_a_bad_option(self):
        with pytest.raises(OptionError, match="option 'inner' got 'ptx'"):
            xconv_fx.calibrate(make_model(), IMAGES, options={"inner": "ptx"})

    def test_a_loss_that_is_no_scalar(self):
        with pytest.raises(CalibrationError) as caught:
            xconv_fx.calibrate(make_model(), IMAGES, loss=lambda out: out, options=EAGER)
        assert str(caught.value) == ("loss: expected a function that returns a scalar, got (16, 4)")

    def test_a_model_without_convolutions(self):
        with pytest.raises(CalibrationError, match="expected a graph with a convolution"):
            xconv_fx.calibrate(nn.Linear(4, 2), torch.randn(3, 4), options=EAGER)

    def test_an_output_without_a_gradient(self):
        model = make_model().requires_grad_(False)
        with pytest.raises(CalibrationError, match="return a tensor with a gradient, got none"):
            xconv_fx.calibrate(model, IMAGES, options=EAGER)
