"""Average pools and replication pads: their backward reads the input's shape, not its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def shape_stand_in(grad_output: Tensor, input: Tensor) -> Tensor:
    """Return a zero of the shape of ``input`` that occupies one element.

    Args:
        grad_output: gives dtype and device.
        input: gives the shape; no value of it is read.
    """
    return grad_output.new_zeros(()).expand(input.shape)


def shape_only_exposure(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return the exposure of a backward ``op(grad, input, ...)`` that reads no value of input."""

    def expose(grad_output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        return op(grad_output, shape_stand_in(grad_output, input), *args, **kwargs)

    return expose


EXPOSURES: dict[Any, Callable[..., Any]] = {
    op: shape_only_exposure(op)
    for op in (
        aten.avg_pool2d_backward.default,
        aten.avg_pool3d_backward.default,
        aten._adaptive_avg_pool2d_backward.default,
        aten._adaptive_avg_pool3d_backward.default,
        aten.replication_pad1d_backward.default,
        aten.replication_pad2d_backward.default,
        aten.replication_pad3d_backward.default,
    )
}
