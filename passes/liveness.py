"""*liveness*: predict the memory of a training step from its final graphs.

Comes in: a lowered :class:`passes.partition.Partition`. Goes out: :class:`MemoryEstimate`, bytes
above what is allocated before the step, as ``benchmarks.measure.step_memory`` counts them, with
all gradients None before. A walk over both graphs: a value is allocated when its kernel runs and
freed after the last kernel that reads it. Runs nothing, changes no graph; which calls are
kernels is left to :mod:`passes.kernels` and :mod:`passes.fusion`.

Who holds what (checked on torch 2.13, ``aot_eager`` and Inductor):
    - parameters, buffers and the batch are the caller's and count nothing; nor does an input
      that gets a gradient, which an earlier graph allocated.
    - forward outputs live to the end of the step (the caller may hold them), except new values
      of mutated inputs, which are copied and dropped when the forward ends.
    - kept values are handed to the backward in a box and freed after their last reader.
    - tangents are held by the autograd engine until the backward returns.
    - gradients live to the end of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import fx

from passes import _torch
from passes.joint import is_tangent, output_node, tensor_val
from passes.kernels import Kernel, Program
from passes.partition import Partition
from passes.provenance import module_of

_NUM_LARGEST = 8


@dataclass(frozen=True)
class LiveValue:
    """A value that is live at the peak: its node's name, and its bytes."""

    node: str
    nbytes: int


@dataclass(frozen=True)
class Peak:
    """Where the most memory is live.

    Attributes:
        phase: ``forward`` or ``backward``.
        node: the call that runs.
        module: path of the module it belongs to.
        workspace_nbytes: what the call itself needs beside its arguments and results.
        largest: the largest values live at it, largest first.
    """

    phase: str
    node: str
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
        peak_nbytes: the most that is live at any moment, gradients included.
        peak: where that is; None for graphs without a call.
        unknown: names of values whose size is unknown when the graph is compiled; none of them
            is in the figures.
    """

    kept_nbytes: int
    live_after_forward_nbytes: int
    peak_nbytes: int
    peak: Peak | None
    unknown: tuple[str, ...]


def predict_memory(split: Partition, program_of: Callable[[fx.Graph], Program]) -> MemoryEstimate:
    """Predict the memory of a step.

    Args:
        split: the lowered forward and backward.
        program_of: what the inner compiler makes of a graph: :func:`passes.kernels.interpret`
            or :func:`passes.fusion.fuse`.

    Returns:
        The figures, in bytes.
    """
    forward, backward = program_of(split.forward.graph), program_of(split.backward.graph)
    outputs = output_node(split.forward.graph)
    kept = [node for node in split.kept_nodes() if tensor_val(node) is not None]
    kept_values = {forward.base[node] for node in kept if _owns(forward.base[node])}
    held = {value for value in map(forward.base.get, _held_outputs(split)) if value is not None}
    held = {value for value in held if _owns(value)}
    after_forward = kept_values | held
    returned = {forward.base[node] for node in outputs.all_input_nodes}
    first = _walk(forward, (), returned)

    received, initial, stays = _receive(backward, split, kept, forward, held)
    elsewhere = _total(forward, held - kept_values)
    second = _walk(received, initial, stays, elsewhere)
    phase, best = max(("forward", first), ("backward", second), key=lambda pair: pair[1].nbytes)
    return MemoryEstimate(
        kept_nbytes=_total(forward, kept_values),
        live_after_forward_nbytes=_total(forward, after_forward),
        peak_nbytes=best.nbytes,
        peak=_describe(phase, best),
        unknown=tuple(dict.fromkeys([*_unknown(forward), *_unknown(received)])),
    )


@dataclass(frozen=True)
class _Walk:
    """The peak of one graph: bytes, the kernel (None without any) and what is live then."""

    nbytes: int
    kernel: Kernel | None
    live: tuple[LiveValue, ...]


def _walk(
    program: Program, initial: Iterable[fx.Node], stays: set[fx.Node], elsewhere: int = 0
) -> _Walk:
    """Walk over the kernels.

    Args:
        program: the kernels and the sizes.
        initial: values that are live before the first kernel.
        stays: values that are never freed.
        elsewhere: bytes that are live all the time and have no node here.
    """
    born = dict.fromkeys(initial, -1)
    last = _last_kernels(program, stays)
    dying: dict[int, list[fx.Node]] = {}
    for value, index in last.items():
        dying.setdefault(index, []).append(value)
    live = elsewhere + _total(program, born)
    peak, at = live, -1
    for index, kernel in enumerate(program.kernels):
        born.update((value, index) for value in kernel.outputs if value not in born)
        freed = [v for v in dying.get(index, ()) if v in born]
        live += _total(program, kernel.outputs)
        taken = _taken_in_place(program, kernel, freed) if kernel.in_place else 0
        if live - taken + kernel.workspace_nbytes > peak:
            peak, at = live - taken + kernel.workspace_nbytes, index
        live -= _total(program, freed)
    values = [v for v, start in born.items() if start <= at <= last.get(v, at)]
    sizes = [LiveValue(v.name, program.nbytes.get(v) or 0) for v in values]
    largest = sorted(sizes, key=lambda value: -value.nbytes)[:_NUM_LARGEST]
    return _Walk(peak, program.kernels[at] if at >= 0 else None, tuple(largest))


def _last_kernels(program: Program, stays: set[fx.Node]) -> dict[fx.Node, int]:
    """Index of the last kernel that touches each value that is freed."""
    last: dict[fx.Node, int] = {}
    for index, kernel in enumerate(program.kernels):
        for value in (*kernel.outputs, *kernel.reads):
            last[value] = index
    return {value: index for value, index in last.items() if value not in stays}


def _taken_in_place(program: Program, kernel: Kernel, freed: Iterable[fx.Node]) -> int:
    """Bytes of outputs that take the memory of a value of the same size that is read last here."""
    sizes = [program.nbytes.get(v) or 0 for v in freed if v not in kernel.outputs]
    taken = 0
    for value in kernel.outputs:
        nbytes = program.nbytes.get(value) or 0
        if nbytes in sizes:
            sizes.remove(nbytes)
            taken += nbytes
    return taken


def _receive(
    backward: Program,
    split: Partition,
    kept: list[fx.Node],
    forward: Program,
    held: set[fx.Node],
) -> tuple[Program, list[fx.Node], set[fx.Node]]:
    """Tie the backward's inputs to the forward's values.

    Two kept values in one memory become one; inputs of the forward become free.

    Returns:
        The backward, its live inputs, and what is never freed.
    """
    inputs = split.backward.graph.find_nodes(op="placeholder")
    given = [n for n in inputs if not is_tangent(n) and tensor_val(n) is not None]
    assert len(given) == len(kept), f"{len(kept)} tensors kept and {len(given)} received"
    first: dict[fx.Node, fx.Node] = {}
    rename, nbytes = dict[fx.Node, fx.Node](), dict(backward.nbytes)
    for node, source in zip(given, kept, strict=True):
        value = forward.base[source]
        rename[node] = first.setdefault(value, node)
        nbytes[node] = forward.nbytes.get(value) if _owns(value) else 0
    tangents = [n for n in inputs if is_tangent(n)]
    ends = [*output_node(split.backward.graph).all_input_nodes, *tangents]
    stays = {rename.get(backward.base[node], backward.base[node]) for node in ends}
    stays |= {node for value, node in first.items() if value in held}
    kernels = tuple(
        replace(k, reads=tuple(dict.fromkeys(rename.get(v, v) for v in k.reads)))
        for k in backward.kernels
    )
    return replace(backward, kernels=kernels, nbytes=nbytes), [*first.values(), *tangents], stays


def _held_outputs(split: Partition) -> list[fx.Node]:
    """The forward's outputs that the caller may hold during the backward."""
    output = output_node(split.forward.graph)
    values = list(output.args[0])[: split.num_fwd_outputs]  # type: ignore[arg-type]
    described = output.meta.get("desc")
    told = list(described) if isinstance(described, (list, tuple)) else []
    mutated = {i for i, description in enumerate(told) if _torch.is_input_mutation(description)}
    return [v for i, v in enumerate(values) if isinstance(v, fx.Node) and i not in mutated]


def _owns(value: fx.Node) -> bool:
    """Whether a value of the forward is allocated by it."""
    return value.op != "placeholder"


def _total(program: Program, values: Iterable[fx.Node]) -> int:
    return sum(program.nbytes.get(value) or 0 for value in values)


def _unknown(program: Program) -> list[str]:
    return [value.name for value, nbytes in program.nbytes.items() if nbytes is None]


def _describe(phase: str, walk: _Walk) -> Peak | None:
    if walk.kernel is None:
        return None
    node = walk.kernel.node
    return Peak(phase, node.name, module_of(node), walk.kernel.workspace_nbytes, walk.live)
