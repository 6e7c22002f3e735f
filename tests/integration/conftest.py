"""What the integration tests share: compiling, sampling gradients, and judging their mean.

A compiled model is run many times on the same input, weights and output gradient, so that only
the sketches differ between steps. Whatever is not estimated must equal eager's to rounding in
every step; whatever is estimated must have eager's gradient as its mean.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import xconv_fx

if TYPE_CHECKING:
    from xconv_fx.audit import Report

# Steps a Monte Carlo check takes by default.
NUM_STEPS = 40

# The directory makes some 2,000 Monte Carlo comparisons. One errs with probability 1e-8 at most,
# all together with 2e-5: what Student's t exceeds in either direction with probability 1e-8, by
# the number of steps (at least) it was taken over.
T_LIMITS = {40: 7.25, 100: 6.26, 150: 6.08, 250: 5.94}
LOG_ERROR_PROBABILITY = math.log(1e8)

# Units in the last place of the largest element that a result may differ from eager's. Sums of
# up to some 600 products are added up in another order; the largest deviation seen was 20. Half
# types are added up in float32 and rounded now and then: a few units.
ROUNDING_UNITS = {torch.float32: 64, torch.float64: 64, torch.bfloat16: 4, torch.float16: 4}


@dataclass(frozen=True)
class Comparison:
    """A model run once in eager mode and many times compiled, on the same data.

    Attributes:
        expected: eager's output, of which `grad_output` is the gradient.
        expected_grads: eager's gradients by parameter name; ``input`` is the input's.
        expected_buffers: eager's buffers after its one step.
        output: the compiled model's output in the first step.
        grads: the first step's gradients.
        buffers: the compiled model's buffers after the first step.
        samples: by name, the gradients of all steps, float64 ``(steps, numel)``.
        grad_output: gradient of the output that every step was given.
        report: the report of the compiled graph.
    """

    expected: Tensor
    expected_grads: dict[str, Tensor]
    expected_buffers: dict[str, Tensor]
    output: Tensor
    grads: dict[str, Tensor]
    buffers: dict[str, Tensor]
    samples: dict[str, Tensor]
    grad_output: Tensor
    report: Report


def gradients(
    call: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, grad_output: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs one step from zeroed gradients; returns the output and the gradients by name."""
    model.zero_grad(set_to_none=True)
    x.grad = None
    output = call(x)
    output.backward(grad_output)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if x.grad is not None:
        grads["input"] = x.grad
    return output.detach(), {name: grad.detach().clone() for name, grad in grads.items()}


@pytest.fixture(name="gradients")
def _gradients() -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    return gradients


@pytest.fixture
def compile_xconv() -> Callable[..., Any]:
    """`compile_xconv(model, **options)`, with ``inner="aot_eager"`` unless told otherwise."""
    # Not at the top: it imports Inductor, which settles on a cache directory when imported, and
    # this file may be read before the hook in tests/conftest.py has given the run its own.
    from xconv_fx.backend import xconv

    def compile_model(model: nn.Module, **options: Any) -> Any:
        return torch.compile(model, backend=xconv, options={"inner": "aot_eager", **options})

    return compile_model


@pytest.fixture
def compare(compile_xconv: Callable[..., Any]) -> Callable[..., Comparison]:
    """`compare(model, x, num_steps=..., **options)` returns a :class:`Comparison`."""

    def run(
        model: nn.Module, x: Tensor, *, num_steps: int = NUM_STEPS, **options: Any
    ) -> Comparison:
        eager = copy.deepcopy(model)
        # Noise, so that no term of a gradient vanishes, and the output itself, so that none is
        # small: of a mean or a correlation with noise alone little would be left.
        with torch.no_grad():
            output = copy.deepcopy(model)(x)
            grad_output = output + torch.randn_like(output)
        expected, expected_grads = gradients(eager, eager, x, grad_output)
        compiled = compile_xconv(model, **options)
        output, grads = gradients(compiled, model, x, grad_output)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        steps = [grads]
        for _ in range(num_steps - 1):
            again, more = gradients(compiled, model, x, grad_output)
            torch.testing.assert_close(again, output, rtol=0, atol=0, equal_nan=True)
            steps.append(more)
        samples = {
            name: torch.stack([step[name].double().flatten().cpu() for step in steps])
            for name in grads
        }
        report = xconv_fx.last_report()
        assert report is not None
        return Comparison(
            expected, expected_grads, dict(eager.named_buffers()), output, grads, buffers,
            samples, grad_output, report,
        )  # fmt: skip

    return run


@pytest.fixture
def assert_to_rounding() -> Callable[[Tensor, Tensor], None]:
    """Checks that a tensor equals eager's but for the order of summation."""

    def check(got: Tensor, expected: Tensor) -> None:
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        unit = torch.finfo(expected.dtype).eps * expected.abs().max().item()
        limit = ROUNDING_UNITS[expected.dtype] * unit
        worst = (got.double() - expected.double()).abs().max().item()
        assert worst <= limit, f"differs from eager's by {worst:.3g}, allowed {limit:.3g}"

    return check


@pytest.fixture
def assert_unbiased() -> Callable[..., None]:
    """Checks that the mean of the samples is the exact gradient, as far as the noise can tell.

    `check(samples, exact, bias_bound=None)` takes samples ``(steps, numel)``, the exact gradient,
    and for estimates whose bias is known and bounded the bound of each element's.

    The mean error is judged along five directions (the exact gradient's, where a wrong scale
    shows, and four random ones) by Student's t, and in all directions at once by its squared
    norm: for normal errors with covariance eigenvalues l, ``|mean|^2`` exceeds ``(sum l +
    2 sqrt(s sum l^2) + 2 s max l) / steps`` with probability ``exp(-s)`` at most (Laurent and
    Massart, Ann. Statist. 28, 2000, lemma 1). The bound is taken with the eigenvalues of the
    samples, whose spread is wider than the true one's.
    """

    def check(samples: Tensor, exact: Tensor, bias_bound: Tensor | None = None) -> None:
        steps = len(samples)
        assert steps >= NUM_STEPS, "T_LIMITS starts at that many steps"
        t_limit = min(limit for count, limit in T_LIMITS.items() if count <= steps)
        flat = exact.double().flatten().cpu()
        # Both sides round every intermediate gradient to its dtype, at other values.
        rounding = 4 * torch.finfo(exact.dtype).eps * flat.norm().item()
        bound = torch.zeros_like(flat) if bias_bound is None else bias_bound.double().flatten()
        errors = samples - flat
        mean = errors.mean(0)
        generator = torch.Generator().manual_seed(1)
        random = torch.randn(4, len(flat), generator=generator, dtype=torch.float64)
        directions = nn.functional.normalize(torch.cat([flat[None], random]), dim=1)
        projected = errors @ directions.T
        deviation = projected.std(0) / steps**0.5
        allowed = t_limit * deviation + directions.abs() @ bound + rounding
        excess = (projected.mean(0).abs() / allowed.clamp_min(1e-300)).tolist()
        assert max(excess) <= 1, (
            f"the mean of {steps} gradients is off by {excess} of what is allowed along the exact "
            f"gradient and four random directions (gradient norm {flat.norm():.3g}, mean error "
            f"along them {projected.mean(0).tolist()})"
        )
        eigenvalues = torch.linalg.svdvals(errors - mean).square() / (steps - 1)
        s = LOG_ERROR_PROBABILITY
        spread = 2 * (s * eigenvalues.square().sum()).sqrt() + 2 * s * eigenvalues.max()
        limit = ((eigenvalues.sum() + spread) / steps).sqrt() + bound.norm() + rounding
        assert mean.norm() <= limit, (
            f"the mean of {steps} gradients is {mean.norm():.3g} away from the exact one (norm "
            f"{flat.norm():.3g}), allowed {limit:.3g}"
        )

    return check


@pytest.fixture
def sketched_modules() -> Callable[[Report], dict[str, str]]:
    """Maps the modules whose values a report says were sketched to the codec's name."""

    def modules(report: Report) -> dict[str, str]:
        return {row.module: str(row.codec) for row in report.values if row.decision == "sketch"}

    return modules
