"""Memory that a single call allocates and frees again while it runs, on the CPU.

Comes in: a call with fake tensors. Goes out: bytes beyond its result. The factors were read
off the allocator's record on torch 2.13 (oneDNN, one thread), op by op. On other devices the
answer is 0: cuDNN picks its workspace at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from passes import _torch
from passes.joint import layout_hint, tensor_nbytes, tensor_val

aten = torch.ops.aten

# Batch from which aten hands 1x1 convolutions to oneDNN even on one thread.
_ONEDNN_BATCH = 16

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
        geometry = (ints(stride), bool(transposed))
        return convolution_nbytes(_val(x), _val(weight), _val(node), *geometry, channels_last)
    if node.target is aten.convolution_backward.default and not node.args[10][0]:  # type: ignore[index]
        grad, x, weight = (_val(arg) for arg in node.args[:3])
        return weight_gradient_nbytes(grad, x, weight, ints(node.args[4]), channels_last)
    return 0


def convolution_nbytes(
    x: torch.Tensor,
    weight: torch.Tensor,
    result: torch.Tensor,
    stride: Sequence[int],
    transposed: bool,
    channels_last: bool,
) -> int:
    """Workspace of a convolution.

    Args:
        x: its input.
        weight: its weight.
        result: its result.
        stride: of the convolution.
        transposed: whether it is transposed.
        channels_last: as for :func:`workspace_nbytes`.

    Returns:
        Bytes, 0 off the CPU.
    """
    if x.device.type != "cpu":
        return 0
    if _is_native(x, weight, stride):
        return _nbytes(result) if transposed else 0
    if channels_last and x.dim() == 4:
        return _nbytes(weight)
    # Transposed with a stride oneDNN holds the result in its own format and once more on the way
    # to the plain one.
    scattered = transposed and any(s != 1 for s in stride)
    result_nbytes = _nbytes(result) * (2 if scattered else 1)
    return max(_reordered_nbytes(x) + _nbytes(weight), result_nbytes)


def weight_gradient_nbytes(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    channels_last: bool,
) -> int:
    """Workspace of a convolution's weight gradient; arguments as in ``convolution_backward``."""
    if x.device.type != "cpu" or _is_native(x, weight, stride):
        return 0
    if channels_last and x.dim() == 4:
        return _weight_gradient_channels_last_nbytes(grad, x, weight)
    # In 3-D oneDNN's gradient has a scratchpad of three more weights beside its own format.
    weights = _nbytes(weight) * (4 if x.dim() == 5 else 1)
    return max(_reordered_nbytes(grad) + _reordered_nbytes(x), weights)


def _weight_gradient_channels_last_nbytes(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
) -> int:
    """Inductor lays the arguments out by the strides of the weight's gradient (2.13)."""
    if _is_contiguous(x):
        # The batch: the gradient follows it, so its channels-last values are copied; then both
        # are reordered.
        return 2 * _nbytes(grad) + _nbytes(x)
    if _torch.size_hint(weight.shape[1]) == 1:
        # A depthwise weight has no strides to tell a layout by: Inductor takes one that aten
        # makes contiguous first and oneDNN reorders then.
        return 2 * (_nbytes(grad) + _nbytes(x))
    return 3 * _nbytes(weight)


def ints(argument: object) -> tuple[int, ...]:
    """Return the plain ints of a list argument."""
    return (
        tuple(n for n in argument if isinstance(n, int)) if isinstance(argument, Sequence) else ()
    )


def _is_native(x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int]) -> bool:
    """Whether aten multiplies matrices in place of oneDNN (``use_mkldnn``, 2.13)."""
    pointwise = all(_torch.size_hint(k) == 1 for k in weight.shape[2:])
    batch = _torch.size_hint(x.shape[0])
    small = batch is not None and batch < _ONEDNN_BATCH and torch.get_num_threads() == 1
    return pointwise and small and x.dim() == 4 and all(s == 1 for s in stride)


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


def _val(argument: object) -> torch.Tensor:
    val = tensor_val(argument) if isinstance(argument, fx.Node) else None
    assert val is not None, f"a convolution got {argument} in place of a tensor"
    return val
