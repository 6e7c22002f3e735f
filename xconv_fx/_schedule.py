"""What Inductor would run for a graph, read from its own scheduler before any code is generated.

Comes in: a forward or backward graph as the inner compiler gets it, or Inductor's own graph while
it is compiled. Goes out: its :class:`Schedule`. Where nothing is to be compiled, Inductor's passes,
lowering and fusion run as in compilation and stop once the order of the kernels is known. So
buffers, layouts and copies are its own; nothing is guessed but the workspace of extern kernels and
which results take the memory of an argument. The one file that reads ``torch._inductor``'s
scheduler; checked on 2.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx
from torch._inductor import config, ir
from torch._inductor.dependencies import MemoryDep, WeakDep
from torch._inductor.graph import GraphLowering
from torch._inductor.memory import estimate_peak_memory, get_freeable_input_buf
from torch._inductor.scheduler import BaseSchedulerNode, OutputNode
from torch._inductor.utils import BoxedBool
from torch._inductor.virtualized import V
from torch.utils._ordered_set import OrderedSet

from passes.buffer_reuse import hold_for_reuse
from passes.joint import copy_module, output_node
from passes.kernels import Kernel, Program
from passes.provenance import module_of
from passes.workspace import Layouts
from xconv_fx._fusion import compile_inner


class WorkspaceOf(Protocol):
    """Of a call and its tensors as they are laid out to bytes."""

    def __call__(self, node: fx.Node, *, laid_out: Layouts) -> int: ...


class _ScheduledError(Exception):
    """Ends a compilation whose schedule is known."""


@dataclass(frozen=True)
class Schedule:
    """What Inductor runs for one graph.

    Attributes:
        program: the kernels, with buffers named as Inductor names them.
        output_strides: of each output of the graph; None for what is no tensor.
    """

    program: Program
    output_strides: tuple[tuple[int, ...] | None, ...]


def schedule_of(graph: GraphLowering, workspace_of: WorkspaceOf) -> Schedule:
    """Read the schedule of a graph that Inductor is about to generate code for.

    Args:
        graph: Inductor's, with a scheduler.
        workspace_of: see :func:`read_schedule`.
    """
    shape_env = getattr(graph, "_shape_env", None)
    with contextlib.nullcontext() if shape_env is None else shape_env.suppress_guards():
        program = _program(graph.scheduler.nodes, workspace_of)
        return Schedule(program, tuple(map(_output_stride, graph.graph_outputs)))


def read_schedule(
    module: fx.GraphModule,
    settings: Mapping[str, Any],
    *,
    is_backward: bool,
    visible_outputs: Sequence[int],
    workspace_of: WorkspaceOf,
    input_strides: Mapping[int, tuple[int, ...]] | None = None,
) -> Schedule:
    """Return the schedule that Inductor would make for a graph.

    Takes about as long as compiling without generating and compiling code.

    Args:
        module: the graph; left untouched.
        settings: of ``torch._inductor.config``.
        is_backward: whether it is a backward.
        visible_outputs: positions of the outputs whose strides the user sees.
        workspace_of: of a call of torch's own and its tensors as Inductor lays them out: bytes
            that it needs while it runs.
        input_strides: by position, of inputs whose layout is not that of the graph: what a
            forward keeps is laid out as Inductor likes.
    """
    copied = copy_module(module)
    output_node(copied.graph).meta["user_visible_output_idxs"] = list(visible_outputs)
    inputs = [node.meta["val"] for node in copied.graph.find_nodes(op="placeholder")]
    for position, stride in (input_strides or {}).items():
        val = inputs[position]
        with val.fake_mode:
            inputs[position] = torch.empty_strided(
                val.shape, stride, dtype=val.dtype, device=val.device
            )
    found: list[Schedule] = []

    def read(graph: GraphLowering) -> None:
        found.append(schedule_of(graph, workspace_of))
        raise _ScheduledError

    # A graph found in the cache would never be scheduled.
    with config.patch({**settings, "fx_graph_cache": False}):
        try:
            compile_inner(
                copied,
                inputs,
                cudagraphs=BoxedBool(False),
                is_backward=is_backward,
                on_scheduled=read,
            )
        except Exception:
            if not found:
                raise
    assert found, "Inductor compiled a graph without scheduling it"
    return found[0]


def max_reads(settings: Mapping[str, Any]) -> int:
    """Return of how many stored values one with several readers may be made and not be stored.

    Args:
        settings: of ``torch._inductor.config``.
    """
    name = "realize_reads_threshold"
    return int(settings.get(name, getattr(config, name)))


def _program(nodes: Sequence[BaseSchedulerNode], workspace_of: WorkspaceOf) -> Program:
    graph = V.graph
    owner = _owners(graph)
    outputs = tuple(_output_value(out, owner) for out in graph.graph_outputs)
    nbytes = {name: _input_nbytes(value) for name, value in graph.graph_inputs.items()}
    for name, buffer in graph.scheduler.name_to_buf.items():
        if owner[name] == name:
            nbytes[name] = _buffer_nbytes(buffer.node)
    memory = _Memory(owner, nbytes, frozenset(filter(None, outputs)), _readers(nodes))
    launches = _launches(nodes)
    kernels = tuple(_kernel(launch, memory, workspace_of) for launch in launches)
    program = Program(kernels, nbytes, tuple(graph.graph_input_names), outputs)
    if not config.allow_buffer_reuse:
        return program
    return hold_for_reuse(program, [_pooled(launch) for launch in launches], _live(launches))


@dataclass(frozen=True)
class _Memory:
    """Which buffer lives where.

    Attributes:
        owner: for each buffer the one whose memory it lives in.
        nbytes: of each that owns memory.
        returned: those that live in outputs of the graph.
        readers: for each buffer the leaves of the schedule that read it, in order, each with the
            place of its loops in the schedule.
    """

    owner: Mapping[str, str]
    nbytes: Mapping[str, int]
    returned: frozenset[str]
    readers: Mapping[str, list[tuple[int, str]]]


def _owners(graph: Any) -> dict[str, str]:
    scheduler = graph.scheduler
    owner = {name: name for name in graph.graph_inputs}
    for name, buffer in scheduler.name_to_buf.items():
        layout = getattr(buffer.node, "layout", None)
        aliased = buffer.node.get_inputs_that_alias_output()
        if name in scheduler.mutation_real_name:
            owner[name] = scheduler.mutation_real_name[name]
        elif isinstance(layout, ir.NonOwningLayout):
            owner[name] = layout.view.get_name()
        else:
            owner[name] = aliased[0] if aliased else name
    return {name: _follow(owner, name) for name in owner}


def _follow(owner: Mapping[str, str], name: str) -> str:
    while owner.get(name, name) != name:
        name = owner[name]
    return name


def _readers(nodes: Iterable[BaseSchedulerNode]) -> dict[str, list[tuple[int, str]]]:
    readers: dict[str, list[tuple[int, str]]] = {}
    for place, node in enumerate(nodes):
        for leaf in node.get_nodes():
            for name in dict.fromkeys(dep.name for dep in leaf.read_writes.reads):
                readers.setdefault(name, []).append((place, leaf.get_name()))
    return readers


def _launches(nodes: Iterable[BaseSchedulerNode]) -> list[list[BaseSchedulerNode]]:
    """Group what runs in one call.

    On the CPU all generated loops between two extern kernels are one C++ function: its buffers are
    allocated before and freed after it (``CppScheduling`` and ``Scheduler.flush``).
    """
    launches: list[list[BaseSchedulerNode]] = []
    joins = False
    for node in nodes:
        device = node.get_device()
        generated = not node.is_extern() and not node.is_template()
        generated &= device is None or device.type == "cpu"
        if generated and joins:
            launches[-1].append(node)
        else:
            launches.append([node])
        joins = generated
    return launches


def _kernel(
    launch: Sequence[BaseSchedulerNode], memory: _Memory, workspace_of: WorkspaceOf
) -> Kernel:
    leaves = [leaf for node in launch for leaf in node.get_nodes()]
    origins = [origin for leaf in leaves if (origin := _origin(leaf)) is not None]
    made = [
        (buffer, loop_of)
        for node in launch
        for loop_of in [_loops(node)]
        for buffer in _made(node)
        if memory.owner[buffer.get_name()] == buffer.get_name()
    ]
    own = {buffer.get_name() for buffer, _ in made}
    outputs = [
        buffer.get_name()
        for buffer, loop_of in made
        if buffer.get_name() in memory.returned or not _is_local(buffer, loop_of)
    ]
    reads = dict.fromkeys(
        memory.owner[dep.name]
        for leaf in leaves
        for dep in leaf.read_writes.reads
        if dep.name in memory.owner and not isinstance(dep, WeakDep)
    )
    is_extern = launch[0].is_extern()
    return Kernel(
        name=origins[-1].name if origins else launch[-1].get_name(),
        module=module_of(origins[-1]) if origins else "unknown",
        outputs=tuple(outputs),
        reads=tuple(name for name in reads if name not in own),
        workspace_nbytes=_workspace_nbytes(leaves[-1], workspace_of) if is_extern else 0,
        reused=() if is_extern else tuple(_reused(launch, set(outputs), memory)),
    )


def _workspace_nbytes(leaf: BaseSchedulerNode, workspace_of: WorkspaceOf) -> int:
    origin = _origin(leaf)
    if origin is None or not isinstance(leaf.node, ir.ExternKernel):
        return 0
    if isinstance(leaf.node, ir.MultiOutput):  # the call before it did the work
        return 0
    arguments = [n for n in origin.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    buffers = [buffer for buffer in leaf.node.inputs if isinstance(buffer, ir.IRNode)]
    if len(arguments) != len(buffers):
        return workspace_of(origin, laid_out={})
    pairs = zip(arguments, buffers, strict=True)
    return workspace_of(origin, laid_out={n: _laid_out(n.meta["val"], b) for n, b in pairs})


def _laid_out(val: torch.Tensor, buffer: Any) -> torch.Tensor:
    stride = [_hint(s) for s in buffer.get_layout().stride]
    size = [_hint(s) for s in buffer.get_size()]
    with V.fake_mode:
        return torch.empty_strided(size, stride, dtype=val.dtype, device=val.device)


def _made(node: BaseSchedulerNode) -> Iterable[Any]:
    """The buffers that a kernel allocates: of a call with several results each of them."""
    for buffer in node.get_outputs():
        if isinstance(buffer.node.layout, ir.MultiOutputLayout):
            takers = [u.node for u in buffer.users if not isinstance(u.node, OutputNode)]
            items = [item for taker in takers for item in taker.get_outputs()]
            yield from (item for item in items if isinstance(item.node, ir.MultiOutput))
        elif not isinstance(buffer.node, ir.MultiOutput):
            yield buffer


def _loops(node: BaseSchedulerNode) -> dict[str, int]:
    """Number the loops of fused leaves: what reads a reduction's result runs in later ones."""
    loop_of: dict[str, int] = {}
    maker: dict[str, BaseSchedulerNode] = {}
    for leaf in node.get_nodes():
        before = [maker[dep.name] for dep in leaf.read_writes.reads if dep.name in maker]
        loop_of[leaf.get_name()] = max(
            (loop_of[other.get_name()] + other.is_reduction() for other in before), default=0
        )
        maker.update((buffer.get_name(), leaf) for buffer in leaf.get_outputs())
    return loop_of


def _is_local(buffer: Any, loop_of: Mapping[str, int]) -> bool:
    """Whether a buffer is read in the loops alone that make it, which then never store it."""
    made_in = loop_of.get(buffer.defining_op_name())
    readers = [user.get_name() for user in buffer.users if not user.is_weak]
    return all(name in loop_of and loop_of[name] == made_in for name in readers)


def _reused(
    launch: Sequence[BaseSchedulerNode], outputs: set[str], memory: _Memory
) -> Iterable[str]:
    """The values whose memory an output takes: read last, element by element, by the same loops.

    Follows ``SchedulerNode.decide_inplace_update``.
    """
    taken: set[str] = set()
    for leaf in (leaf for node in launch for leaf in node.get_nodes()):
        for write in leaf.read_writes.writes:
            if write.name not in outputs or not isinstance(write, MemoryDep):
                continue
            for read in leaf.read_writes.reads:
                if (
                    isinstance(read, MemoryDep)
                    and read.name not in taken
                    and memory.owner.get(read.name) == read.name
                    and memory.nbytes[read.name] == memory.nbytes[write.name]
                    and (read.index, read.size) == (write.index, write.size)
                    and _is_last_reader(leaf, read.name, memory)
                ):
                    taken.add(read.name)
                    yield read.name
                    break


def _is_last_reader(leaf: BaseSchedulerNode, name: str, memory: _Memory) -> bool:
    """Whether nothing reads a value after a leaf, nor beside it in the same loops."""
    if name in memory.returned:
        return False
    *others, (place, last) = memory.readers[name]
    return last == leaf.get_name() and not any(
        at == place and other not in leaf.ancestors for at, other in others
    )


def _live(launches: Sequence[Sequence[BaseSchedulerNode]]) -> list[list[int]]:
    """Inductor's own estimate of the bytes that are live at each node."""
    nodes = [node for launch in launches for node in launch]
    freeable = get_freeable_input_buf(nodes, OrderedSet(V.graph.graph_inputs))
    outputs = OrderedSet(V.graph.get_output_names())
    _, at_node = estimate_peak_memory(nodes, freeable, outputs)
    estimates = iter(at_node)
    return [[next(estimates) for _ in launch] for launch in launches]


def _pooled(launch: Sequence[BaseSchedulerNode]) -> set[str]:
    """The buffers of a launch that the wrapper allocates; others come from the call itself."""
    buffers = [buffer for node in launch for buffer in node.get_outputs()]
    return {b.get_name() for b in buffers if b.node.should_allocate()}


def _origin(leaf: BaseSchedulerNode) -> fx.Node | None:
    """The call of the graph that a leaf comes from; of a fused one the last."""
    if leaf.node is None:
        return None
    origin: fx.Node | None = leaf.node.get_origin_node()
    return origin or max(leaf.node.get_origins(), default=None)


def _output_value(output: Any, owner: Mapping[str, str]) -> str | None:
    if isinstance(output, (ir.NoneAsConstantBuffer, ir.ShapeAsConstantBuffer)):
        return None
    name: str = output.get_name()
    return owner.get(name, name)


def _output_stride(output: Any) -> tuple[int, ...] | None:
    if isinstance(output, (ir.NoneAsConstantBuffer, ir.ShapeAsConstantBuffer)):
        return None
    return tuple(_hint(s) for s in output.get_layout().stride)


def _input_nbytes(value: Any) -> int:
    if not isinstance(value, ir.IRNode) or not hasattr(value, "get_dtype"):
        return 0
    return _hint(value.get_numel()) * int(value.get_dtype().itemsize)


def _buffer_nbytes(buffer: Any) -> int:
    if isinstance(buffer.layout, (ir.NoneLayout, ir.MultiOutputLayout)):
        return 0
    return _hint(V.graph.get_allocation_storage_size(buffer)) * int(buffer.get_dtype().itemsize)


def _hint(size: Any) -> int:
    sizes: Any = V.graph.sizevars
    hint = getattr(sizes, "optimization_hint", None) or sizes.size_hint
    return int(hint(size, fallback=0))
