"""Memory budgets through the whole compiled path."""

import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo import config as dynamo_config  # noqa: TID251

import models_zoo
import passes
import xconv_fx
from benchmarks.measure import step_memory
from benchmarks.memory_model import WithLoss
from passes.forecast import Forecast
from xconv_fx import _torch, backend, memory
from xconv_fx.backend import tracing_decompositions, xconv
from xconv_fx.partition_function import PartitionFunction


def make_net():
    torch.manual_seed(0)
    layers = []
    for channels in (3, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 4, 1))


def compiled(budget, **options):
    torch.compiler.reset()
    net = make_net()
    given = {"inner": "aot_eager", "memory_budget": budget, **options}
    return net, torch.compile(net, backend=xconv, options=given)


def data():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.1])
def test_a_share_holds(share):
    _, net = compiled(share)
    net(data()).square().mean().backward()
    report = xconv_fx.last_report()
    assert report.exact is None
    assert report.kept_nbytes <= share * report.stock_nbytes


def test_a_whole_share_is_exact():
    net, step = compiled(1.0)
    step(data()).square().mean().backward()
    twin = make_net()
    twin(data()).square().mean().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        # Sums in another order: a few hundred units in the last place of values below 1.
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_smaller_shares_keep_less_and_add_noise():
    kept, noise = [], []
    for share in (0.5, 0.2, 0.1):
        compiled(share)[1](data()).square().mean().backward()
        report = xconv_fx.last_report()
        kept.append(report.kept_nbytes)
        noise.append(max(row.noise for row in report.values))
    assert kept == sorted(kept, reverse=True)
    assert noise == sorted(noise)


def test_a_share_out_of_reach_says_what_can_be_reached_and_what_holds_it():
    with pytest.raises(Exception, match="BudgetError") as error:
        compiled(0.001)[1](data())
    text = str(error.value)
    assert "memory_budget asks for 0.001 of what torch's default partition keeps" in text
    assert "the least that can be reached is" in text
    assert "Most is kept by:" in text
    assert "strict=False" in text


def test_not_strict_takes_the_least_with_a_warning():
    _, net = compiled(0.001, strict=False)
    with pytest.warns(UserWarning, match="Going on with the least"):
        net(data()).square().mean().backward()
    assert xconv_fx.last_report().ratio < 0.1


def test_bytes_bound_the_measured_peak():
    net, step = compiled("10GiB")
    x = data()

    def forward():
        return step(x).square().mean()

    def peak():
        for _ in range(2):
            forward().backward()
            net.zero_grad(set_to_none=True)
        resident = sum(t.nbytes for t in [*net.parameters(), *net.buffers(), x])
        return resident + step_memory(forward).peak_nbytes

    roomy = peak()
    limit = int(0.9 * roomy)
    net, step = compiled(limit)
    # The prediction may be below the measured peak by 5 % at most.
    assert peak() <= 1.05 * limit


def test_bytes_out_of_reach_are_an_error():
    with pytest.raises(Exception, match="asks for a predicted peak of 1000 bytes"):
        compiled(1000)[1](data())


def test_bytes_need_sizes_that_do_not_depend_on_the_data():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x, chosen):
            return self.body(self.stem(x)[chosen.nonzero().squeeze(1)]).sum()

    torch.compiler.reset()
    options = {"inner": "aot_eager", "memory_budget": "1GiB"}
    net = torch.compile(Chosen(), backend=xconv, options=options)
    with (
        dynamo_config.patch(capture_dynamic_output_shape_ops=True),
        pytest.raises(Exception, match="needs sizes known when the graph is compiled; ") as error,
    ):
        net(data(), torch.tensor([1, 0, 1, 1])).backward()
    assert "which depends on the data. Give a share such as 0.3, or keep what makes it" in str(
        error.value
    )


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_bytes_are_planned_at_the_sizes_seen_and_serve_others_without_recompiling(inner):
    torch.compiler.reset()
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    net, x = WithLoss(nn.Sequential(*layers)), data()
    resident = sum(t.nbytes for t in [*net.parameters(), *net.buffers(), x])
    limit = 300 * 2**10
    options = {"inner": inner, "memory_budget": limit}
    step = torch.compile(net, backend=xconv, options=options, dynamic=True)
    for batch in (x, torch.randn(6, 3, 16, 16)):
        step(batch).backward()
        net.zero_grad(set_to_none=True)
    # The prediction may be below the measured peak by 5 % at most.
    assert resident + step_memory(lambda: step(x)).peak_nbytes <= 1.05 * limit
    (report,) = xconv_fx.all_reports()
    assert report.exact is None
    assert any(
        "memory_budget was planned at" in note and "4x3x16x16" in note for note in report.notes
    )


def test_a_share_holds_for_other_batch_sizes_without_recompiling():
    torch.compiler.reset()
    options = {"inner": "aot_eager", "memory_budget": 0.2}
    net = torch.compile(make_net(), backend=xconv, options=options, dynamic=True)
    net(data()).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(torch.randn(6, 3, 16, 16)).sum().backward()
    assert len(xconv_fx.all_reports()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"inner": "aot_eager"},
        {"inner": "inductor"},
        # Raw values are kept in the layout that Inductor gives them in the forward.
        {"inner": "inductor", "memory_budget": 1.0},
    ],
)
def test_what_is_predicted_is_what_is_measured(options):
    torch.compiler.reset()
    net = WithLoss(make_net())
    step = torch.compile(net, backend=xconv, options=options)
    x = data()
    for _ in range(2):
        step(x).backward()
        net.zero_grad(set_to_none=True)
    measured = step_memory(lambda: step(x))
    predicted = xconv_fx.last_report().memory
    assert predicted.live_after_forward_nbytes == measured.live_after_forward_nbytes
    # Scratchpads of oneDNN, of some kilobytes, are not modelled; the step takes 300 KB.
    assert 0.95 <= predicted.peak_nbytes / measured.peak_nbytes <= 1.05


@pytest.fixture
def attempts(monkeypatch):
    """What was compiled, and how often Inductor made a schedule for a plan that was tried."""
    seen = SimpleNamespace(compilations=0, schedules=0)
    compile_once, read_once = backend._compile, memory.read_schedule

    def compile_and_count(*args):
        seen.compilations += 1
        return compile_once(*args)

    def read_and_count(*args, **kwargs):
        seen.schedules += 1
        return read_once(*args, **kwargs)

    monkeypatch.setattr(backend, "_compile", compile_and_count)
    monkeypatch.setattr(memory, "read_schedule", read_and_count)
    return seen


# Between the least that the net reaches under Inductor, 250 KB, and what it takes exactly, 420 KB.
LIMIT = 350_000


def peak_within(limit, **options):
    """Train one step within a budget; return the measured peak and what is there all the time."""
    net, step = compiled(limit, inner="inductor", **options)
    x = data()

    def forward():
        return step(x).square().mean()

    forward().backward()
    net.zero_grad(set_to_none=True)
    resident = sum(t.nbytes for t in [*net.parameters(), *net.buffers(), x])
    return resident + step_memory(forward).peak_nbytes


def test_a_budget_is_planned_by_a_forecast_and_seen_to_be_kept_when_it_is_compiled(attempts):
    # Scratchpads of oneDNN, of some kilobytes, are not modelled.
    assert peak_within(LIMIT) <= 1.05 * LIMIT
    assert xconv_fx.step_report().predicted_peak_nbytes <= LIMIT
    assert attempts.compilations == 1
    assert attempts.schedules == 0


def test_a_forecast_that_is_too_small_is_corrected_by_what_was_seen(attempts, monkeypatch):
    forecast = Forecast.memory

    def too_small(self, plan):
        memory = forecast(self, plan)
        nbytes = memory.backward_peak_nbytes // 2
        return dataclasses.replace(memory, backward_peak_nbytes=nbytes, forward_peak_nbytes=0)

    monkeypatch.setattr(Forecast, "memory", too_small)
    assert peak_within(LIMIT) <= 1.05 * LIMIT
    assert xconv_fx.step_report().predicted_peak_nbytes <= LIMIT
    assert attempts.compilations in (2, 3)
    (report,) = xconv_fx.all_reports()  # of what is in use alone
    assert report.exact is None


def test_where_no_forecast_helps_plans_are_tried(attempts, monkeypatch):
    answers = iter([False, False, True])
    monkeypatch.setattr(PartitionFunction, "holds_budget", lambda _self: next(answers, True))
    assert peak_within(LIMIT) <= 1.05 * LIMIT
    assert attempts.compilations == 3
    assert attempts.schedules >= 2
    assert len(xconv_fx.all_reports()) == 1


def test_a_peak_that_cannot_be_predicted_is_searched_and_the_graph_is_exact(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no such schedule")

    monkeypatch.setattr(memory, "read_schedule", fail)
    monkeypatch.setattr(memory, "schedule_of", fail)
    peak_within("1GiB", strict=False)
    report = xconv_fx.last_report()
    assert report.exact == "RuntimeError: no such schedule"


def test_a_backward_within_a_budget_may_run_twice():
    net, step = compiled(LIMIT, inner="inductor")
    loss = step(data()).square().mean()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in net.parameters()]
    loss.backward()
    # The same sketches are read again: the sum is twice the first to the last bit.
    for parameter, grad in zip(net.parameters(), once, strict=True):
        assert torch.equal(parameter.grad, 2 * grad)


class Forecasts:
    """Plans for cifar_net under Inductor, and forecast peaks; run op by op, which is fast."""

    def __init__(self, monkeypatch):
        self.peaks, self.plans = {}, []
        run, forecast = passes.run, Forecast.memory

        def run_and_keep(*args, **kwargs):
            outcome = run(*args, **kwargs)
            self.plans.append(outcome.plan)
            return outcome

        def forecast_and_keep(*args):
            memory = forecast(*args)
            self.peaks[args[1].decisions] = memory.peak_nbytes
            return memory

        def interpret(module, example_inputs, partition_function, *_args, **_kwargs):
            return _torch.compile_with_aot_eager(
                module, example_inputs, partition_function, tracing_decompositions()
            )

        monkeypatch.setattr(passes, "run", run_and_keep)
        monkeypatch.setattr(Forecast, "memory", forecast_and_keep)
        monkeypatch.setattr(backend._torch, "compile_with_inductor", interpret)
        monkeypatch.setattr(PartitionFunction, "_describe_memory", lambda *_args: None)

    def peak_within(self, share):
        torch.compiler.reset()
        net = torch.compile(
            WithLoss(models_zoo.build("cifar_net")), backend=xconv, options={"memory_budget": share}
        )
        net(*models_zoo.example_input("cifar_net", 16)).backward()
        report = xconv_fx.last_report()
        assert report.exact is None
        assert report.kept_nbytes <= share * report.stock_nbytes
        return self.peaks.get(self.plans[-1].decisions)


def test_under_inductor_a_share_raises_no_peak_by_how_it_decodes(monkeypatch):
    forecasts = Forecasts(monkeypatch)
    lower = forecasts.peak_within(0.05)
    chosen = forecasts.plans[-1].decisions
    # All plans of larger shares were forecast on the way, and those that were not taken.
    kept = {decisions: sum(d.kept_nbytes for d in decisions) for decisions in forecasts.peaks}
    larger = [d for d in kept if kept[d] > 1.5 * kept[chosen]]
    assert len(larger) >= 2
    # Seeds, a few hundred bytes, are not told apart.
    assert lower <= 1.001 * min(forecasts.peaks[d] for d in larger)
    # The plan of least noise takes a tenth more.
    assert max(p for d, p in forecasts.peaks.items() if d not in larger) >= 1.05 * lower
