"""The noise of every parameter's gradient beside its mini-batch noise, and means over kinds.

In: gradients by parameter, exact, estimated and of other batches. Out: frozen plain numbers, as
`benchmarks.gradient_statistics` defines them. Running models is left to
`benchmarks.gradient_noise`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.gradient_statistics import (
    bias_ratio,
    bias_score,
    minibatch_noise,
    relative_rms_error,
    root_mean_square,
)

KINDS = ("weight", "norm weight", "bias", "other")
"""Weights of convolutions and linear layers, scales of norms, all biases, and the rest."""

# A gradient that is zero but for rounding (of a bias in front of a norm) has elements of some
# 1e-7 of the others'; it has no relative error.
_VANISHING = 1e-5
# The compiled step adds up in another order than eager: 1e-6 or so, in every step alike.
_ROUNDING = 1e-4

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class ParameterNoise:
    """One parameter's gradient.

    Attributes:
        name: of the parameter.
        kind: one of :data:`KINDS`.
        error: relative rms error of the compiled gradient over the seeds.
        noise: mini-batch noise.
        bias_ratio: norm of the mean error over its standard error, 1 without bias; None where the
            error is rounding.
        bias_score: like a standard normal variable without bias; None where the error is rounding.
    """

    name: str
    kind: str
    error: float
    noise: float
    bias_ratio: float | None
    bias_score: float | None

    @property
    def estimated(self) -> bool:
        """Whether the error is more than rounding."""
        return self.bias_score is not None


@dataclass(frozen=True)
class Summary:
    """Root mean squares over the estimated parameters of one kind; None if there are none.

    Attributes:
        kind: one of :data:`KINDS`.
        num_estimated: how many parameters.
        num_exact: how many more have no error but rounding.
        error: of the errors.
        noise: of the mini-batch noises.
        ratio: of the two.
    """

    kind: str
    num_estimated: int
    num_exact: int
    error: float | None
    noise: float | None
    ratio: float | None


def parameter_kinds(model: nn.Module) -> dict[str, str]:
    """Sort the parameters of a model, by name, into :data:`KINDS`."""
    kinds = {}
    for prefix, module in model.named_modules():
        own = {name: "other" for name, _ in module.named_parameters(recurse=False)}
        if "weight" in own and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            own["weight"] = "weight"
        elif "weight" in own and "Norm" in type(module).__name__:
            own["weight"] = "norm weight"
        if "bias" in own:
            own["bias"] = "bias"
        kinds.update({f"{prefix}.{name}" if prefix else name: own[name] for name in own})
    return kinds


def compare(
    exact: Gradients,
    estimates: list[Gradients],
    of_batches: list[Gradients],
    kinds: Mapping[str, str],
) -> tuple[tuple[ParameterNoise, ...], tuple[str, ...]]:
    """Compare estimated gradients with exact ones, and batches with each other.

    Args:
        exact: exact gradients of one batch.
        estimates: two or more estimates of them, of independent seeds.
        of_batches: exact gradients of two or more independent batches.
        kinds: of the parameters.

    Returns:
        The parameters that have a gradient, and the names of those where it vanishes.
    """
    vanishing = vanishing_gradients(exact)
    parameters = []
    for name, gradient in exact.items():
        if name in vanishing:
            continue
        samples = [estimate[name] for estimate in estimates]
        error = relative_rms_error(samples, gradient)
        errors = torch.stack([(sample - gradient).flatten() for sample in samples])
        estimated = error > _ROUNDING
        parameters.append(
            ParameterNoise(
                name=name,
                kind=kinds[name],
                error=error,
                noise=minibatch_noise([gradients[name] for gradients in of_batches]),
                bias_ratio=bias_ratio(errors) if estimated else None,
                bias_score=bias_score(errors) if estimated else None,
            )
        )
    return tuple(parameters), vanishing


def vanishing_gradients(exact: Gradients) -> tuple[str, ...]:
    """Name the gradients whose root mean square is below 1e-5 of that of all elements."""
    count = sum(gradient.numel() for gradient in exact.values())
    energy = sum(float(gradient.double().square().sum()) for gradient in exact.values())
    least = _VANISHING**2 * energy / count
    return tuple(
        name
        for name, gradient in exact.items()
        if float(gradient.double().square().mean()) <= least
    )


def summarise(parameters: Iterable[ParameterNoise]) -> tuple[Summary, ...]:
    """Summarise each kind that occurs, in the order of :data:`KINDS`.

    Parameters with an exact gradient are counted, but left out of the mean squares: they would
    lower the error and leave the noise.
    """
    listed = list(parameters)
    summaries = []
    for kind in KINDS:
        of_kind = [parameter for parameter in listed if parameter.kind == kind]
        if of_kind:
            summaries.append(_summarise_kind(kind, of_kind))
    return tuple(summaries)


def _summarise_kind(kind: str, parameters: list[ParameterNoise]) -> Summary:
    estimated = [parameter for parameter in parameters if parameter.estimated]
    num_exact = len(parameters) - len(estimated)
    if not estimated:
        return Summary(kind, 0, num_exact, None, None, None)
    error = root_mean_square(parameter.error for parameter in estimated)
    noise = root_mean_square(parameter.noise for parameter in estimated)
    return Summary(kind, len(estimated), num_exact, error, noise, error / noise)
