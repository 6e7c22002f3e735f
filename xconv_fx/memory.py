"""What the memory model of ``passes`` is told about this backend: its inner compilers and ops."""

from __future__ import annotations

from functools import partial

import torch
from torch import fx

from passes.fusion import fuse
from passes.joint import tensor_nbytes
from passes.kernels import interpret
from passes.liveness import MemoryEstimate, predict_memory
from passes.partition import Partition
from passes.workspace import Workspaces, convolution_nbytes, ints
from xconv_fx import ops  # noqa: F401  registers the ops named below


def predict_step_memory(split: Partition, inner: str, *, channels_last: bool) -> MemoryEstimate:
    """Predict the memory of a training step of one graph.

    Args:
        split: the graphs that go to the inner compiler.
        inner: ``inductor`` or ``aot_eager``.
        channels_last: whether Inductor lays convolutions out channels-last.

    Returns:
        Bytes above what is allocated before the step.
    """
    if inner == "inductor":
        return predict_memory(
            split,
            partial(fuse, channels_last=channels_last, workspaces=WORKSPACES),
        )
    return predict_memory(split, partial(interpret, workspaces=WORKSPACES))


def _input_gradient_nbytes(node: fx.Node, channels_last: bool) -> int:
    grad, weight = (n.meta["val"] for n in node.all_input_nodes[:2])
    stride, transposed = ints(node.args[3]), not node.args[6]
    nbytes = convolution_nbytes(grad, weight, node.meta["val"], stride, transposed, channels_last)
    # Inductor's layout of the weight is not the one that the transposed convolution takes.
    copied = channels_last and grad.dim() == 4
    return nbytes + ((tensor_nbytes(weight) or 0) if copied else 0)


WORKSPACES: Workspaces = {torch.ops.xconv.conv_input_grad.default: _input_gradient_nbytes}
