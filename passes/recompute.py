"""What it takes to compute a value again: its operations and bytes, as a share of a step.

Comes in: forward nodes. Goes out: for each the time of its op in terms of a whole step. Counted is
what *plan* may be charged for, ops that do more than read and write each element once: a
convolution, a matrix product, a reduction. Time is that of the slower of arithmetic and memory
(Williams, Waterman and Patterson, the roofline model, doi 10.1145/1498765.1498785), so of a machine
one number is needed, its balance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from passes import _torch
from passes.joint import hinted_shape, tensor_nbytes
from passes.op_traits import COSTLY, recompute_ban

# The backward of a linear op is two of its kind.
_STEP_OVER_FORWARD = 3


def recompute_times(nodes: Iterable[fx.Node], balance: float) -> Mapping[fx.Node, float]:
    """Return the time of each costly op, as a share of the time of a training step.

    Args:
        nodes: those of the forward.
        balance: floating-point operations that the machine does while it moves one byte.

    Returns:
        A share for each op that is banned for its cost alone, see
        :func:`passes.op_traits.recompute_ban`.
    """
    work = {node: _work(node, balance) for node in nodes if recompute_ban(node) == COSTLY}
    step = _STEP_OVER_FORWARD * sum(work.values())
    return {node: moved / step if step else 0.0 for node, moved in work.items()}


def _work(node: fx.Node, balance: float) -> float:
    """The bytes that the machine could move while it runs an op."""
    vals = [node.meta.get("val"), *(n.meta.get("val") for n in node.all_input_nodes)]
    tensors = [t for val in vals for t in (val if isinstance(val, (tuple, list)) else [val])]
    nbytes = [tensor_nbytes(t) for t in tensors if isinstance(t, torch.Tensor)]
    moved = float(sum(size or 0 for size in nbytes))
    return moved if None in nbytes else max(moved, _num_flops(node) / balance)


def _num_flops(node: fx.Node) -> float:
    """The floating-point operations that torch counts for an op; 0 where it counts none."""
    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return 0.0
    args, kwargs = fx.map_arg((node.args, node.kwargs), _sizes)
    return float(count(*args, **kwargs, out_val=_sizes(node)))


def _sizes(node: fx.Node) -> Any:
    """The shape that torch counts by, of plain ints, so that no dynamic size is guarded."""
    val = node.meta.get("val")
    if isinstance(val, torch.Tensor):
        return hinted_shape(val)
    return _torch.size_hint(val) if isinstance(val, torch.SymInt) else val
