"""Which calls of a graph Inductor turns into buffers, and which it inlines into their readers.

Comes in: a forward or backward graph as Inductor gets it. Goes out: :class:`Unit`, one a call
that computes a buffer. A model of ``GraphLowering.run_node`` (``torch/_inductor/graph.py``,
2.13): a pointwise call is an expression that its readers repeat, until a reader or a threshold
makes it a buffer. No code is lowered; calls are counted as they stand in the graph.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from passes.joint import argument_nodes, layout_hint, tensor_nbytes, tensor_val
from passes.kernels import is_alias
from passes.op_traits import CHEAP_OPS
from passes.workspace import ints

# Inductor's thresholds on the CPU (torch/_inductor/config.py, 2.13): reads of a value that has
# several readers, reads of any value, calls of one with several readers, calls of any.
_MAX_SHARED_READS = 4
_MAX_READS = 12
_MAX_SHARED_CALLS = 50
_MAX_CALLS = 100

_POINTWISE = CHEAP_OPS - {"aten.cat", "aten._unsafe_view", "prims.broadcast_in_dim"}
_REDUCTIONS = frozenset(
    {
        "aten.sum",
        "aten.mean",
        "aten.amin",
        "aten.amax",
        "aten.var",
        "aten.var_mean",
        "aten.prod",
        "aten.any",
        "aten.all",
        "aten.argmax",
        "aten.argmin",
    }
)
# Dropped where they change nothing.
_COPIES = frozenset({"aten.clone", "aten._to_copy", "prims.convert_element_type", "aten.alias"})
# Read a window of their input for each element, so that it has to be a buffer if it costs more
# than one read.
_GATHERS = frozenset(
    {"aten.avg_pool2d", "aten.avg_pool3d", "aten.avg_pool2d_backward", "aten.avg_pool3d_backward"}
)
# The same, computed in loops of their own.
_WINDOWS = frozenset({"prims._low_memory_max_pool_with_offsets"})
# Loops over another argument than the one that is written: joins no kernel, forces no buffer.
_SCATTERS = frozenset({"aten.scatter_add", "aten.scatter", "aten.index_put", "aten.scatter_reduce"})
# Inductor keeps what is made of these where it has several readers on the CPU.
_HEAVY = frozenset({"aten.exp", "aten.log", "aten.log1p", "aten.log2", "aten.sigmoid", "aten.tanh"})
# Views whose reads do not walk through memory as the viewed value is read.
_PARTIAL = frozenset({"aten.slice", "aten.select", "aten.as_strided", "aten.diagonal"})


@dataclass(frozen=True)
class Unit:
    """A call that computes buffers.

    Attributes:
        node: the call.
        kind: see :func:`kind_of`; never ``view``.
        outputs: the buffers.
        reads: the buffers it reads, through everything inlined.
        num_elements: elements its loops run over; 0 where it has none or they are unknown.
    """

    node: fx.Node
    kind: str
    outputs: tuple[fx.Node, ...]
    reads: tuple[fx.Node, ...]
    num_elements: int


@dataclass(frozen=True)
class _Expression:
    """What a reader of a value repeats: reads (buffer, and view of it), calls and constants."""

    reads: frozenset[tuple[fx.Node, object]] = frozenset()
    calls: frozenset[object] = frozenset()
    is_heavy: bool = False

    @property
    def buffer(self) -> fx.Node | None:
        """The buffer that this is nothing but a view of."""
        single = len(self.reads) == 1 and not self.calls
        return next(iter(self.reads))[0] if single else None


def find_units(graph: fx.Graph) -> tuple[list[Unit], dict[fx.Node, fx.Node]]:
    """Find the buffers.

    Args:
        graph: a forward or backward.

    Returns:
        The units in graph order, and for each node that is a buffer or a view of one that buffer.
    """
    expressions: dict[fx.Node, _Expression] = {}
    units: list[Unit] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr") or node.target is operator.getitem:
            expressions[node] = _read(node)
            continue
        if node.op != "call_function" or not _is_tensor_call(node):
            expressions[node] = _Expression()
            continue
        kind = kind_of(node)
        expression = _combine(node, kind, expressions)
        is_view_of_buffer = kind == "view" and expression.buffer is not None
        if kind in ("view", "pointwise"):
            if is_view_of_buffer or not _is_realised(node, expression):
                expressions[node] = expression
                continue
            kind = "pointwise"
        units.append(_unit(node, kind, expression))
        expressions[node] = _read(node)
    buffers = {n: e.buffer for n, e in expressions.items() if e.buffer is not None}
    return units, buffers


def kind_of(node: fx.Node) -> str:
    """``view``, ``pointwise``, ``reduction``, ``window``, ``scatter``, ``concat`` or ``extern``."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return "extern"
    name = str(target.overloadpacket)
    if is_alias(node):
        return "extern" if target._schema.is_mutable else "view"
    if name in _COPIES and _is_same(node):
        return "view"
    if name == "aten.cat":
        return "concat"
    if name in _REDUCTIONS:
        return "reduction"
    if name in _WINDOWS:
        return "window"
    if name in _SCATTERS:
        return "scatter"
    is_random = torch.Tag.nondeterministic_seeded in target.tags
    pointwise = torch.Tag.pointwise in target.tags or name in _POINTWISE or name in _GATHERS
    return "pointwise" if pointwise and not is_random else "extern"


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target))


def _window_reads(node: fx.Node) -> int:
    """Elements that a pooling reads for each that it computes."""
    is_backward = _name(node).endswith("backward")
    sides = ints(node.args[2 if is_backward else 1])
    if not is_backward:
        return math.prod(sides)
    steps = ints(node.args[3] if len(node.args) > 3 else ()) or sides
    return math.prod(-(-side // step) for side, step in zip(sides, steps, strict=True))


def _is_same(node: fx.Node) -> bool:
    """Whether a copy changes nothing, so that Inductor drops it (``remove_noop_ops``, 2.13)."""
    source = node.args[0]
    val, other = tensor_val(node), tensor_val(source) if isinstance(source, fx.Node) else None
    if val is None or other is None:
        return False
    described = [(layout_hint(t), t.dtype, t.device) for t in (val, other)]
    return described[0] == described[1]


def _is_tensor_call(node: fx.Node) -> bool:
    return tensor_val(node) is not None or isinstance(node.meta.get("val"), (tuple, list))


def _read(node: fx.Node) -> _Expression:
    return _Expression(frozenset({(node, None)}))


def _combine(node: fx.Node, kind: str, expressions: dict[fx.Node, _Expression]) -> _Expression:
    """The expression of a call over the expressions of its arguments."""
    parts = [expressions[n] for n in node.all_input_nodes]
    name = _name(node)
    reads = [read for part in parts for read in part.reads]
    if kind == "view" and name in _PARTIAL:
        reads = [(buffer, node) for buffer, _ in reads]
    if name in _GATHERS:
        reads = [(buffer, (node, i)) for buffer, _ in reads for i in range(_window_reads(node))]
    calls: set[object] = set().union(*(part.calls for part in parts))
    if kind != "view":
        calls.add(node)
        calls.update(arg for arg in node.args if isinstance(arg, (int, float)))
    is_heavy = name in _HEAVY or any(part.is_heavy for part in parts)
    return _Expression(frozenset(reads), frozenset(calls), is_heavy)


def _is_realised(node: fx.Node, expression: _Expression) -> bool:
    """Whether Inductor makes a buffer of an expression."""
    num_reads, num_calls = len(expression.reads), len(expression.calls) + len(expression.reads)
    for user in node.users:
        if user.op == "output":
            return True
        kind = kind_of(user)
        gathers = kind == "window" or _name(user) in _GATHERS
        if kind == "extern" or (gathers and num_reads > 1):
            return True
    if num_reads > _MAX_READS or num_calls > _MAX_CALLS:
        return True
    if len(node.users) < 2 and not _is_expanded(node):
        return False
    if expression.is_heavy or num_calls > _MAX_SHARED_CALLS:
        return True
    return len(node.users) > 1 and num_reads > _MAX_SHARED_READS


def _is_expanded(node: fx.Node) -> bool:
    return any(str(user.target) == "aten.expand.default" for user in node.users)


def _unit(node: fx.Node, kind: str, expression: _Expression) -> Unit:
    vals = [tensor_val(n) for n in (node, *argument_nodes(node.args[:1]))]
    sized = vals[1] if kind == "reduction" else vals[0]
    taken = tuple(u for u in node.users if u.target is operator.getitem)
    outputs = (node,) if vals[0] is not None else taken
    if sized is None and outputs:
        sized = tensor_val(outputs[0])
    if kind == "extern" and is_alias(node):
        outputs = ()
    reads = dict.fromkeys(buffer for buffer, _ in expression.reads)
    return Unit(node, kind, outputs, _in_order(reads), _num_elements(sized))


def _in_order(values: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    return tuple(sorted(values))


def _num_elements(val: torch.Tensor | None) -> int:
    nbytes = None if val is None else tensor_nbytes(val)
    return 0 if val is None or nbytes is None else nbytes // val.dtype.itemsize
