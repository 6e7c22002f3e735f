import dataclasses

import pytest
import torch
from torch import nn

from benchmarks.frontier_measure import (
    NotSketchedError,
    _check_sketched,
    measure_model,
    reason_of,
)
from benchmarks.frontier_reference import Settings
from benchmarks.frontier_ways import BASELINE, WAYS, Way, _sketched
from benchmarks.trained_nets import BenchmarkNet
from demos.texture_data import TextureData, split

NET = BenchmarkNet(
    "tiny", "unet2d", "segment", (8, 8), 0.1, batch_size=2, options={"width": 4, "num_stages": 2}
)
SETTINGS = Settings(num_steps=1, num_rounds=1, num_seeds=2, num_batches=2)


def way(name: str) -> Way:
    return next(way for way in WAYS if way.name == name)


def eager_baseline() -> Way:
    """Eager under the baseline's name: nothing is compiled."""
    return Way(BASELINE, "stock", "eager in its place", lambda model: model, exact=True)


def broken(model: nn.Module) -> nn.Module:
    raise RuntimeError(f"{type(model).__name__} has\n no such kernel")


@pytest.fixture
def data() -> TextureData:
    return split({"noise": torch.rand(64, 160), "ramp": torch.linspace(0, 1, 160).expand(64, 160)})


def test_ways_are_measured_from_end_to_end_and_one_that_fails_is_a_row(data: TextureData) -> None:
    said: list[str] = []
    ways = [
        eager_baseline(),
        Way("broken", "fp8", "does not run", broken),
        way("rounding-4b"),
        way("rounding-2b"),
    ]
    result = measure_model(NET, data, ways, SETTINGS, said.append)
    rows = {row.way: row for row in result.rows}

    assert list(rows) == [BASELINE, "broken", "rounding-4b", "rounding-2b"]
    assert rows["broken"].figures is None
    assert rows["broken"].failure == "RuntimeError: UNet has no such kernel"
    assert said[0] == "tiny: inductor runs"
    assert said[1] == "tiny: broken failed: RuntimeError: UNet has no such kernel"
    base, four, two = (rows[name].figures for name in (BASELINE, "rounding-4b", "rounding-2b"))
    assert rows[BASELINE].exact
    assert base.error == 0.0
    assert not rows["rounding-4b"].exact
    assert result.kink_error == 0.0  # eager in the baseline's place
    assert base.time_ratio == 1.0
    assert 0 < four.error < two.error
    assert two.live_nbytes < four.live_nbytes < base.live_nbytes
    # Eight convolutions in two stages down and one up, one of them transposed, and the head.
    assert base.num_convolutions == four.num_convolutions == 8
    assert result.input_shape == (2, 3, 8, 8)
    assert result.environment["torch"] == torch.__version__
    assert result.settings["model_options"] == {"width": 4, "num_stages": 2}


def test_without_the_baseline_there_is_an_error(data: TextureData) -> None:
    ways = [Way(BASELINE, "stock", "does not run", broken)]

    with pytest.raises(RuntimeError, match=r"inductor failed on tiny, .* UNet has no such kernel"):
        measure_model(NET, data, ways, SETTINGS, lambda _: None)


def test_a_graph_without_sketches_is_a_failure(data: TextureData) -> None:
    plain = Way("plain", "xconv", "compiled by nothing", lambda model: model, sketched=True)
    result = measure_model(NET, data, [eager_baseline(), plain], SETTINGS, lambda _: None)

    assert result.rows[1].figures is None
    assert "plain: expected sketches in every graph, but none was compiled" in (
        result.rows[1].failure or ""
    )


def test_a_graph_that_was_compiled_exactly_is_a_failure() -> None:
    linear = nn.Linear(3, 2)
    _sketched(linear, inner="aot_eager")(torch.randn(4, 3))

    with pytest.raises(NotSketchedError, match=r"xconv: .* one was compiled exactly: no conv"):
        _check_sketched(way("xconv"))


def test_a_way_that_should_be_exact_and_is_not_is_a_failure(data: TextureData) -> None:
    posing = dataclasses.replace(way("rounding-2b"), name="posing", exact=True)
    result = measure_model(NET, data, [eager_baseline(), posing], SETTINGS, lambda _: None)

    assert result.rows[1].figures is None
    assert "posing: expected exact gradients, whose relative error is rounding of at most 0.03" in (
        result.rows[1].failure or ""
    )


def test_a_long_reason_is_cut_to_one_line() -> None:
    reason = reason_of(ValueError("a\n  b " + "c" * 1000))

    assert reason.startswith("ValueError: a b ccc")
    assert len(reason) == 300
