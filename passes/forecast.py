"""*forecast*: the memory of a step under a plan, before any graph of that plan is made.

A plan's graphs, and what a compiler that merges kernels makes of them, take seconds to minutes to
find out; a search tries dozens of plans. So this walks over the joint graph as it is, forward then
backward, and knows three kinds of calls:

    - what the compiler calls as it is (a convolution, a matrix product, an op of our own that is
      not lowered) stores its results, and has its operands in memory as a whole;
    - what it generates loops for and does not repeat (a reduction) stores its results;
    - all others are computed wherever they are read, so that reading one is reading what it is
      made of; unless it has several readers and is made of more stored values than Inductor would
      read for each of them (``realize_reads_threshold``, 2.13).

A kept value is in memory from its making to its last read; a stand-in that is read as a whole is
one more value, for that read, and where it is decoded in two steps what is stored between them is
another; a call that is run again stores its results once more, where the backward first reads them.
On the CPU all loops between two calls are one function, whose values are in memory together, but
that each may take the place of one that is read there for the last time. What is left out are
choices of Inductor's scheduler: which loops it merges, in which order, and which of their values
stay in registers. The schedule itself is right to some bytes (:mod:`passes.liveness`) and is what a
budget is held to; this is what plans are searched by.

Comes in: an exposed joint graph, then plans of it. Goes out: the
:class:`passes.liveness.MemoryEstimate` of each.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from passes.joint import JointGraph, hinted_shape, is_tangent, tensor_nbytes, tensor_val
from passes.kernels import Kernel, Program, base_values
from passes.liveness import MemoryEstimate, estimate_memory, visible_outputs
from passes.op_traits import recompute_ban
from passes.plan import Action, Decision, Plan
from passes.provenance import module_of
from passes.workspace import Layouts, Workspaces, workspace_nbytes

# A stand-in is read as codes, offsets and steps.
_READS_OF_STAND_IN = 3
_STAND_IN = ":stand-in"
# What decoding a stand-in stores on its way: several numbers of it an element.
_HALFWAY = ":halfway"
_READS_HALFWAY = 8
_AGAIN = ":again"


class _Kind(Enum):
    EXTERN = "extern"
    STORED = "stored"
    INLINED = "inlined"


@dataclass(frozen=True)
class _Call:
    """A call that makes values, with all that does not depend on the plan.

    Attributes:
        node: the call.
        kind: how it is run.
        results: the values it makes; several for a call that returns a tuple.
        is_shared: whether several calls read them.
        workspace_nbytes: what it needs while it runs.
    """

    node: fx.Node
    kind: _Kind
    results: tuple[fx.Node, ...]
    is_shared: bool
    workspace_nbytes: int


@dataclass(frozen=True)
class Forecast:
    """Forecasts the memory of plans of one joint graph; made by :meth:`of`.

    Attributes:
        joint: the exposed graph.
        base: for each node the value whose memory it lives in.
        forward: the calls of the forward, in graph order.
        backward: those of the backward.
        max_reads: what is read in several places and made of more stored values is stored.
        waiting: ops whose sketched operands are decoded after all loops before them.
    """

    joint: JointGraph
    base: Mapping[fx.Node, fx.Node]
    forward: tuple[_Call, ...]
    backward: tuple[_Call, ...]
    max_reads: int
    waiting: Container[object] = ()

    @classmethod
    def of(
        cls,
        joint: JointGraph,
        *,
        lowered: Container[object],
        workspaces: Workspaces | None = None,
        channels_last: bool = False,
        max_reads: int = 4,
        waiting: Container[object] = (),
    ) -> Forecast:
        """Read off a graph what is the same under all plans.

        Args:
            joint: an exposed joint graph.
            lowered: ops that are no torch ops and are lowered to some.
            workspaces: what those that are not lowered need while they run.
            channels_last: whether the compiler lays 4-D values out channels-last.
            max_reads: Inductor's ``realize_reads_threshold``.
            waiting: the readers of ``Rules.wait``.
        """
        base = base_values(joint.graph)
        in_backward = joint.backward_nodes()
        calls = [
            _read_call(node, lowered, workspaces, channels_last)
            for node in joint.graph.nodes
            if node.op == "call_function"
            and node.target is not operator.getitem
            and base[node] is node
        ]
        return cls(
            joint,
            base,
            tuple(call for call in calls if call.node not in in_backward),
            tuple(call for call in calls if call.node in in_backward),
            max_reads,
            waiting,
        )

    def memory(self, plan: Plan) -> MemoryEstimate:
        """Forecast the memory of a step under a plan.

        Args:
            plan: of the same graph.

        Returns:
            Bytes above what is allocated before the step.
        """
        decisions = {d.node: d for d in plan.decisions}
        kept = {
            node: decision
            for node in self.base
            if (decision := decisions.get(node.name)) is not None and decision.kept_nbytes
        }
        forward = self._forward_kernels(kept)
        backward, backward_nbytes = self._backward_kernels(decisions)
        primals = dict.fromkeys(self._primals)
        tangents = [node.name for node in self._tangents]
        kept_names = dict.fromkeys(self._kept_name(node, d) for node, d in kept.items())
        held = [n.name for n in self._visible if n not in primals]
        inputs = tuple(n.name for n in primals)
        nbytes = {**self._nbytes, **self._kept_nbytes(kept)}
        return estimate_memory(
            Program(forward, nbytes, inputs, (*(n.name for n in self._returned), *kept_names)),
            Program(
                backward,
                {**backward_nbytes, **nbytes, **dict.fromkeys(inputs, 0)},
                (),
                self._gradients,
            ),
            kept=list(kept_names),
            held=held,
            initial=[*kept_names, *tangents],
            held_in_backward=[*tangents, *held],
        )

    def _forward_kernels(self, kept: Mapping[fx.Node, Decision]) -> tuple[Kernel, ...]:
        whole = self._read_whole(self.forward) | set(self._returned)
        whole |= {self.base[node] for node, d in kept.items() if not _is_stand_in(d)}
        encoded: dict[fx.Node, list[tuple[fx.Node, Decision]]] = {}
        for node, decision in kept.items():
            if _is_stand_in(decision):
                encoded.setdefault(self.base[node], []).append((node, decision))
        reads: dict[fx.Node, tuple[str, ...]] = {}
        launches = _Launches({**self._nbytes, **self._kept_nbytes(kept)})

        def encode(value: fx.Node) -> None:
            for node, decision in encoded.get(value, ()):
                launches.loops(node, [self._kept_name(node, decision)], reads[value])

        for value in self._primals:
            reads[value] = (value.name,)
            encode(value)
        for call in self.forward:
            sources = [self.base[n] for n in call.node.all_input_nodes]
            read = _union(reads.get(source, ()) for source in sources)
            self._settle(call, read, whole, launches, reads)
            for result in call.results:
                encode(result)
        return tuple(launches.kernels)

    def _backward_kernels(
        self, decisions: Mapping[str, Decision]
    ) -> tuple[tuple[Kernel, ...], Mapping[str, int | None]]:
        """The kernels, and bytes of all that they make."""
        whole = self._read_whole(self.backward) | {n for n in self._outputs if n in self._made}
        reads: dict[fx.Node, tuple[str, ...]] = {n: (n.name,) for n in self._tangents}
        resolved: dict[fx.Node, tuple[str, ...]] = {}

        def read_in_backward(node: fx.Node) -> tuple[str, ...]:
            value = self.base[node]
            if value in self._made or is_tangent(value):
                return reads.get(value, ())
            return self._resolve(node, decisions, resolved, launches)

        launches = _Launches(dict(self._nbytes))
        for call in self.backward:
            if call.node.target in self.waiting and self._decodes_sketches(call, decisions):
                launches.close()
            reads_of = {node: read_in_backward(node) for node in call.node.all_input_nodes}
            read = self._read(call, reads_of, launches)
            self._settle(call, read, whole, launches, reads)
        return tuple(launches.kernels), launches.nbytes

    def _read(
        self, call: _Call, reads_of: dict[fx.Node, tuple[str, ...]], launches: _Launches
    ) -> tuple[str, ...]:
        """What a call of the backward reads: as a whole what it needs so, else what that is of."""
        if call.kind is not _Kind.EXTERN:
            return _union(reads_of.values())
        operands = []
        for node, read in reads_of.items():
            name = self.base[node].name
            if read in ((), (name,), (f"{name}{_AGAIN}",)):
                operands.append(read)
            else:
                rebuilt = f"{node.name} for {call.node.name}"
                launches.loops(node, [rebuilt], read)
                operands.append((rebuilt,))
        return _union(operands)

    def _settle(
        self,
        call: _Call,
        read: tuple[str, ...],
        whole: Container[fx.Node],
        launches: _Launches,
        reads: dict[fx.Node, tuple[str, ...]],
    ) -> None:
        """Store the results of a call, or have those who read them read what it reads."""
        num_reads = sum(_num_reads(name) for name in read)
        is_wanted = call.node in whole or (call.is_shared and num_reads > self.max_reads)
        if call.kind is not _Kind.INLINED or is_wanted:
            launches.run(call, read)
            reads.update((result, (result.name,)) for result in call.results)
        else:
            reads[call.node] = read

    def _resolve(
        self,
        node: fx.Node,
        decisions: Mapping[str, Decision],
        resolved: dict[fx.Node, tuple[str, ...]],
        launches: _Launches,
    ) -> tuple[str, ...]:
        """Which values the backward reads where it reads one of the forward, run again if need be.

        These are kept ones, and results of costly calls. What decoding stores on its way to another
        value is made anew for the next one (``passes.stand_ins``).
        """
        stack = [node]
        passing: list[fx.Node] = []
        while stack:
            current = stack[-1]
            if current in resolved:
                stack.pop()
                continue
            decision = decisions.get(current.name)
            if current.op == "placeholder" or (decision is not None and decision.kept_nbytes):
                name = current.name if decision is None else self._kept_name(current, decision)
                if decision is not None and (stored := _halfway_nbytes(current, decision)):
                    halfway = f"{current.name} for {node.name}{_HALFWAY}"
                    launches.nbytes[halfway] = stored
                    launches.loops(current, [halfway], [name])
                    launches.close()
                    name = halfway
                resolved[current] = (name,)
            else:
                sources = self._sources(current, decision)
                waiting = [source for source in sources if source not in resolved]
                if waiting:
                    stack.extend(waiting)
                    continue
                call = self._costly.get(current)
                if call is not None and current is call.node:
                    reads = {source: resolved[source] for source in sources}
                    launches.run(call, self._read(call, reads, launches), again=True)
                if call is not None and current in call.results:
                    resolved[current] = (f"{current.name}{_AGAIN}",)
                else:
                    resolved[current] = _union(resolved[source] for source in sources)
            if any(name.endswith(_HALFWAY) for name in resolved[current]):
                passing.append(current)
            stack.pop()
        read = resolved[node]
        for led_to in passing:
            if led_to is not node:
                resolved.pop(led_to, None)
        return read

    def _sources(self, node: fx.Node, decision: Decision | None) -> Sequence[fx.Node]:
        derivation = None if decision is None else decision.derivation
        if derivation is None:
            return node.all_input_nodes
        return [self._by_name[name] for name in (*derivation.exact, *derivation.linear)]

    def _read_whole(self, calls: Iterable[_Call]) -> set[fx.Node]:
        extern = (call.node for call in calls if call.kind is _Kind.EXTERN)
        return {self.base[source] for node in extern for source in node.all_input_nodes}

    def _kept_nbytes(self, kept: Mapping[fx.Node, Decision]) -> dict[str, int | None]:
        """Bytes of stand-ins; what is kept as it is has its own, and a view those of its base."""
        stand_ins = ((node, d) for node, d in kept.items() if _is_stand_in(d))
        return {self._kept_name(node, d): d.kept_nbytes for node, d in stand_ins}

    def _decodes_sketches(self, call: _Call, decisions: Mapping[str, Decision]) -> bool:
        """Whether what a call reads is decoded from sketches, or made again from what is."""
        seen: set[fx.Node] = set()
        stack = [self.base[node] for node in call.node.all_input_nodes]
        while stack:
            node = stack.pop()
            decision = decisions.get(node.name)
            if node in seen or decision is None or decision.action is Action.KEEP:
                continue
            if decision.action is Action.SKETCH:
                return True
            seen.add(node)
            stack.extend(self._sources(node, decision))
        return False

    def _kept_name(self, node: fx.Node, decision: Decision) -> str:
        return f"{node.name}{_STAND_IN}" if _is_stand_in(decision) else self.base[node].name

    @functools.cached_property
    def _by_name(self) -> dict[str, fx.Node]:
        return {node.name: node for node in self.base}

    @functools.cached_property
    def _nbytes(self) -> dict[str, int | None]:
        vals = ((node, tensor_val(node)) for node in self.base)
        sizes: dict[str, int | None] = {n.name: tensor_nbytes(v) for n, v in vals if v is not None}
        for call in (*self.forward, *self.backward):
            for source in call.node.all_input_nodes:
                sizes[f"{source.name} for {call.node.name}"] = sizes.get(source.name, 0)
        sizes.update((f"{n.name}{_AGAIN}", sizes[n.name]) for n in self._costly if n.name in sizes)
        return sizes

    @functools.cached_property
    def _costly(self) -> Mapping[fx.Node, _Call]:
        """The calls of the forward that cannot be computed wherever they are read, by results."""
        calls = (call for call in self.forward if call.kind is not _Kind.INLINED)
        return {node: call for call in calls for node in (call.node, *call.results)}

    @functools.cached_property
    def _primals(self) -> list[fx.Node]:
        return [n for n in self.joint.primals if tensor_val(n) is not None]

    @functools.cached_property
    def _tangents(self) -> list[fx.Node]:
        inputs = self.joint.graph.find_nodes(op="placeholder")
        return [n for n in inputs if is_tangent(n) and tensor_val(n) is not None]

    @functools.cached_property
    def _made(self) -> frozenset[fx.Node]:
        return frozenset(result for call in self.backward for result in call.results)

    @functools.cached_property
    def _outputs(self) -> list[fx.Node]:
        return [self.base[n] for n in self.joint.outputs if isinstance(n, fx.Node)]

    @functools.cached_property
    def _returned(self) -> list[fx.Node]:
        outputs = self.joint.outputs[: self.joint.num_fwd_outputs]
        return [self.base[n] for n in outputs if isinstance(n, fx.Node)]

    @functools.cached_property
    def _visible(self) -> list[fx.Node]:
        outputs = [self.joint.outputs[i] for i in visible_outputs(self.joint)]
        return [self.base[n] for n in outputs if isinstance(n, fx.Node)]

    @functools.cached_property
    def _gradients(self) -> tuple[str, ...]:
        return tuple(self.base[n].name for n in self.joint.bwd_outputs())


def _read_call(
    node: fx.Node, lowered: Container[object], workspaces: Workspaces | None, channels_last: bool
) -> _Call:
    kind = _kind(node, lowered)
    results: tuple[fx.Node, ...] = (node,)
    if tensor_val(node) is None:
        items = [user for user in node.users if user.target is operator.getitem]
        results = tuple(item for item in items if tensor_val(item) is not None)
    workspace = 0
    if kind is _Kind.EXTERN:
        laid_out = _channels_last(node) if channels_last else {}
        workspace = workspace_nbytes(node, laid_out=laid_out, others=workspaces)
    return _Call(node, kind, results, len(node.users) > 1, workspace)


def _kind(node: fx.Node, lowered: Container[object]) -> _Kind:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return _Kind.STORED if tensor_val(node) is None else _Kind.INLINED
    ours = target.namespace not in ("aten", "prims")
    if (ours and target not in lowered) or target.overloadpacket in flop_registry:
        return _Kind.EXTERN
    made = tensor_val(node)
    if made is None:
        return _Kind.STORED
    if not ours and (recompute_ban(node) is None or target._schema.is_mutable):
        return _Kind.INLINED
    read = (tensor_nbytes(v) for n in node.all_input_nodes if (v := tensor_val(n)) is not None)
    # A value an element, or one over several.
    grows = (tensor_nbytes(made) or 0) >= max((size or 0 for size in read), default=0)
    return _Kind.INLINED if grows else _Kind.STORED


def _channels_last(node: fx.Node) -> Layouts:
    """The 4-D operands of a call that the compiler lays out, which inputs are not."""
    laid_out = {}
    for source in node.all_input_nodes:
        val = tensor_val(source)
        if source.op != "placeholder" and val is not None and val.dim() == 4:
            laid_out[source] = torch.empty_like(val, memory_format=torch.channels_last)
    return laid_out


def _is_stand_in(decision: Decision) -> bool:
    return decision.action in (Action.PACK, Action.SKETCH)


def _num_reads(name: str) -> int:
    if name.endswith(_HALFWAY):
        return _READS_HALFWAY
    return _READS_OF_STAND_IN if name.endswith(_STAND_IN) else 1


def _halfway_nbytes(node: fx.Node, decision: Decision) -> int:
    """Bytes that decoding a stand-in stores on its way; 0 where it is decoded in one step."""
    val = tensor_val(node)
    if decision.codec is None or decision.action is not Action.SKETCH or val is None:
        return 0
    if tensor_nbytes(val) is None:
        return 0
    return decision.codec.decoding_nbytes(hinted_shape(val), val.dtype)


@dataclass
class _Launches:
    """The kernels of a graph as they come. Mutable.

    Attributes:
        nbytes: of each value.
        kernels: so far.
        is_open: whether loops join the last of them.
        called: the results of calls that are run as they are.
    """

    nbytes: dict[str, int | None]
    kernels: list[Kernel] = field(default_factory=list)
    is_open: bool = False
    called: set[str] = field(default_factory=set)

    def run(self, call: _Call, reads: Sequence[str], *, again: bool = False) -> None:
        """Add a call that stores its results, those of a call that was run before once more."""
        names = [f"{result.name}{_AGAIN}" if again else result.name for result in call.results]
        if call.kind is not _Kind.EXTERN:
            self.loops(call.node, names, reads)
            return
        self._add(call.node, names, reads, workspace_nbytes=call.workspace_nbytes)
        self.called.update(names)
        self.is_open = False

    def loops(self, node: fx.Node, outputs: Sequence[str], reads: Sequence[str]) -> None:
        """Add generated loops; each of their results takes the memory of one that they read."""
        reused: list[str] = []
        if self.is_open:
            last = self.kernels.pop()
            outputs, reused = [*last.outputs, *outputs], [*last.reused]
            reads = [name for name in _union([last.reads, reads]) if name not in outputs]
        free = [name for name in reads if name in self.called and name not in reused]
        for output in outputs[len(reused) :]:
            alike = (name for name in free if self.nbytes[name] == self.nbytes[output])
            if (name := next(alike, None)) is not None:
                free.remove(name)
                reused.append(name)
        self._add(node, outputs, reads, reused=reused)
        val = tensor_val(node)
        self.is_open = val is not None and val.device.type == "cpu"

    def close(self) -> None:
        """Have no loops join the last kernel."""
        self.is_open = False

    def _add(
        self,
        node: fx.Node,
        outputs: Sequence[str],
        reads: Sequence[str],
        *,
        workspace_nbytes: int = 0,
        reused: Sequence[str] = (),
    ) -> None:
        kernel = Kernel(
            node.name,
            module_of(node),
            tuple(outputs),
            tuple(reads),
            workspace_nbytes,
            tuple(reused),
        )
        self.kernels.append(kernel)


def _union(parts: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))
