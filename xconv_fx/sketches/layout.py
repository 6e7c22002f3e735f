"""Tensors as flat sequences in memory order.

Owns the two views between a tensor and the 1-D sequence of its elements in a given order of the
dimensions, and padding of such a sequence. ``dim_order`` lists the dimensions from outermost to
innermost: ``(0, 1, 2, 3)`` is contiguous NCHW, ``(0, 2, 3, 1)`` channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

Size = Sequence[int]
"""Sizes; the ints may be SymInts."""


def flatten(x: Tensor, dim_order: Sequence[int]) -> Tensor:
    """Read a tensor in the given order of its dimensions.

    Args:
        x: tensor of any shape and dtype.
        dim_order: dimensions of ``x`` from outermost to innermost.

    Returns:
        1-D tensor of all elements; a view where the strides of ``x`` follow ``dim_order``.
    """
    return x.permute(list(dim_order)).reshape(-1)


def unflatten(flat: Tensor, size: Size, dim_order: Sequence[int]) -> Tensor:
    """Undo :func:`flatten`.

    Args:
        flat: 1-D tensor of ``prod(size)`` elements.
        size: shape of the result.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        A view of ``flat`` of shape ``size`` whose memory order is ``dim_order``.
    """
    ordered = flat.view([size[d] for d in dim_order])
    return ordered.permute(inverse(dim_order))


def inverse(dim_order: Sequence[int]) -> list[int]:
    """Invert a permutation of dimensions.

    Args:
        dim_order: a permutation of ``range(len(dim_order))``.

    Returns:
        The permutation that undoes it.
    """
    inverted = [0] * len(dim_order)
    for place, dim in enumerate(dim_order):
        inverted[dim] = place
    return inverted


def planes_order(dim_order: Sequence[int]) -> list[int]:
    """Return the memory order of planes: tensors of one shape, stacked as dimension 0.

    A plane comes just outside of the innermost dimension, so that the numbers of one place lie
    near each other. Plane by plane they would be a large stride apart, often one of 4 KiB, and 25
    of them share the eight lines that a cache of the first level has for such addresses.

    Args:
        dim_order: dimensions of a plane from outermost to innermost in memory.

    Returns:
        The same for the stack, of one dimension more.
    """
    *outer, innermost = (1 + dim for dim in dim_order)
    return [*outer, 0, innermost]


def stack_order(dim_order: Sequence[int]) -> list[int]:
    """Return the memory order of tensors of one shape, stacked as dimension 0, one after another.

    Args:
        dim_order: dimensions of one from outermost to innermost in memory.

    Returns:
        The same for the stack, of one dimension more.
    """
    return [0, *(1 + dim for dim in dim_order)]


def numel_of(size: Size) -> int:
    """Multiply sizes, which may be SymInts.

    Args:
        size: sizes.

    Returns:
        Their product, 1 for no sizes.
    """
    numel = 1
    for extent in size:
        numel = numel * extent
    return numel


def ceil_div(count: int, divisor: int) -> int:
    """Divide rounding up, without specialising a SymInt.

    Args:
        count: non-negative count, may be a SymInt.
        divisor: positive int.

    Returns:
        The smallest integer not below ``count / divisor``.
    """
    return (count + divisor - 1) // divisor


def pad_flat(flat: Tensor, multiple: int, value: float) -> Tensor:
    """Pad a 1-D tensor at its end to a multiple.

    Args:
        flat: 1-D tensor.
        multiple: the length of the result is a multiple of it.
        value: what to pad with.

    Returns:
        The padded tensor; ``flat`` itself where its length is known to be a multiple.
    """
    numel = flat.shape[0]
    if known(numel % multiple == 0):
        return flat
    missing = ceil_div(numel, multiple) * multiple - numel
    return torch.constant_pad_nd(flat, [0, missing], value)


def known(condition: object) -> bool:
    """Say whether a condition on sizes is known true without adding a guard.

    Args:
        condition: a bool, or a SymBool.

    Returns:
        True only if it holds for every size the symbols may take.
    """
    if isinstance(condition, bool):  # asked at every call of an operator, where sizes are plain
        return condition
    return bool(statically_known_true(cast(bool, condition)))
