"""What the ways of the frontier are compared with: a trained net, a batch, exact gradients.

In: a net, photographs and settings. Out: a frozen reference, and the errors of a way's gradients
to it. The net is trained for some steps, eagerly, so that its mini-batch noise is that of a
training under way. Gradients that are compared are taken without tf32, in which a GPU convolves by
default: its rounding alone moves the gradients of a deep net by a quarter of their length.

Exact gradients are known to rounding only, and rounding decides near-ties of a max-pool and signs
at a relu: fp32 and fp64 differ by 0.4 % on a U-Net, two layouts in fp64 by 1e-14. So eager's and
the baseline's gradients both count as exact, and an error is taken to the nearer ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.frontier_ways import Run
from benchmarks.gradient_noise import gradients_of
from benchmarks.gradient_statistics import (
    minibatch_noise,
    relative_rms_error,
    root_mean_square,
)
from benchmarks.parameter_noise import Gradients, parameter_kinds, vanishing_gradients
from benchmarks.trained_nets import (
    BenchmarkNet,
    LabelledBatch,
    build_net,
    draw_batch,
    loss_of,
    train,
)
from demos.texture_data import TextureData


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        num_steps: training steps before.
        num_rounds: timed rounds.
        num_seeds: steps of a random way that its error is the mean of.
        num_batches: independent batches for the mini-batch noise, at least 2.
        device: where all of it runs, ``cpu`` or ``cuda``.
    """

    num_steps: int = 20
    num_rounds: int = 5
    num_seeds: int = 4
    num_batches: int = 8
    device: str = "cpu"


@dataclass(frozen=True)
class Reference:
    """What all ways are compared with.

    Attributes:
        model: trained, in training mode.
        batch: of the step that is measured.
        parameters: of the model, by name.
        exact: gradients of that step, eager's first, then the baseline's where it has run.
        noise: mini-batch noise of the weights of convolutions and linear layers, by name; those
            whose gradient vanishes are left out.
    """

    model: nn.Module
    batch: LabelledBatch
    parameters: Mapping[str, nn.Parameter]
    exact: tuple[Gradients, ...]
    noise: Mapping[str, float]


def make_reference(net: BenchmarkNet, data: TextureData, settings: Settings) -> Reference:
    """Train a net, and compute its exact gradients and their mini-batch noise."""
    generator = torch.Generator().manual_seed(0)
    model = build_net(net, seed=0).to(settings.device)
    train(net, model, data, settings.num_steps, generator)
    parameters = dict(model.named_parameters())
    batch = draw_batch(net, data, generator).to(settings.device)
    with _without_tf32():
        exact = gradients_of(model, parameters, batch)
        of_batches = [
            gradients_of(model, parameters, draw_batch(net, data, generator).to(settings.device))
            for _ in range(settings.num_batches)
        ]
    kinds, vanishing = parameter_kinds(model), vanishing_gradients(exact)
    noise = {
        name: minibatch_noise([gradients[name] for gradients in of_batches])
        for name in exact
        if kinds[name] == "weight" and name not in vanishing
    }
    return Reference(model, batch, parameters, (exact,), noise)


def gradient_errors(run: Run, reference: Reference, num_seeds: int) -> dict[str, float]:
    """Measure the weights' gradients over steps on the same batch.

    Args:
        run: maps a batch to logits.
        reference: with one or more exact gradients.
        num_seeds: steps.

    Returns:
        Relative rms errors by name, to those exact gradients that are nearest on the whole.
    """
    with _without_tf32():
        estimates = [
            gradients_of(run, reference.parameters, reference.batch) for _ in range(num_seeds)
        ]
    return min(
        (_errors(estimates, exact, reference.noise) for exact in reference.exact),
        key=lambda errors: root_mean_square(errors.values()),
    )


def with_baseline(reference: Reference, run: Run) -> Reference:
    """Add the gradients of an exact way, the baseline, to those of eager."""
    with _without_tf32():
        gradients = gradients_of(run, reference.parameters, reference.batch)
    return dataclasses.replace(reference, exact=(*reference.exact, gradients))


def run_step(run: Run, reference: Reference) -> None:
    """Run a training step without the update: forward, backward, gradients dropped."""
    torch.autograd.backward(loss_of(run, reference.batch))
    reference.model.zero_grad(set_to_none=True)


def _without_tf32() -> Any:
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _errors(
    estimates: Sequence[Gradients], exact: Gradients, names: Iterable[str]
) -> dict[str, float]:
    return {
        name: relative_rms_error((gradients[name] for gradients in estimates), exact[name])
        for name in names
    }
