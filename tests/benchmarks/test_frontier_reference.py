import dataclasses
import functools

import pytest
import torch

from benchmarks.checkpointed_blocks import checkpoint_blocks
from benchmarks.frontier_measure import count_convolutions
from benchmarks.frontier_reference import (
    Settings,
    gradient_errors,
    make_reference,
    run_step,
    with_baseline,
)
from benchmarks.frontier_ways import _sketched
from benchmarks.trained_nets import BenchmarkNet
from demos.texture_data import TextureData, split

NET = BenchmarkNet(
    "tiny", "unet2d", "segment", (8, 8), 0.1, batch_size=2, options={"width": 4, "num_stages": 2}
)
SETTINGS = Settings(num_steps=1, num_rounds=1, num_seeds=2, num_batches=2)


@pytest.fixture
def data() -> TextureData:
    return split({"noise": torch.rand(64, 160), "ramp": torch.linspace(0, 1, 160).expand(64, 160)})


def test_a_reference_has_noise_for_its_weights_and_no_gradients_left(data: TextureData) -> None:
    reference = make_reference(NET, data, SETTINGS)

    # Three stages of two convolutions, an upsampler and the head.
    assert len(reference.noise) == 8
    assert all(0 < noise < 2 for noise in reference.noise.values())
    run_step(reference.model, reference)
    assert all(parameter.grad is None for parameter in reference.parameters.values())


def test_the_baseline_s_gradients_are_a_second_reference(data: TextureData) -> None:
    reference = make_reference(NET, data, SETTINGS)

    assert len(with_baseline(reference, reference.model).exact) == 2
    assert len(reference.exact) == 1


def test_checkpoints_are_exact_and_compute_convolutions_again(data: TextureData) -> None:
    reference = make_reference(NET, data, SETTINGS)
    run = checkpoint_blocks(reference.model)
    step = functools.partial(run_step, run, reference)

    assert max(gradient_errors(run, reference, 1).values()) < 1e-5
    # Those of the two stages down and the one up are run twice.
    assert count_convolutions(step) == 8 + 6


def test_errors_are_to_the_nearer_of_the_exact_gradients(data: TextureData) -> None:
    reference = make_reference(NET, data, SETTINGS)
    (exact,) = reference.exact
    far = {name: 2 * gradient for name, gradient in exact.items()}
    both = dataclasses.replace(reference, exact=(far, exact))
    only_far = dataclasses.replace(reference, exact=(far,))

    assert max(gradient_errors(reference.model, both, 1).values()) < 1e-5
    # The gradient is half of what it is compared with, on every tensor.
    assert all(
        error == pytest.approx(0.5)
        for error in gradient_errors(reference.model, only_far, 1).values()
    )


def test_a_sketched_way_has_noise(data: TextureData) -> None:
    reference = make_reference(NET, data, SETTINGS)
    run = _sketched(reference.model, inner="aot_eager")

    assert max(gradient_errors(run, reference, 2).values()) > 1e-3
