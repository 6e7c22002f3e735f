"""The convolutions of one training step: what each was given, forward and backward.

In: a model and a batch. Out: for each convolution its input, its output gradient and the exact
weight gradient, from which the weight gradient of any stand-in for the input follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.trained_nets import LabelledBatch, loss_of
from xconv_fx.ops.gradients import weight_grad

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class ConvolutionSite:
    """One convolution in one step.

    Attributes:
        name: of the module.
        x: its input ``(B, C, *in)``, in the memory order that the step had.
        grad_output: gradient of its output ``(B, O, *out)``.
        weight: gives the shape of the gradient.
        geometry: stride, padding, dilation, transposed, output padding and groups.
        exact: the exact weight gradient, like ``weight``.
    """

    name: str
    x: Tensor
    grad_output: Tensor
    weight: Tensor
    geometry: tuple[Any, ...]
    exact: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the input."""
        return self.x.numel() * self.x.element_size()

    def weight_gradient(self, x: Tensor) -> Tensor:
        """Form the weight gradient that a stand-in for the input gives.

        Args:
            x: tensor of the shape of the input.

        Returns:
            Tensor like ``weight``.
        """
        return weight_grad(self.grad_output, x, self.weight, *self.geometry)


@dataclass
class _Recording:
    """What the hooks saw, by the name of the convolution."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    grad_outputs: dict[str, Tensor] = field(default_factory=dict)

    def on_forward(
        self, name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> None:
        del module
        self.inputs[name] = args[0].detach()
        # A hook on the tensor, since one on the module forbids in-place activations behind it.
        output.register_hook(partial(self.on_backward, name))  # type: ignore[no-untyped-call]

    def on_backward(self, name: str, grad: Tensor) -> None:
        self.grad_outputs[name] = grad.detach()


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions of a model by name, in the order of its modules."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _CONVOLUTIONS)}


def capture(model: nn.Module, batch: LabelledBatch) -> tuple[ConvolutionSite, ...]:
    """Runs one step and records every convolution whose input is no batch.

    The backend keeps convolutions of the batch exact, since the caller holds it anyway.

    Args:
        model: the model, in training mode; each of its convolutions runs once, with zero padding
            given in numbers. Its parameters and their gradients stay as they are.
        batch: images and labels.

    Returns:
        The convolutions in the order in which they ran.
    """
    found = convolutions(model)
    recording = _Recording()
    handles = [
        module.register_forward_hook(partial(recording.on_forward, name))
        for name, module in found.items()
    ]
    try:
        loss = loss_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    weights: list[Any] = [module.weight for module in found.values()]
    exact = dict(zip(found, torch.autograd.grad(loss, weights), strict=True))
    return tuple(
        ConvolutionSite(
            name=name,
            x=x,
            grad_output=recording.grad_outputs[name],
            weight=exact[name],
            geometry=_geometry(found[name]),
            exact=exact[name],
        )
        for name, x in recording.inputs.items()
        if x.data_ptr() != batch.images.data_ptr()
    )


def weight_gradients(
    model: nn.Module, names: Sequence[str], draw: Callable[[], LabelledBatch], num_batches: int
) -> dict[str, list[Tensor]]:
    """Computes the exact weight gradients of independent batches.

    Args:
        model: the model, in training mode; its parameters stay as they are.
        names: of the convolutions.
        draw: draws one batch.
        num_batches: how many.

    Returns:
        By convolution, the gradient of each batch.
    """
    found = convolutions(model)
    weights: list[Any] = [found[name].weight for name in names]
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}
    for _ in range(num_batches):
        of_batch = torch.autograd.grad(loss_of(model, draw()), weights)
        for name, gradient in zip(names, of_batch, strict=True):
            gradients[name].append(gradient)
    return gradients


def _geometry(module: Any) -> tuple[Any, ...]:
    return (
        module.stride,
        module.padding,
        module.dilation,
        module.transposed,
        module.output_padding,
        module.groups,
    )
