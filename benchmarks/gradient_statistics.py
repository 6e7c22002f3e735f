"""How far noisy gradients are from exact ones, and batches' gradients from each other.

In: gradients as tensors. Out: plain numbers. Both noises are relative to the norm of a batch's
own gradient, so that their ratio is that of the absolute errors:

- *sketch error* of one batch B: ``sqrt(E ||g_hat - g_B||^2) / ||g_B||``, the mean over seeds;
- *mini-batch noise*: ``sqrt(E ||g_B - E g_B||^2 / E ||g_B||^2)``, the means over batches. The
  numerator is estimated without bias by the sample variance (divisor K - 1). It is at most 1 in
  expectation and tends to 1 where batches agree on nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor


def relative_rms_error(estimates: Iterable[Tensor], exact: Tensor) -> float:
    """Computes ``sqrt(mean ||estimate - exact||^2) / ||exact||``.

    Args:
        estimates: one or more tensors, each of the shape of ``exact``.
        exact: the exact gradient, not zero.

    Returns:
        The relative root mean square error.

    Raises:
        ValueError: there is no estimate, or ``exact`` is zero.
    """
    reference = exact.double()
    norm = float(reference.norm())
    squares = [(e.double() - reference).square().sum().item() for e in estimates]
    if not squares:
        raise ValueError("relative_rms_error: expected at least one estimate, got none")
    if norm == 0.0:
        raise ValueError(
            "relative_rms_error: the exact gradient is zero, so that no error is relative to it"
        )
    return math.sqrt(sum(squares) / len(squares)) / norm


def minibatch_noise(gradients: Sequence[Tensor]) -> float:
    """Computes the relative deviation of independent batches' gradients (see the module).

    Args:
        gradients: of K >= 2 independent batches at the same parameters.

    Returns:
        ``sqrt(S^2 / mean ||g||^2)`` with the sample variance ``S^2``; 0 if all are zero.

    Raises:
        ValueError: there are fewer than two gradients.
    """
    count = len(gradients)
    if count < 2:
        raise ValueError(f"minibatch_noise: expected gradients of 2 batches or more, got {count}")
    mean = sum((g.double() for g in gradients[1:]), gradients[0].double()) / count
    variance = sum((g.double() - mean).square().sum().item() for g in gradients) / (count - 1)
    energy = sum(g.double().square().sum().item() for g in gradients) / count
    return math.sqrt(variance / energy) if energy > 0.0 else 0.0


def bias_ratio(errors: Tensor) -> float:
    """Divides the norm of the mean error by its standard error.

    Args:
        errors: ``(K, n)``, K >= 2 independent errors.

    Returns:
        ``||mean|| / sqrt(S^2 / K)``; near 1 if the errors have mean zero, and growing like
        ``sqrt(K)`` otherwise. 0 if all errors are zero.
    """
    count = len(errors)
    mean = errors.double().mean(0)
    variance = (errors.double() - mean).square().sum().item() / (count - 1)
    norm = float(mean.norm())
    if variance == 0.0:
        return 0.0 if norm == 0.0 else math.inf
    return norm / math.sqrt(variance / count)


def bias_score(errors: Tensor) -> float:
    """Scores the hypothesis that errors have mean zero, like a standard normal variable.

    With ``G = E E^T`` the sum of ``G_jk`` over j < k has the expectation
    ``K (K - 1) / 2 ||bias||^2``, hence 0 without bias; the terms are then uncorrelated, so that
    ``sum G_jk^2`` estimates its variance. The quotient is near standard normal where errors
    spread over many directions, and skewed to the right where over few.

    Args:
        errors: ``(K, n)``, K >= 2 independent errors.

    Returns:
        ``sum G_jk / sqrt(sum G_jk^2)`` over j < k; 0 if all errors are zero.
    """
    wide = errors.double()
    pairs = (wide @ wide.t()).triu(diagonal=1)
    deviation = float(pairs.norm())
    return float(pairs.sum()) / deviation if deviation > 0.0 else 0.0


def root_mean_square(values: Iterable[float]) -> float:
    """Computes the root of the mean square, nan of nothing."""
    squares = [value * value for value in values]
    return math.sqrt(sum(squares) / len(squares)) if squares else math.nan


def geometric_mean(values: Iterable[float]) -> float:
    """Computes the geometric mean of numbers >= 0: 0 if one of them is 0, nan of nothing."""
    listed = list(values)
    if not listed:
        return math.nan
    if min(listed) == 0.0:
        return 0.0
    return math.exp(sum(math.log(value) for value in listed) / len(listed))
