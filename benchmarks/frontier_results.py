"""What the frontier measured, which way beats which, and the file that holds it.

In: figures of `benchmarks.frontier`. Out: rows, comparisons of them, JSON. Figures of one model
come from one run, so that its times can be compared; a file holds models of several runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHARE_OF_NOISE = 0.25
"""Noise that a way may add, as a share of mini-batch noise, to count as harmless."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one way.

    Attributes:
        peak_nbytes: the most that a step had live, gradients included.
        live_nbytes: live between forward and backward.
        time_us: median time of a step.
        time_ratio: median over the rounds of the time over the baseline's.
        error: relative rms error of the gradients, rms over weight tensors of convolutions and
            linear layers, to the nearer of the exact gradients of eager and of the baseline.
        noise_share: that error over the mini-batch noise of the same tensors.
        worst_share: the same of the tensor where it is the largest.
        num_convolutions: calls of ``aten.convolution`` in a step. What the baseline's step has
            not are computed again, but for xconv, whose gradients are such calls themselves.
    """

    peak_nbytes: int
    live_nbytes: int
    time_us: float
    time_ratio: float
    error: float
    noise_share: float
    worst_share: float
    num_convolutions: int


@dataclass(frozen=True)
class Row:
    """One way.

    Attributes:
        way: its name.
        family: of `benchmarks.frontier_ways`.
        note: what it does.
        exact: whether it computes the gradient exactly, so that its error is rounding.
        figures: what was measured, None where it failed.
        failure: why it failed, None where it did not.
    """

    way: str
    family: str
    note: str
    exact: bool
    figures: Figures | None
    failure: str | None = None


@dataclass(frozen=True)
class ModelResult:
    """One model.

    Attributes:
        model: its name.
        input_shape: of the batch.
        weights_nbytes: of its parameters, and so of their gradients.
        minibatch_noise: rms over the weight tensors.
        kink_error: error of the baseline's gradients to eager's. Both are exact; where a maximum
            or a relu is decided by the last bit, their kernels decide it differently.
        environment: torch's version, device, threads.
        settings: of the run.
        rows: one a way.
    """

    model: str
    input_shape: tuple[int, ...]
    weights_nbytes: int
    minibatch_noise: float
    kink_error: float
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]


def dominated(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Say which ways are dominated by which.

    One way dominates another whose peak, time and noise are all no less than its own, and one of
    them more. Noise of an exact way is 0.

    Args:
        rows: of one model; those that failed take no part.

    Returns:
        For each dominated way those that dominate it, in the order of the rows.
    """
    points = {row.way: _point(row, row.figures) for row in rows if row.figures is not None}
    found = {
        way: tuple(other for other in points if _dominates(points[other], points[way]))
        for way in points
    }
    return {way: others for way, others in found.items() if others}


def rivals_over(rows: Sequence[Row], family: str = "xconv") -> dict[str, tuple[str, ...]]:
    """Say which ways of a family are dominated by ways outside of it.

    Args:
        rows: of one model.
        family: of ways.

    Returns:
        For each such way those outside of its family that dominate it; empty if there are none.
    """
    family_of = {row.way: row.family for row in rows}
    found = {
        way: tuple(other for other in others if family_of[other] != family)
        for way, others in dominated(rows).items()
        if family_of[way] == family
    }
    return {way: others for way, others in found.items() if others}


def beaten_recomputations(rows: Sequence[Row], baseline: str) -> dict[str, tuple[str, ...]]:
    """Say which ways of xconv beat torch's budgets that compute a convolution again.

    Args:
        rows: of one model.
        baseline: a way that computes none again.

    Returns:
        For each such budget the ways of xconv that have no higher peak and are faster, with less
        than a quarter of mini-batch noise; empty tuples where xconv misses its target.
    """
    measured = {row.way: (row.family, row.figures) for row in rows if row.figures is not None}
    if baseline not in measured:
        return {}
    least = measured[baseline][1].num_convolutions
    ours = [(way, figures) for way, (family, figures) in measured.items() if family == "xconv"]
    return {
        way: tuple(name for name, figures in ours if _beats(figures, theirs))
        for way, (family, theirs) in measured.items()
        if family == "budget" and theirs.num_convolutions > least
    }


def save_results(results: Iterable[ModelResult], path: Path) -> None:
    """Write models into a file, beside those that it has of other models.

    Args:
        results: replace the file's results of the same models, whole.
        path: of the file; made where there is none.

    Raises:
        ValueError: the file is there and not one of ours.
    """
    merged = {result.model: result for result in load_results(path)} if path.exists() else {}
    merged.update({result.model: result for result in results})
    models = {name: asdict(merged[name]) for name in sorted(merged)}
    path.write_text(json.dumps({"models": models}, indent=2) + "\n")


def load_results(path: Path) -> tuple[ModelResult, ...]:
    """Read a file that :func:`save_results` wrote.

    Raises:
        ValueError: it is not one; the text has the path.
    """
    try:
        models = json.loads(path.read_text())["models"]
        return tuple(_model_result(model) for model in models.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold results of benchmarks.frontier ({type(error).__name__}: "
            f"{error}); give another file, or delete this one"
        ) from error


def _model_result(model: dict[str, Any]) -> ModelResult:
    rows = tuple(
        Row(**{**row, "figures": row["figures"] and Figures(**row["figures"])})
        for row in model["rows"]
    )
    return ModelResult(**{**model, "input_shape": tuple(model["input_shape"]), "rows": rows})


def _point(row: Row, figures: Figures) -> tuple[float, float, float]:
    noise = 0.0 if row.exact else figures.noise_share
    return (figures.peak_nbytes, figures.time_ratio, noise)


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(mine <= its for mine, its in zip(a, b, strict=True))


def _beats(ours: Figures, theirs: Figures) -> bool:
    return (
        ours.peak_nbytes <= theirs.peak_nbytes
        and ours.time_ratio < theirs.time_ratio
        and ours.noise_share < SHARE_OF_NOISE
    )
