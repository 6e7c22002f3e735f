"""Groups of elements that share a range: blocks of a tensor, in logical coordinates.

Each dimension is divided into blocks of equal size, and a group is one block of each. Groups of
an activation ``(N, C, *spatial)`` hold neighbouring positions of one channel, and of several
samples where the channel of one sample is small: channels differ in scale, and indices into the
ranges stay affine in the tensor's own, whatever its memory order, so that kernels vectorise. The
groups do not depend on the memory order, hence neither do the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xconv_fx.sketches.layout import Size, inverse, known

# A block may be this many times larger than asked where the size has no better divisor.
_SLACK = 8


def choose_blocks(size: Size, group_size: int) -> tuple[int, ...]:
    """Choose the block of each dimension.

    Dimensions are taken in from the last one on down to the third, then the first (the batch);
    the second (channels) is never divided, unless it is the last. A dimension unknown at compile
    time is taken in whole, or as the batch not at all.

    Args:
        size: logical sizes; the ints may be SymInts.
        group_size: elements a group should have.

    Returns:
        A divisor of each size; their product is at least ``group_size`` where the divisors allow
        it, and the smallest such, within a factor of 8 a dimension.
    """
    blocks: list[int] = [1] * len(size)
    growing = [*range(len(size) - 1, 1, -1), 0] if len(size) > 2 else [*range(len(size))][::-1]
    count = 1
    for dim in growing:
        extent = size[dim]
        if not isinstance(extent, int):
            if dim or len(size) == 1:
                blocks[dim] = extent
        elif count < group_size and (dim or all(isinstance(block, int) for block in blocks)):
            blocks[dim] = _divisor(extent, -(-group_size // count))
            count *= blocks[dim]
    return tuple(blocks)


def grid_of(size: Size, blocks: Sequence[int]) -> list[int]:
    """Count the groups along each dimension.

    Args:
        size: logical sizes.
        blocks: from :func:`choose_blocks`.

    Returns:
        ``size / blocks``.
    """
    return [extent // block for extent, block in zip(size, blocks, strict=True)]


def smallest_and_largest(
    x: Tensor, blocks: Sequence[int], dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Reduce each group to its smallest and its largest element.

    Args:
        x: tensor.
        blocks: from :func:`choose_blocks`.
        dim_order: dimensions of ``x`` from outermost to innermost in memory.

    Returns:
        Two tensors of :func:`grid_of` in that memory order: the results of a reduction are
        dense as they come, so it runs on the dimensions in memory order.
    """
    reduced = list(range(1, 2 * x.dim(), 2))
    grouped = _split(x.permute(list(dim_order)), [blocks[d] for d in dim_order])
    back = inverse(dim_order)
    return grouped.amin(reduced).permute(back), grouped.amax(reduced).permute(back)


def _split(ordered: Tensor, blocks: Sequence[int]) -> Tensor:
    """View each dimension as groups and places in a group."""
    grid = grid_of(ordered.shape, blocks)
    if all(isinstance(extent, int) for extent in ordered.shape):
        return ordered.reshape([e for pair in zip(grid, blocks, strict=True) for e in pair])
    # One by one, and dynamic sizes without a view, which would ask for them.
    for dim in reversed(range(ordered.dim())):
        whole = not isinstance(blocks[dim], int)
        if whole or not isinstance(ordered.shape[dim], int):
            ordered = ordered.unsqueeze(dim if whole else dim + 1)
        else:
            before, after = ordered.shape[:dim], ordered.shape[dim + 1 :]
            ordered = ordered.reshape([*before, grid[dim], blocks[dim], *after])
    return ordered


def spread(values: Tensor, size: Size) -> Tensor:
    """Give each element the value of its group.

    Args:
        values: one value a group, shaped :func:`grid_of`.
        size: sizes of the tensor.

    Returns:
        Tensor of shape ``size``; a view where each dimension has one group or one an index.
    """
    for dim, extent in enumerate(size):
        groups = values.shape[dim]
        if known(groups == 1) or known(groups == extent):
            continue
        before, after = values.shape[:dim], values.shape[dim + 1 :]
        wide = values.unsqueeze(dim + 1).expand([*before, groups, extent // groups, *after])
        values = wide.reshape([*before, extent, *after])
    return values.expand(list(size))


def _divisor(extent: int, wanted: int) -> int:
    """The smallest divisor that reaches what is wanted; a smaller one if that is far larger."""
    if wanted >= extent:
        return max(extent, 1)
    divisors = [d for d in range(1, extent + 1) if extent % d == 0]
    enough = next(d for d in divisors if d >= wanted)
    less = max(d for d in divisors if d <= wanted)
    return enough if enough <= _SLACK * wanted or less * _SLACK < wanted else less
