"""Sums over everything but the channels, in two stages where channels are innermost in memory.

Inductor's C++ (2.13) sums a channels-last activation over batch and positions in one loop for each
vector of channels: it walks through the whole activation once for every eight of them, and has no
more threads to run on than there are such vectors. Summed over rows first (over images, where rows
are short), the activation is read once, in order; the second stage reads a small part of it. The
gradients of norms and biases are such sums. Numbers differ by rounding alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from passes.decompose import Inserter

aten = torch.ops.aten

# Elements that the first stage sums, at least: what it writes is at most that share of what it
# reads.
_MIN_ROW = 16


def stage_sums(module: fx.GraphModule, inserter: Inserter) -> None:
    """Take sums and means of 4-D values over batch and positions apart, on the CPU.

    Args:
        module: a lowered graph whose 4-D values will lie channels-last; changed in place.
        inserter: with the inner compiler's decompositions.
    """
    for target, staged in ((aten.sum.dim_IntList, _staged_sum), (aten.mean.dim, _staged_mean)):
        for node in module.graph.find_nodes(op="call_function", target=target):
            if _gains(node):
                result = inserter.insert(staged, [*node.args], node, provenance=node)
                node.replace_all_uses_with(result)
                module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


def _gains(node: fx.Node) -> bool:
    x, dims, *_ = node.args
    val = x.meta["val"] if isinstance(x, fx.Node) else None
    return (
        isinstance(val, Tensor)
        and val.device.type == "cpu"
        and val.dim() == 4
        # A half type would be rounded to between the stages.
        and val.dtype in (torch.float32, torch.float64)
        and not node.kwargs
        and isinstance(dims, (list, tuple))
        and {dim % 4 for dim in dims if isinstance(dim, int)} == {0, 2, 3}
        and all(isinstance(size, int) for size in val.shape[1:])
        and val.shape[1] > 1
        and val.shape[2] * val.shape[3] >= _MIN_ROW
    )


def _staged_sum(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    del dims
    first = [3] if x.shape[3] >= _MIN_ROW else [2, 3]
    return x.sum(first, keepdim=True).sum([0, 2, 3], keepdim=keepdim)


def _staged_mean(x: Tensor, dims: list[int], keepdim: bool = False) -> Any:
    return _staged_sum(x, dims, keepdim) / (x.shape[0] * x.shape[2] * x.shape[3])
