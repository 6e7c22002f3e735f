import math

import pytest

from benchmarks.codec_results import (
    CodecResult,
    Layer,
    LayerError,
    beaten_by,
    lower_hull,
    mean_error,
    mean_error_to_noise,
    ratio_to_paper,
    share_of_bytes,
)

LAYERS = (Layer("a", (1, 1, 5, 5), 100, 0.5), Layer("b", (1, 3, 10, 10), 1200, 0.8))


def result(name: str, *pairs: tuple[int, float] | None, rung: str | None = None) -> CodecResult:
    layers = tuple(pair and LayerError(name, *pair) for pair in pairs)
    return CodecResult(name, rung or name, layers)


def test_bytes_add_up_and_errors_multiply() -> None:
    codec = result("c", (10, 0.1), (120, 0.4))

    assert share_of_bytes(codec, LAYERS) == pytest.approx(0.1)
    assert mean_error(codec) == pytest.approx(0.2)
    assert mean_error_to_noise(codec, LAYERS) == pytest.approx(math.sqrt(0.2 * 0.5))


def test_a_codec_is_judged_where_it_fits() -> None:
    codec = result("c", None, (120, 0.4))

    assert share_of_bytes(codec, LAYERS) == pytest.approx(0.1)
    assert mean_error(codec) == pytest.approx(0.4)
    assert mean_error_to_noise(codec, LAYERS) == pytest.approx(0.5)
    assert math.isnan(share_of_bytes(result("c", None, None), LAYERS))


def test_the_paper_is_represented_by_its_best_on_each_convolution() -> None:
    rung = result("c", (10, 0.1), (10, 0.1))
    probings = [
        result("independent", (10, 0.2), (10, 1.0), rung="c"),
        result("orthogonal", (10, 0.4), (10, 0.8), rung="c"),
        result("independent", (5, 0.01), (5, 0.01), rung="other"),
    ]

    assert ratio_to_paper(rung, probings) == pytest.approx(math.sqrt(1 / 2 * 1 / 8))


def test_the_paper_is_skipped_where_it_does_not_fit() -> None:
    rung = result("c", (10, 0.1), (10, 0.1))

    assert ratio_to_paper(rung, [result("i", (10, 0.2), None, rung="c")]) == pytest.approx(0.5)
    assert math.isnan(ratio_to_paper(rung, [result("i", None, None, rung="c")]))


def test_a_rung_is_beaten_by_one_of_fewer_bytes_and_less_error() -> None:
    good, bad = result("good", (10, 0.1), (10, 0.3)), result("bad", (20, 0.2), (10, 0.2))
    cheap = result("cheap", (1, 0.9), (1, 0.9))
    ladder = (bad, good, cheap)

    assert beaten_by(bad, ladder) == "good"
    assert beaten_by(good, ladder) is None
    assert beaten_by(cheap, ladder) is None


def test_a_rung_of_the_same_bytes_and_error_beats_nothing() -> None:
    assert beaten_by(result("a", (1, 0.1), None), [result("b", (1, 0.1), None)]) is None


def test_rungs_are_compared_where_the_beaten_one_fits() -> None:
    some, everywhere = result("some", (10, 0.2), None), result("all", (9, 0.1), (900, 5.0))

    assert beaten_by(some, [everywhere]) == "all"
    assert beaten_by(everywhere, [some]) is None
    assert beaten_by(result("none", None, None), [some, everywhere]) is None


def test_the_hull_leaves_out_what_no_price_chooses() -> None:
    points = [(4.0, 0.0), (1.0, 2.0), (2.0, 1.9), (2.0, 0.5), (0.0, 4.0), (5.0, 1.0)]

    hull = lower_hull(points)
    assert hull == [4, 1, 3, 0]
    chosen = {
        min(range(len(points)), key=lambda i: points[i][0] + price * points[i][1])
        for price in (0.0, 0.1, 0.6, 1.0, 3.0, 5.0, 100.0)
    }
    assert set(hull) == chosen


def test_the_hull_depends_on_what_is_priced() -> None:
    points = [(0.0, 2.0), (1.0, 1.2), (2.0, 0.0)]

    assert lower_hull(points) == [0, 2]
    assert lower_hull(points, key=lambda y: y * y) == [0, 1, 2]
