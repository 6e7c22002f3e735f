"""What codecs reached on the convolutions of a net, and the figures that follow.

In: bytes and errors, measured by `benchmarks.codec_errors`. Out: means, ratios, which rung of the
ladder beats which, and the hull. Pure functions of plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.gradient_statistics import geometric_mean


@dataclass(frozen=True)
class LayerError:
    """One codec on one convolution.

    Attributes:
        codec: its name.
        nbytes: bytes that it keeps.
        error: relative rms error of the weight gradient.
    """

    codec: str
    nbytes: int
    error: float


@dataclass(frozen=True)
class Layer:
    """One convolution.

    Attributes:
        name: of the module.
        shape: of its input.
        nbytes: bytes of its input.
        noise: mini-batch noise of its weight gradient (`gradient_statistics`).
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    noise: float


@dataclass(frozen=True)
class CodecResult:
    """One codec, or one probing at the bytes of one rung, on all convolutions of a net.

    Attributes:
        name: of the codec, or of the mode of probing.
        rung: the rung of the ladder whose bytes it is given; its own name for a rung.
        layers: one a convolution, None where it does not fit.
    """

    name: str
    rung: str
    layers: tuple[LayerError | None, ...]


@dataclass(frozen=True)
class NetResult:
    """All codecs on one net.

    Attributes:
        net: its name.
        layers: its convolutions.
        rungs: one a rung of the ladder.
        probings: the paper's, at the bytes of each rung.
    """

    net: str
    layers: tuple[Layer, ...]
    rungs: tuple[CodecResult, ...]
    probings: tuple[CodecResult, ...]


def share_of_bytes(result: CodecResult, layers: Sequence[Layer]) -> float:
    """Divide the bytes kept by those of the inputs, over the convolutions that it fits."""
    pairs = [(r, f) for r, f in zip(result.layers, layers, strict=True) if r is not None]
    if not pairs:
        return math.nan
    return sum(r.nbytes for r, _ in pairs) / sum(full.nbytes for _, full in pairs)


def mean_error(result: CodecResult) -> float:
    """Take the geometric mean of the errors over the convolutions that it fits."""
    return geometric_mean(layer.error for layer in result.layers if layer is not None)


def mean_error_to_noise(result: CodecResult, layers: Sequence[Layer]) -> float:
    """Take the geometric mean of error / mini-batch noise over the convolutions that it fits."""
    return geometric_mean(
        r.error / layer.noise for r, layer in zip(result.layers, layers, strict=True) if r
    )


def ratio_to_paper(rung: CodecResult, probings: Iterable[CodecResult]) -> float:
    """Compare a rung with the best of the paper's probings at its bytes.

    Args:
        rung: the rung.
        probings: the paper's probings; those at other rungs' bytes are skipped.

    Returns:
        Geometric mean, over the convolutions that any probing fits, of the rung's error over the
        least error of the probings; nan if none fits. Taking the least of several measured errors
        favours the paper.
    """
    rivals = [probing.layers for probing in probings if probing.rung == rung.name]
    ratios = []
    for ours, *theirs in zip(rung.layers, *rivals, strict=True):
        errors = [layer.error for layer in theirs if layer is not None]
        if ours is not None and errors:
            ratios.append(ours.error / min(errors))
    return geometric_mean(ratios)


def beaten_by(rung: CodecResult, others: Iterable[CodecResult]) -> str | None:
    """Name a rung that beats a rung both in bytes and in error.

    Args:
        rung: the rung in question.
        others: rungs to compare it with; itself among them does no harm.

    Returns:
        Name of the first that fits wherever ``rung`` does and, over those convolutions, keeps no
        more bytes at no larger (geometric mean) error, one of them less; None if there is none.
    """
    fits = [i for i, layer in enumerate(rung.layers) if layer is not None]
    for other in others:
        if not fits or any(other.layers[i] is None for i in fits):
            continue
        theirs, ours = (_bytes_and_error(result, fits) for result in (other, rung))
        if theirs != ours and all(their <= our for their, our in zip(theirs, ours, strict=True)):
            return other.name
    return None


def lower_hull(
    points: Sequence[tuple[float, float]], key: Callable[[float], float] = lambda y: y
) -> list[int]:
    """Find the points that minimise ``x + price * key(y)`` for some price in [0, inf].

    Args:
        points: pairs (x, y).
        key: increasing map of y; the plan of the backend prices the squared error.

    Returns:
        Indices of the corners of the lower left convex hull, by growing x.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    hull: list[int] = []
    for i in order:
        if hull and key(points[i][1]) >= key(points[hull[-1]][1]):
            continue
        while len(hull) > 1 and not _turns_left(points, key, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _turns_left(
    points: Sequence[tuple[float, float]], key: Callable[[float], float], a: int, b: int, c: int
) -> bool:
    (ax, ay), (bx, by), (cx, cy) = ((points[i][0], key(points[i][1])) for i in (a, b, c))
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0


def _bytes_and_error(result: CodecResult, fits: Sequence[int]) -> tuple[float, float]:
    layers = [layer for i in fits if (layer := result.layers[i]) is not None]
    return sum(layer.nbytes for layer in layers), geometric_mean(layer.error for layer in layers)
