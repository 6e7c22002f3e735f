"""Measures every way of the frontier on one model: memory, time and gradients.

In: a net, photographs and ways (`benchmarks.frontier_ways`). Out: a
`benchmarks.frontier_results.ModelResult`. All ways run at the same weights on the same batch,
those of `benchmarks.frontier_reference`. The loss is computed outside of what they compile or
round, alike for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import xconv_fx
from benchmarks.frontier_reference import (
    Reference,
    Settings,
    gradient_errors,
    make_reference,
    run_step,
    with_baseline,
)
from benchmarks.frontier_results import Figures, ModelResult, Row
from benchmarks.frontier_ways import BASELINE, Run, Way
from benchmarks.gradient_statistics import root_mean_square
from benchmarks.measure import StepMemory, step_memory, step_times
from benchmarks.trained_nets import BenchmarkNet, loss_of
from demos.devices import device_name, precision
from demos.texture_data import TextureData
from xconv_fx import audit

_MAX_REASON = 300
# Kinks that rounding decides differently gave exact ways errors of up to 0.009, on a batch of two.
_MOST_ROUNDING = 0.03


class NotSketchedError(RuntimeError):
    """The backend compiled a graph exactly, so that its figures would be those of another way."""


class NotExactError(RuntimeError):
    """A way that should compute exact gradients does not: it is not the way it claims to be."""


@dataclass(frozen=True)
class _Trial:
    """A way that works, and its figures but for the time."""

    way: Way
    run: Run
    memory: StepMemory
    errors: Mapping[str, float]
    num_convolutions: int


def measure_model(
    net: BenchmarkNet,
    data: TextureData,
    ways: Iterable[Way],
    settings: Settings,
    announce: Callable[[str], None],
) -> ModelResult:
    """Measure ways on a model; one that fails becomes a row with the reason.

    Args:
        net: which model, batch and images.
        data: photographs.
        ways: to compare, :data:`~benchmarks.frontier_ways.BASELINE` among them.
        settings: how much to measure.
        announce: told about each way when it was tried.

    Returns:
        A row a way, in their order.

    Raises:
        RuntimeError: the baseline failed, which the ratios are taken to.
    """
    reference = make_reference(net, data, settings)
    trials: dict[str, _Trial] = {}
    failures: dict[str, str] = {}
    ways = list(ways)
    # The baseline first: its gradients are a reference for the others.
    for way in sorted(ways, key=lambda way: way.name != BASELINE):
        try:
            trials[way.name] = _try_way(way, reference, settings)
        except Exception as error:  # noqa: BLE001  a way that fails is a finding
            failures[way.name] = reason_of(error)
            announce(f"{net.name}: {way.name} failed: {failures[way.name]}")
            continue
        announce(f"{net.name}: {way.name} runs")
        if way.name == BASELINE:
            reference = with_baseline(reference, trials[BASELINE].run)
    if BASELINE not in trials:
        raise RuntimeError(
            f"frontier: {BASELINE} failed on {net.name}, so that no ratio can be taken: "
            f"{failures.get(BASELINE, 'it is not among the ways')}"
        )
    figures = _figures(trials, reference, settings)
    rows = tuple(
        Row(
            way.name,
            way.family,
            way.note,
            way.exact,
            figures.get(way.name),
            failures.get(way.name),
        )
        for way in ways
    )
    kink_error = root_mean_square(trials[BASELINE].errors.values())
    return _model_result(net, reference, settings, kink_error, rows)


def count_convolutions(step: Callable[[], object]) -> int:
    """Count the calls of ``aten.convolution`` in a step, those of its backward included."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        step()
    return sum(event.name == "aten::convolution" for event in profiler.events() or ())


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return torch's version, what it runs on, and the precision of convolutions.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    on_gpu = torch.device(device).type == "cuda"
    name = device_name(device) if on_gpu else f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return {
        "torch": torch.__version__,
        "device": name,
        "num_threads": torch.get_num_threads(),
        "dtype": precision(device),
    }


def reason_of(error: Exception) -> str:
    """Return the kind of an error and the first lines of its text, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_MAX_REASON]


def _model_result(
    net: BenchmarkNet,
    reference: Reference,
    settings: Settings,
    kink_error: float,
    rows: tuple[Row, ...],
) -> ModelResult:
    return ModelResult(
        model=net.name,
        input_shape=tuple(reference.batch.images.shape),
        weights_nbytes=sum(p.nbytes for p in reference.parameters.values()),
        minibatch_noise=root_mean_square(reference.noise.values()),
        kink_error=kink_error,
        environment=environment(settings.device),
        settings={**asdict(settings), "model_options": dict(net.options)},
        rows=rows,
    )


def _try_way(way: Way, reference: Reference, settings: Settings) -> _Trial:
    torch.manual_seed(1)  # the sketches' seeds come from torch's global generator
    audit.clear_reports()
    reference.model.zero_grad(set_to_none=True)
    run = way.build(reference.model)
    step = functools.partial(run_step, run, reference)
    step()
    if way.sketched:
        _check_sketched(way)
    step()
    memory = step_memory(functools.partial(loss_of, run, reference.batch), device=settings.device)
    reference.model.zero_grad(set_to_none=True)
    errors = gradient_errors(run, reference, settings.num_seeds if way.random else 1)
    if way.exact:
        _check_exact(way, root_mean_square(errors.values()))
    return _Trial(way, run, memory, errors, count_convolutions(step))


def _check_sketched(way: Way) -> None:
    reports = xconv_fx.all_reports()
    reasons = [report.exact for report in reports if report.exact is not None]
    if reasons or not reports:
        raise NotSketchedError(
            f"{way.name}: expected sketches in every graph, but "
            f"{'one was compiled exactly: ' + reasons[0] if reasons else 'none was compiled'}"
        )


def _check_exact(way: Way, error: float) -> None:
    if not error <= _MOST_ROUNDING:
        raise NotExactError(
            f"{way.name}: expected exact gradients, whose relative error is rounding of at most "
            f"{_MOST_ROUNDING}, got {error:.3g}"
        )


def _figures(
    trials: Mapping[str, _Trial], reference: Reference, settings: Settings
) -> dict[str, Figures]:
    """Time the ways in turn, none of which is compiled again meanwhile, and join the figures."""
    steps = {
        name: functools.partial(run_step, trial.run, reference) for name, trial in trials.items()
    }
    with torch.compiler.set_stance("fail_on_recompile"):
        times = step_times(
            steps,
            baseline=BASELINE,
            num_rounds=settings.num_rounds,
            num_warmup=1,
            device=settings.device,
        )
    noise = root_mean_square(reference.noise.values())
    errors = {name: trial.errors for name, trial in trials.items()}
    errors[BASELINE] = dict.fromkeys(reference.noise, 0.0)  # it is a reference itself
    return {
        name: Figures(
            peak_nbytes=trial.memory.peak_nbytes,
            live_nbytes=trial.memory.live_after_forward_nbytes,
            time_us=times[name].median_us,
            time_ratio=times[name].ratio,
            error=(error := root_mean_square(errors[name].values())),
            noise_share=error / noise,
            worst_share=_worst(errors[name], reference.noise),
            num_convolutions=trial.num_convolutions,
        )
        for name, trial in trials.items()
    }


def _worst(errors: Mapping[str, float], noise: Mapping[str, float]) -> float:
    return max(errors[name] / noise[name] for name in errors)
