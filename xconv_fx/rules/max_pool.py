"""Max pools: their backward needs where in each window the maximum was, a small integer."""

from __future__ import annotations

import math
import operator

from torch import fx

# Inductor's decomposition of max_pool2d (torch 2.11 to 2.13); the second result is int8.
_WITH_OFFSETS = "prims._low_memory_max_pool_with_offsets"


def num_offsets(node: fx.Node) -> int | None:
    """Return how many values a max-pool's offset can take: the window's size.

    Args:
        node: any node.

    Returns:
        The number of elements of the pooling window if ``node`` holds window offsets, which
        run from 0 to that number less one; None otherwise.
    """
    if node.target is not operator.getitem or node.args[1] != 1:
        return None
    pool = node.args[0]
    if (
        not isinstance(pool, fx.Node)
        or str(getattr(pool.target, "overloadpacket", "")) != _WITH_OFFSETS
    ):
        return None
    window = pool.args[1]
    assert isinstance(window, (list, tuple)), f"{pool}: window {window}"
    sizes = [size for size in window if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(window) else None
