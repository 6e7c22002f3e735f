"""Average pools and replication pads: their backward reads the input's shape, not its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def shape_only_exposure(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return the exposure of a backward ``op(grad, input, ...)`` that reads no value of input.

    A zero of the input's shape that occupies one element stands in for it.
    """

    def expose(grad_output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        return op(grad_output, grad_output.new_zeros(()).expand(input.shape), *args, **kwargs)

    return expose


EXPOSURES: dict[Any, Callable[..., Any]] = {
    op: shape_only_exposure(op)
    for op in (
        aten.avg_pool2d_backward.default,
        aten.avg_pool3d_backward.default,
        aten.replication_pad1d_backward.default,
        aten.replication_pad2d_backward.default,
        aten.replication_pad3d_backward.default,
    )
}
