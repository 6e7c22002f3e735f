"""Memory that a single call allocates and frees again while it runs, on the CPU.

Comes in: a call with fake tensors. Goes out: bytes beyond its result. The factors were read
off the allocator's record on torch 2.13 (oneDNN, one thread), op by op. On other devices the
answer is 0: cuDNN picks its workspace at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from passes.joint import layout_hint, tensor_nbytes, tensor_val

aten = torch.ops.aten

# For an op the function of a call of it, and of whether 4-D tensors are channels-last, to bytes.
Workspaces = Mapping[Any, Callable[[fx.Node, bool], int]]

# Bytes of workspace an element of the result, for prims that run as a composite of eager ops:
# eleven and six live tensors of int64 or float32 beside it.
_NBYTES_PER_ELEMENT = {
    "prims._low_memory_max_pool_with_offsets": 55,
    "prims._low_memory_max_pool_offsets_to_indices": 48,
}


def workspace_nbytes(
    node: fx.Node, *, channels_last: bool = False, others: Workspaces | None = None
) -> int:
    """Return the bytes a call needs beside its arguments and its result.

    Args:
        node: a call.
        others: what ops that are not torch's need.
        channels_last: whether 4-D convolutions get all tensors channels-last, as Inductor lays
            them out on the CPU; activations are then used as they are, weights are reordered.
    """
    if others and node.target in others:
        return others[node.target](node, channels_last)
    val = node.meta.get("val")
    first = val[0] if isinstance(val, (tuple, list)) and val else val
    name = str(getattr(node.target, "overloadpacket", node.target))
    if name in _NBYTES_PER_ELEMENT and isinstance(first, torch.Tensor):
        return _NBYTES_PER_ELEMENT[name] * (tensor_nbytes(first) or 0) // first.dtype.itemsize
    if node.target is aten.convolution.default:
        x, weight, _, stride, _, _, transposed, *_ = node.args
        return convolution_nbytes(
            _val(x),
            _val(weight),
            _val(node),
            scattered=bool(transposed) and _is_strided(stride),
            channels_last=channels_last,
        )
    if node.target is aten.convolution_backward.default and not node.args[10][0]:  # type: ignore[index]
        grad, x, weight = (_val(arg) for arg in node.args[:3])
        return weight_gradient_nbytes(grad, x, weight, channels_last=channels_last)
    return 0


def convolution_nbytes(
    x: torch.Tensor,
    weight: torch.Tensor,
    result: torch.Tensor,
    *,
    scattered: bool,
    channels_last: bool,
) -> int:
    """Workspace of a convolution of either direction.

    Args:
        x: its input.
        weight: its weight.
        result: its result.
        scattered: whether it is transposed with a stride above 1: oneDNN then holds the result
            in its own format and once more on the way to the plain one.
        channels_last: as for :func:`workspace_nbytes`.

    Returns:
        Bytes, 0 off the CPU.
    """
    if x.device.type != "cpu":
        return 0
    if channels_last and x.dim() == 4:
        return _nbytes(weight)
    result_nbytes = _nbytes(result) * (2 if scattered else 1)
    return max(_reordered_nbytes(x) + _nbytes(weight), result_nbytes)


def weight_gradient_nbytes(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, channels_last: bool
) -> int:
    """Workspace of a convolution's weight gradient; arguments as in ``convolution_backward``."""
    if x.device.type != "cpu":
        return 0
    if channels_last and x.dim() == 4:
        return 3 * _nbytes(weight)
    # In 3-D oneDNN's gradient has a scratchpad of three more weights beside its own format.
    weights = _nbytes(weight) * (4 if x.dim() == 5 else 1)
    return max(_reordered_nbytes(grad) + _reordered_nbytes(x), weights)


def _reordered_nbytes(x: torch.Tensor) -> int:
    """Bytes of the copy in oneDNN's format, and of a contiguous one before it if need be."""
    return _nbytes(x) * (1 if _is_contiguous(x) else 2)


def _nbytes(x: torch.Tensor) -> int:
    return tensor_nbytes(x) or 0


def _is_contiguous(x: torch.Tensor) -> bool:
    expected = 1
    for size, stride in zip(*(reversed(side) for side in layout_hint(x)), strict=True):
        if size is None or (size != 1 and stride != expected):
            return False
        expected *= size
    return True


def _is_strided(stride: object) -> bool:
    return isinstance(stride, (list, tuple)) and any(isinstance(s, int) and s != 1 for s in stride)


def _val(argument: object) -> torch.Tensor:
    val = tensor_val(argument) if isinstance(argument, fx.Node) else None
    assert val is not None, f"a convolution got {argument} in place of a tensor"
    return val
