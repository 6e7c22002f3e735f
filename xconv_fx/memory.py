"""What the memory model of ``passes`` is told about this backend: its inner compilers and ops."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import fx

from passes.collection import collect_where_off
from passes.forecast import Forecast
from passes.joint import JointGraph, output_node, tensor_nbytes
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
from xconv_fx import ops
from xconv_fx._schedule import Schedule, max_reads, read_schedule, schedule_of
from xconv_fx.ops.gradients import computing_format
from xconv_fx.sketches.tiles import side_of_signs

log = logging.getLogger("xconv_fx")


@dataclass
class Schedules:
    """The schedules of a forward and its backward, kept while Inductor compiles them. Mutable.

    Attributes:
        forward: None until it is compiled, and where its code was found in Inductor's cache.
        backward: the same.
    """

    forward: Schedule | None = None
    backward: Schedule | None = None

    def keep(self, graph: Any, *, is_backward: bool) -> None:
        """Read the schedule of Inductor's graph; one that cannot be read is left out."""
        try:
            schedule = schedule_of(graph, _WORKSPACE_OF)
        except Exception:  # noqa: BLE001  the graph compiles all the same
            log.debug("the schedule of a graph could not be read", exc_info=True)
            return
        if is_backward:
            self.backward = schedule
        else:
            self.forward = schedule

    def fit(self, split: Partition) -> bool:
        """Whether they have the inputs and outputs of these graphs."""
        pairs = ((self.forward, split.forward), (self.backward, split.backward))
        return all(
            schedule is None
            or (
                len(schedule.program.inputs) == len(module.graph.find_nodes(op="placeholder"))
                and len(schedule.program.outputs) == len(output_node(module.graph).args[0])  # type: ignore[arg-type]
            )
            for schedule, module in pairs
        )


def predict_step_memory(
    split: Partition,
    inner: str,
    settings: Mapping[str, Any],
    schedules: Schedules | None = None,
) -> MemoryEstimate:
    """Predict the memory of a training step of one graph.

    Args:
        split: the graphs that go to the inner compiler.
        inner: ``inductor`` or ``aot_eager``.
        settings: of Inductor.
        schedules: those kept while Inductor compiled the graphs; it schedules them once more
            where there is none.

    Returns:
        Bytes above what is allocated before the step.
    """
    if inner != "inductor":
        forward, backward = (
            interpret(module.graph, workspaces=WORKSPACES)
            for module in (split.forward, split.backward)
        )
        return predict_memory(split, forward, backward)
    known = schedules if schedules is not None and schedules.fit(split) else Schedules()
    first, second = known.forward, known.backward
    if first is None or second is None:
        first, second = _read_schedules(split, settings, first, second)
        collect_where_off()  # Inductor's graphs refer to themselves
    return predict_memory(split, first.program, second.program)


def _read_schedules(
    split: Partition,
    settings: Mapping[str, Any],
    first: Schedule | None,
    second: Schedule | None,
) -> tuple[Schedule, Schedule]:
    read = partial(read_schedule, settings=settings, workspace_of=_WORKSPACE_OF)
    first = first or read(split.forward, is_backward=False, visible_outputs=visible_outputs(split))
    if second is None:
        received = {
            given: stride
            for given, kept in received_positions(split)
            if (stride := first.output_strides[kept]) is not None
        }
        second = read(split.backward, is_backward=True, visible_outputs=(), input_strides=received)
    return first, second


def make_forecast(
    joint: JointGraph,
    settings: Mapping[str, Any],
    *,
    channels_last: bool,
    waiting: Container[object] = (),
) -> Forecast:
    """Prepare to forecast the memory of plans under Inductor.

    Args:
        joint: an exposed joint graph.
        settings: of Inductor.
        channels_last: whether Inductor lays 4-D values out channels-last.
        waiting: the readers of ``Rules.wait``.
    """
    return Forecast.of(
        joint,
        lowered=ops.DECOMPOSITIONS.keys(),
        workspaces=WORKSPACES,
        channels_last=channels_last,
        max_reads=max_reads(settings),
        waiting=waiting,
    )


def _input_gradient_nbytes(node: fx.Node, laid_out: Layouts) -> int:
    given, weight = (tensor_of(n, laid_out) for n in node.all_input_nodes[:2])
    result = tensor_of(node, {})
    layout = computing_format(weight, given, result.shape)
    grad, copied = _laid_out(given, layout)
    stride, transposed = ints(node.args[3]), not node.args[6]
    inside = convolution_nbytes(grad, weight, result, stride, transposed)
    _, returned = _laid_out(result, layout)
    return max(copied + inside, returned)


def _weight_gradient_nbytes(node: fx.Node, laid_out: Layouts) -> int:
    grad, x, weight = (tensor_of(n, laid_out) for n in node.all_input_nodes[:3])
    layout = computing_format(weight, grad, x.shape)
    (grad, copied), (x, also_copied) = _laid_out(grad, layout), _laid_out(x, layout)
    return copied + also_copied + weight_gradient_nbytes(grad, x, weight, ints(node.args[3]))


def _laid_out(tensor: torch.Tensor, layout: torch.memory_format) -> tuple[torch.Tensor, int]:
    """Return a tensor in a memory format, and the bytes of the copy if it takes one."""
    result = tensor.contiguous(memory_format=layout)
    return result, 0 if result is tensor else tensor_nbytes(result) or 0


def _signs_nbytes(node: fx.Node, laid_out: Layouts) -> int:
    """What drawing rows of tiles holds besides its results, see ``sketches.tiles``.

    While words are drawn six of them; while kinds are, a word an axis and three more for each
    such row (measured, torch 2.13); in the end the signs once more, and words of bits.
    """
    del laid_out
    signs, divisors = node.meta["val"]
    _, grid, side, kept, _ = node.args
    num_spatial = len(cast(Sequence[Any], grid)) - 2
    inside = side_of_signs(num_spatial, cast(int, side), cast(Sequence[int], kept))
    nbytes: int = tensor_nbytes(signs) or 0
    results = nbytes + (tensor_nbytes(divisors) or 0)
    word_nbytes: int = nbytes // (signs.shape[0] * inside**num_spatial)
    num_words: int = num_spatial * (inside.bit_length() - 1) * signs.shape[0] + 2
    num_early: int = max(6, (num_spatial + 2) * divisors.shape[0] + 2 * num_spatial)
    return max(nbytes + num_words * word_nbytes, num_early * word_nbytes - results)


def _octonions_nbytes(node: fx.Node, laid_out: Layouts) -> int:
    """What drawing octonions of tiles holds besides its result (measured, torch 2.13)."""
    del laid_out
    return (tensor_nbytes(node.meta["val"]) or 0) * 5


WORKSPACES: Workspaces = {
    torch.ops.xconv.draw_signs.default: _signs_nbytes,
    torch.ops.xconv.draw_octonions.default: _octonions_nbytes,
    torch.ops.xconv.conv_input_grad.default: _input_gradient_nbytes,
    torch.ops.xconv.conv_weight_grad.default: _weight_gradient_nbytes,
}

_WORKSPACE_OF = partial(workspace_nbytes, others=WORKSPACES)
