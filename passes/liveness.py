"""*liveness*: predict the memory of a training step from its final graphs.

Comes in: a lowered :class:`passes.partition.Partition`. Goes out: :class:`MemoryEstimate`, bytes
above what is allocated before the step, as ``benchmarks.measure.step_memory`` counts them, with
all gradients None before. A walk over both graphs: a value is allocated when its kernel runs and
freed after the last kernel that reads it. Runs nothing, changes no graph; which kernels there are
comes in as a :class:`passes.kernels.Program` of each.

Who holds what (checked on torch 2.13, ``aot_eager`` and Inductor):
    - parameters, buffers and the batch are the caller's and count nothing; nor does an input
      that gets a gradient, which an earlier graph allocated.
    - forward outputs live to the end of the step (the caller may hold them), except new values
      of mutated inputs, which are copied and dropped when the forward ends.
    - kept values are handed to the backward in a box and freed after their last reader.
    - tangents live until the backward returns (the caller may hold them).
    - gradients live to the end of the step.
Where a graph is followed by others that read what it returns, its outputs are gone when its
backward runs, and the autograd engine hands its tangents over: they are freed once read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from passes import _torch
from passes.joint import JointGraph, is_tangent, output_node, tensor_val
from passes.kernels import Kernel, Program
from passes.partition import Partition

_NUM_LARGEST = 8


@dataclass(frozen=True)
class LiveValue:
    """A value that is live at the peak: its name, and its bytes."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Peak:
    """Where the most memory is live.

    Attributes:
        phase: ``forward`` or ``backward``.
        kernel: the call that runs.
        module: path of the module it belongs to.
        workspace_nbytes: what the call itself needs beside its arguments and results.
        largest: the largest values live at it, largest first.
    """

    phase: str
    kernel: str
    module: str
    workspace_nbytes: int
    largest: tuple[LiveValue, ...]


@dataclass(frozen=True)
class MemoryEstimate:
    """Predicted memory of one step of one graph.

    Attributes:
        kept_nbytes: held between forward and backward for the backward; a view counts as what
            it views, inputs of the graph as nothing.
        live_after_forward_nbytes: the same and the forward's outputs.
        forward_peak_nbytes: the most that is live at any moment of the forward.
        backward_peak_nbytes: the same of the backward, gradients included.
        followed_peak_nbytes: the same of the backward of a graph that is followed by others.
        peak: where the larger of the two is; None for graphs without a call.
        unknown: names of values whose size is unknown when the graph is compiled; none of them
            is in the figures.
        kept_inputs: inputs of the graph that are kept for the backward; none of them is in the
            figures.
    """

    kept_nbytes: int
    live_after_forward_nbytes: int
    forward_peak_nbytes: int
    backward_peak_nbytes: int
    followed_peak_nbytes: int
    peak: Peak | None
    unknown: tuple[str, ...]
    kept_inputs: tuple[LiveValue, ...] = ()

    @property
    def peak_nbytes(self) -> int:
        """The most that is live at any moment of the step."""
        return max(self.forward_peak_nbytes, self.backward_peak_nbytes)


def predict_memory(split: Partition, forward: Program, backward: Program) -> MemoryEstimate:
    """Predict the memory of a step.

    Args:
        split: the lowered forward and backward.
        forward: what the inner compiler makes of the one.
        backward: and of the other.

    Returns:
        The figures, in bytes.
    """
    kept = [forward.outputs[i] for i in _kept_positions(split)]
    held = {forward.outputs[i] for i in visible_outputs(split)}
    held = {value for value in held if _owns(forward, value)}
    received, initial, held_names = _receive(backward, split, kept, forward, held)
    return estimate_memory(
        forward,
        received,
        kept=kept,
        held=held,
        initial=initial,
        held_in_backward=held_names,
    )


def estimate_memory(
    forward: Program,
    backward: Program,
    *,
    kept: Sequence[str | None],
    held: Collection[str | None],
    initial: Iterable[str],
    held_in_backward: Collection[str | None],
) -> MemoryEstimate:
    """Walk over both programs.

    Args:
        forward: its outputs are live when it has run.
        backward: its outputs are the gradients.
        kept: what the forward keeps for the backward, its own inputs included.
        held: what the forward returns to the caller.
        initial: what is live before the backward, by the backward's names.
        held_in_backward: of these, what the caller may hold: tangents, and what it was returned.

    Returns:
        The figures, in bytes.
    """
    kept_values = {value for value in kept if _owns(forward, value)}
    gradients = set(backward.outputs)
    elsewhere = _total(forward, set(held) - kept_values)
    initial = tuple(initial)
    first = _walk(forward, (), set(forward.outputs))
    second = _walk(backward, initial, gradients | set(held_in_backward), elsewhere)
    followed = _walk(backward, initial, gradients)
    phase, best = max(("forward", first), ("backward", second), key=lambda pair: pair[1].nbytes)
    return MemoryEstimate(
        kept_nbytes=_total(forward, kept_values),
        live_after_forward_nbytes=_total(forward, kept_values | set(held)),
        forward_peak_nbytes=first.nbytes,
        backward_peak_nbytes=second.nbytes,
        followed_peak_nbytes=followed.nbytes,
        peak=_describe(phase, best),
        unknown=tuple(dict.fromkeys([*_unknown(forward), *_unknown(backward)])),
        kept_inputs=tuple(
            LiveValue(value, forward.nbytes.get(value) or 0)
            for value in dict.fromkeys(kept)
            if value is not None and value in forward.inputs
        ),
    )


@dataclass(frozen=True)
class _Walk:
    """The peak of one graph: bytes, the kernel (None without any) and what is live then."""

    nbytes: int
    kernel: Kernel | None
    live: tuple[LiveValue, ...]


def _walk(
    program: Program, initial: Iterable[str], stays: set[str | None], elsewhere: int = 0
) -> _Walk:
    """Walk over the kernels.

    Args:
        program: the kernels and the sizes.
        initial: values that are live before the first kernel.
        stays: values that are never freed.
        elsewhere: bytes that are live all the time and have no name here.
    """
    born = dict.fromkeys(initial, -1)
    last = _last_kernels(program, stays)
    dying: dict[int, list[str]] = {}
    for value, index in last.items():
        dying.setdefault(index, []).append(value)
    live = elsewhere + _total(program, born)
    peak, at = live, -1
    for index, kernel in enumerate(program.kernels):
        born.update((value, index) for value in kernel.outputs if value not in born)
        freed = [v for v in dying.get(index, ()) if v in born]
        live += _total(program, kernel.outputs)
        taken = _total(program, [v for v in freed if v in kernel.reused])
        if live - taken + kernel.workspace_nbytes > peak:
            peak, at = live - taken + kernel.workspace_nbytes, index
        live -= _total(program, freed)
    values = [v for v, start in born.items() if start <= at <= last.get(v, at)]
    sizes = [LiveValue(v, program.nbytes.get(v) or 0) for v in values]
    largest = sorted(sizes, key=lambda value: -value.nbytes)[:_NUM_LARGEST]
    return _Walk(peak, program.kernels[at] if at >= 0 else None, tuple(largest))


def _last_kernels(program: Program, stays: set[str | None]) -> dict[str, int]:
    """Index of the last kernel that touches each value that is freed."""
    last: dict[str, int] = {}
    for index, kernel in enumerate(program.kernels):
        for value in (*kernel.outputs, *kernel.reads):
            last[value] = index
    return {value: index for value, index in last.items() if value not in stays}


def _receive(
    backward: Program,
    split: Partition,
    kept: list[str | None],
    forward: Program,
    held: set[str | None],
) -> tuple[Program, list[str], set[str | None]]:
    """Tie the backward's inputs to the forward's values.

    Two kept values in one memory become one; inputs of the forward become free.

    Returns:
        The backward, its live inputs, and those of them that the caller may hold.
    """
    placeholders = split.backward.graph.find_nodes(op="placeholder")
    named = list(zip(placeholders, backward.inputs, strict=True))
    given = [name for n, name in named if not is_tangent(n) and tensor_val(n) is not None]
    tangents = [name for n, name in named if is_tangent(n)]
    assert len(given) == len(kept), f"{len(kept)} tensors kept and {len(given)} received"
    first: dict[str | None, str] = {}
    rename, nbytes = dict[str | None, str](), dict(backward.nbytes)
    for name, value in zip(given, kept, strict=True):
        rename[name] = first.setdefault(value, name)
        nbytes[name] = forward.nbytes.get(value) if value and _owns(forward, value) else 0
    held_names: set[str | None] = {*tangents}
    held_names |= {name for value, name in first.items() if value in held}
    kernels = tuple(
        replace(
            k,
            reads=tuple(dict.fromkeys(rename.get(v, v) for v in k.reads)),
            reused=tuple(rename.get(v, v) for v in k.reused),
        )
        for k in backward.kernels
    )
    outputs = tuple(rename.get(value, value) for value in backward.outputs)
    received = replace(backward, kernels=kernels, nbytes=nbytes, outputs=outputs)
    return received, [*first.values(), *tangents], held_names


def _kept_positions(split: Partition) -> list[int]:
    """Where among the forward's outputs the tensors kept for the backward are."""
    outputs = _outputs(split.forward)
    kept = range(split.num_fwd_outputs, len(outputs))
    return [i for i in kept if tensor_val(outputs[i]) is not None]


def received_positions(split: Partition) -> list[tuple[int, int]]:
    """Return which input of the backward is which output of the forward, tensors only."""
    inputs = enumerate(split.backward.graph.find_nodes(op="placeholder"))
    given = [i for i, n in inputs if not is_tangent(n) and tensor_val(n) is not None]
    return list(zip(given, _kept_positions(split), strict=True))


def visible_outputs(split: Partition | JointGraph) -> list[int]:
    """Return where among the forward's outputs those are that the caller sees.

    Left out are new values of mutated inputs.
    """
    graph = split.graph if isinstance(split, JointGraph) else split.forward.graph
    described = output_node(graph).meta.get("desc")
    told = list(described) if isinstance(described, (list, tuple)) else []
    mutated = {i for i, description in enumerate(told) if _torch.is_input_mutation(description)}
    return [i for i in range(split.num_fwd_outputs) if i not in mutated]


def _outputs(module: fx.GraphModule) -> list[fx.Node]:
    return list(output_node(module.graph).args[0])  # type: ignore[arg-type]


def _owns(forward: Program, value: str | None) -> bool:
    """Whether a value is allocated by the forward."""
    return value is not None and value not in forward.inputs


def _total(program: Program, values: Iterable[str | None]) -> int:
    return sum(program.nbytes.get(value) or 0 for value in values if value is not None)


def _unknown(program: Program) -> list[str]:
    return [value for value, nbytes in program.nbytes.items() if nbytes is None]


def _describe(phase: str, walk: _Walk) -> Peak | None:
    if walk.kernel is None:
        return None
    kernel = walk.kernel
    return Peak(phase, kernel.name, kernel.module, kernel.workspace_nbytes, walk.live)
