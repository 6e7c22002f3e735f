"""What it takes to compute a value again: its operations and bytes, as a share of a step.

Comes in: forward nodes. Goes out: for each costly op its time in terms of a whole step, and whether
it may be computed again for it: a convolution, a product, attention, a pool or a reduction, whose
results are the same again, and of whose work torch or its bytes tell. Time is that of the slower of
arithmetic and memory (Williams, Waterman and Patterson, the roofline model, doi
10.1145/1498765.1498785), so of a machine one number is needed, its balance.
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

# What torch counts no operations of: about one an element that is read.
_REPEATABLE = frozenset(
    {
        "aten.sum",
        "aten.mean",
        "aten.var",
        "aten.var_mean",
        "aten.amax",
        "aten.amin",
        "aten.linalg_vector_norm",
        "aten._softmax",
        "aten._log_softmax",
        "aten._native_batch_norm_legit_functional",
        "aten._native_batch_norm_legit_no_training",
        "aten.native_layer_norm",
        "aten.native_group_norm",
        "aten.avg_pool2d",
        "aten.avg_pool3d",
        "aten._adaptive_avg_pool2d",
        "aten._adaptive_avg_pool3d",
        "aten.upsample_nearest2d",
        "aten.upsample_nearest3d",
        "aten.upsample_bilinear2d",
        "aten.upsample_trilinear3d",
    }
)


def recompute_times(nodes: Iterable[fx.Node], balance: float) -> Mapping[fx.Node, float]:
    """Return the time of each costly op, as a share of the time of a training step.

    Args:
        nodes: those of the forward.
        balance: floating-point operations that the machine does while it moves one byte.

    Returns:
        A share for each op that does more than read and write each element once. Pointwise ops are
        left out of the step's time, so that it is short where they take much of it.
    """
    work = {node: _work(node, balance) for node in nodes if recompute_ban(node) == COSTLY}
    step = _STEP_OVER_FORWARD * sum(work.values())
    return {node: moved / step if step else 0.0 for node, moved in work.items()}


def is_repeatable(node: fx.Node) -> bool:
    """Whether a costly op may be computed again where its time is paid for.

    Others, a sort or a decomposition of a matrix, say, may fall out otherwise a second time, or
    take longer than their bytes tell.
    """
    target = node.target
    return (
        recompute_ban(node) == COSTLY
        and isinstance(target, torch._ops.OpOverload)
        and (str(target.overloadpacket) in _REPEATABLE or _is_counted(target))
    )


def _is_counted(target: torch._ops.OpOverload) -> bool:
    # Other overloads (with a dtype of the result) do not fit the formulas.
    return target._overloadname == "default" and target.overloadpacket in flop_registry


def _work(node: fx.Node, balance: float) -> float:
    """The bytes that the machine could move while it runs an op."""
    vals = [node.meta.get("val"), *(n.meta.get("val") for n in node.all_input_nodes)]
    tensors = [t for val in vals for t in (val if isinstance(val, (tuple, list)) else [val])]
    nbytes = [tensor_nbytes(t) for t in tensors if isinstance(t, torch.Tensor)]
    moved = float(sum(size or 0 for size in nbytes))
    return moved if None in nbytes else max(moved, _num_flops(node) / balance)


def _num_flops(node: fx.Node) -> float:
    """The floating-point operations that torch counts for an op; 0 where it counts none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not _is_counted(target):
        return 0.0
    count = flop_registry[target.overloadpacket]
    args, kwargs = fx.map_arg((node.args, node.kwargs), _sizes)
    return float(count(*args, **kwargs, out_val=_sizes(node)))


def _sizes(node: fx.Node) -> Any:
    """The shape that torch counts by, of plain ints, so that no dynamic size is guarded."""
    val = node.meta.get("val")
    if isinstance(val, torch.Tensor):
        return hinted_shape(val)
    return _torch.size_hint(val) if isinstance(val, torch.SymInt) else val
