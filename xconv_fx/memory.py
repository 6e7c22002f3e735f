"""What the memory model of ``passes`` is told about this backend: its inner compilers and ops."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import fx

from passes.kernels import interpret
from passes.liveness import (
    MemoryEstimate,
    predict_memory,
    received_positions,
    visible_outputs,
)
from passes.partition import Partition
from passes.workspace import (
    Layouts,
    Workspaces,
    convolution_nbytes,
    ints,
    tensor_of,
    weight_gradient_nbytes,
    workspace_nbytes,
)
from xconv_fx import ops  # noqa: F401  registers the ops named below
from xconv_fx._schedule import read_schedule


def predict_step_memory(
    split: Partition, inner: str, settings: Mapping[str, Any]
) -> MemoryEstimate:
    """Predict the memory of a training step of one graph.

    Args:
        split: the graphs that go to the inner compiler.
        inner: ``inductor``, which schedules both graphs for it, or ``aot_eager``.
        settings: of Inductor.

    Returns:
        Bytes above what is allocated before the step.
    """
    if inner != "inductor":
        forward, backward = (
            interpret(module.graph, workspaces=WORKSPACES)
            for module in (split.forward, split.backward)
        )
        return predict_memory(split, forward, backward)
    workspace_of = partial(workspace_nbytes, others=WORKSPACES)
    read = partial(read_schedule, settings=settings, workspace_of=workspace_of)
    forward, strides = read(
        split.forward, is_backward=False, visible_outputs=visible_outputs(split)
    )
    received = {
        given: stride
        for given, kept in received_positions(split)
        if (stride := strides[kept]) is not None
    }
    backward, _ = read(split.backward, is_backward=True, visible_outputs=(), input_strides=received)
    return predict_memory(split, forward, backward)


def _input_gradient_nbytes(node: fx.Node, laid_out: Layouts) -> int:
    grad, weight = (tensor_of(n, laid_out) for n in node.all_input_nodes[:2])
    stride, transposed = ints(node.args[3]), not node.args[6]
    return convolution_nbytes(grad, weight, node.meta["val"], stride, transposed)


def _weight_gradient_nbytes(node: fx.Node, laid_out: Layouts) -> int:
    grad, x, weight = (tensor_of(n, laid_out) for n in node.all_input_nodes[:3])
    return weight_gradient_nbytes(grad, x, weight, ints(node.args[3]))


WORKSPACES: Workspaces = {
    torch.ops.xconv.conv_input_grad.default: _input_gradient_nbytes,
    torch.ops.xconv.conv_weight_grad.default: _weight_gradient_nbytes,
}
