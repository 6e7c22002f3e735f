"""Memory that a single call allocates and frees again while it runs.

Comes in: a call with fake tensors. Goes out: bytes beyond its result. The factors of the CPU were
read off the allocator's record on torch 2.13 (oneDNN, one thread, AVX-512), op by op; what depends
on the number of threads says so. With AVX2 the weight gradient of a volume takes less. How few
channels fill up their blocks was read off with both, of images.

On a CUDA device cuDNN picks its workspace at run time: its kernels for tensor cores work on
channels-last copies of what is not so, and with these the peaks of whole steps of U-Nets come out
within 2 % (an H200, torch 2.11, tf32); other kernels take less. On any other device it is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from passes import _torch
from passes.joint import layout_hint, tensor_nbytes, tensor_val

aten = torch.ops.aten

# Channels in a block of oneDNN's format, and those of an image.
_IS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
_BLOCK = 16 if _IS_AVX512 else 8
_IMAGE_CHANNELS = 3

# Batch from which aten hands 1x1 convolutions to oneDNN even on one thread.
_ONEDNN_BATCH = 16

# For an op the function of a call of it, and of its tensors as they are laid out, to bytes.
Workspaces = Mapping[Any, Callable[[fx.Node, "Layouts"], int]]

# Tensors that are laid out otherwise than ``meta["val"]`` says, for Inductor chose so.
Layouts = Mapping[fx.Node, torch.Tensor]

# Bytes of workspace an element of the result, for prims that run as a composite of eager ops:
# eleven and six live tensors of int64 or float32 beside it.
_NBYTES_PER_ELEMENT = {
    "prims._low_memory_max_pool_with_offsets": 55,
    "prims._low_memory_max_pool_offsets_to_indices": 48,
}


def workspace_nbytes(
    node: fx.Node, *, laid_out: Layouts | None = None, others: Workspaces | None = None
) -> int:
    """Return the bytes a call needs beside its arguments and its result.

    Args:
        node: a call.
        laid_out: its tensors where their layouts are not those of the graph.
        others: what ops that are not torch's need.
    """
    laid_out = laid_out or {}
    if others and node.target in others:
        return others[node.target](node, laid_out)
    val = node.meta.get("val")
    first = val[0] if isinstance(val, (tuple, list)) and val else val
    name = str(getattr(node.target, "overloadpacket", node.target))
    if name in _NBYTES_PER_ELEMENT and isinstance(first, torch.Tensor):
        return _NBYTES_PER_ELEMENT[name] * (tensor_nbytes(first) or 0) // first.dtype.itemsize
    if node.target is aten.convolution.default:
        x, weight = (tensor_of(arg, laid_out) for arg in node.args[:2])
        stride, transposed = ints(node.args[3]), bool(node.args[6])
        return convolution_nbytes(x, weight, tensor_of(node, {}), stride, transposed)
    if node.target is aten.convolution_backward.default and not node.args[10][0]:  # type: ignore[index]
        grad, x, weight = (tensor_of(arg, laid_out) for arg in node.args[:3])
        return weight_gradient_nbytes(grad, x, weight, ints(node.args[4]))
    return 0


def convolution_nbytes(
    x: torch.Tensor,
    weight: torch.Tensor,
    result: torch.Tensor,
    stride: Sequence[int],
    transposed: bool,
) -> int:
    """Workspace of a convolution.

    Args:
        x: its input.
        weight: its weight.
        result: its result.
        stride: of the convolution.
        transposed: whether it is transposed.

    Returns:
        Bytes.
    """
    if x.device.type == "cuda":
        return _cudnn_nbytes(x, weight, result)
    if x.device.type != "cpu":
        return 0
    if _is_native(x, weight, stride):
        return _nbytes(result) if transposed else 0
    if _is_channels_last(x) or _is_channels_last(weight):
        return _copied_nbytes(x, weight) + _nbytes(weight)
    # Transposed with a stride oneDNN holds the result in its own format and once more on the way
    # to the plain one.
    scattered = transposed and any(s != 1 for s in stride)
    result_nbytes = _nbytes(result) * (2 if scattered else 1)
    filled = _filled_nbytes(result, [1]) - _nbytes(result)
    return max(_reordered_nbytes(x) + _filled_nbytes(weight, [0, 1]) + filled, result_nbytes)


def weight_gradient_nbytes(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int]
) -> int:
    """Workspace of a convolution's weight gradient; arguments as in ``convolution_backward``."""
    if x.device.type == "cuda":
        return _cudnn_nbytes(grad, x, weight)
    if x.device.type != "cpu" or _is_native(x, weight, stride):
        return 0
    # Where the kernel is larger than the image oneDNN (3.12) multiplies matrices without AVX-512,
    # and has room for four weights a thread.
    smaller = not _IS_AVX512 and _is_smaller(grad, x, weight)
    scratch = 4 * torch.get_num_threads() * _nbytes(weight) if smaller else 0
    if _is_channels_last(x) or _is_channels_last(weight):
        held = scratch + _nbytes(weight) if scratch else 3 * _nbytes(weight)
        return _copied_nbytes(grad, x) + held
    # In 3-D oneDNN's gradient has a scratchpad of three more weights beside its own format.
    weights = scratch or _nbytes(weight) * (4 if x.dim() == 5 else 1)
    filled = _filled_nbytes(weight, [0, 1]) - _nbytes(weight)
    return max(_reordered_nbytes(grad) + _input_copies_nbytes(x) + filled, weights)


def _input_copies_nbytes(x: torch.Tensor) -> int:
    """Bytes of the copies of what a weight gradient reads beside the gradient.

    With AVX-512 up to three channels of an image are not copied for oneDNN, and up to eight are
    filled up to eight. Else three channels are copied as they are.
    """
    channels = _torch.size_hint(x.shape[1]) or 1
    if not (_IS_AVX512 and x.dim() == 4):
        return _nbytes(x) if channels == _IMAGE_CHANNELS else _reordered_nbytes(x)
    straight = 0 if _is_contiguous(x) else _nbytes(x)
    if channels <= _IMAGE_CHANNELS:
        return straight
    half = _BLOCK // 2
    filled = half * _nbytes(x) // channels if channels <= half else _filled_nbytes(x, [1])
    return straight + filled


def _cudnn_nbytes(first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> int:
    """Bytes of the channels-last copies that tensor cores ask for; with one given, all are so."""
    if _is_channels_last(first) or _is_channels_last(second):
        return _copied_nbytes(first, second)
    return sum(_nbytes(tensor) for tensor in (first, second, third))


def _is_channels_last(x: torch.Tensor) -> bool:
    """Whether the memory of a 4-D tensor has channels innermost, and nothing else would do."""
    sizes, strides = layout_hint(x)
    if len(sizes) != 4 or _is_contiguous(x):
        return False
    order = sorted(range(4), key=lambda dim: (-(strides[dim] or 0), dim))
    return order[-1] == 1 or sizes[1] == 1


def tensor_of(argument: object, laid_out: Layouts) -> torch.Tensor:
    """Return the tensor behind an argument of a convolution, laid out as it will be."""
    given = laid_out.get(argument) if isinstance(argument, fx.Node) else None
    val = given if given is not None else _argument_val(argument)
    assert val is not None, f"a convolution got {argument} in place of a tensor"
    return val


def _copied_nbytes(*tensors: torch.Tensor) -> int:
    """Bytes of the channels-last copies of those that are not channels-last."""
    return sum(_nbytes(tensor) for tensor in tensors if not _is_channels_last(tensor))


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


def _is_smaller(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the image of a convolution, which a transposed one makes, is smaller than its kernel.

    In one direction is enough.
    """
    hints = ([_torch.size_hint(s) or 0 for s in t.shape[2:]] for t in (grad, x, weight))
    return any(max(made, read) < kernel for made, read, kernel in zip(*hints, strict=True))


def _reordered_nbytes(x: torch.Tensor) -> int:
    """Bytes of the copy in oneDNN's format, and of a contiguous one before it if need be."""
    return _filled_nbytes(x, [1]) + (0 if _is_contiguous(x) else _nbytes(x))


def _filled_nbytes(x: torch.Tensor, dims: Sequence[int]) -> int:
    """Bytes in oneDNN's format, whose channels come in blocks, the last of which is filled up."""
    nbytes = _nbytes(x)
    for dim in dims:
        channels = _torch.size_hint(x.shape[dim]) or 1
        nbytes = nbytes // channels * (-(-channels // _BLOCK) * _BLOCK)
    return nbytes


def _nbytes(x: torch.Tensor) -> int:
    return tensor_nbytes(x) or 0


def _is_contiguous(x: torch.Tensor) -> bool:
    expected = 1
    for size, stride in zip(*(reversed(side) for side in layout_hint(x)), strict=True):
        if size is None or (size != 1 and stride != expected):
            return False
        expected *= size
    return True


def _argument_val(argument: object) -> torch.Tensor | None:
    return tensor_val(argument) if isinstance(argument, fx.Node) else None
