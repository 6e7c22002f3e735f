"""Replace calls by the graphs of their decompositions, op by op, in place in the order.

The one mechanism behind *expose* (before planning) and *lower* (after partitioning), and
behind the insertion of a codec's encode and decode. Numbers are kept as far as the given
functions keep them: this file only traces and splices.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from passes import _torch
from passes.joint import copy_module

DecompositionTable = Mapping[Any, Callable[..., Any]]

# Provenance that a new node takes over from the node it stands for.
_PROVENANCE = (
    "stack_trace",
    "nn_module_stack",
    "fwd_nn_module_stack",
    "source_fn_stack",
    "fwd_source_fn_stack",
    "seq_nr",
    "custom",
    "partitioner_tag",
    "autograd_backward",
)


def decompose(
    module: fx.GraphModule,
    table: DecompositionTable,
    inner_table: DecompositionTable,
    *,
    traces: Traces | None = None,
) -> fx.GraphModule:
    """Return a copy of ``module`` in which each call of an op in ``table`` is taken apart.

    Args:
        module: a graph with fake tensors in ``meta["val"]``; it is left untouched.
        table: op overload to a function with the op's signature, in traceable torch ops.
            A function may return NotImplemented to leave that call as it is.
        inner_table: decompositions for the ops that those functions are made of: what the
            inner compiler expects to be taken apart.
        traces: those of earlier calls on graphs of the same fake mode, to be used again.

    Returns:
        The new graph module, linted. Nodes inherit the provenance of the call they replace.
    """
    result = copy_module(module)
    take_apart(result, table, Inserter(inner_table, traces or Traces()))
    return result


def take_apart(module: fx.GraphModule, table: DecompositionTable, inserter: Inserter) -> None:
    """Do what :func:`decompose` does in place, for a graph that nobody else holds."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in table:
            _replace_call(node, table[node.target], inserter)
    module.graph.lint()
    module.recompile()


@dataclass(frozen=True)
class Traces:
    """Traces made so far on the values of one fake mode, apart by table of decompositions."""

    _by_table: list[tuple[DecompositionTable, dict[Any, _Trace | None]]] = field(
        default_factory=list
    )

    def under(self, table: DecompositionTable) -> dict[Any, _Trace | None]:
        """Return the traces made under a table, to be added to."""
        for known, traces in self._by_table:
            if known is table or known == table:
                return traces
        self._by_table.append((table, {}))
        return self._by_table[-1][1]


@dataclass(frozen=True)
class Inserter:
    """Traces functions on fake values and splices their graphs in.

    A network has many sites of one shape, so traces are remembered by function and by the
    shapes, strides, dtypes and constants they were made for; with symbolic sizes they are not.

    Attributes:
        inner_table: decompositions to apply while tracing.
        traces: where traces are looked for, and put.
    """

    inner_table: DecompositionTable = field(default_factory=dict)
    traces: Traces = field(default_factory=Traces)

    def insert(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        before: fx.Node,
        *,
        provenance: fx.Node,
    ) -> Any:
        """Trace ``function`` on the values of ``args`` and splice its graph in before a node.

        Args:
            function: hashable, and traceable in terms of torch ops; takes tensors or ints in
                place of the nodes in args.
            args: positional arguments; fx nodes stand for their ``meta["val"]``.
            before: the node in front of which the traced calls are inserted.
            provenance: the node whose source location the new nodes carry.

        Returns:
            The function's result with fx nodes in place of tensors; NotImplemented passes
            through.
        """
        leaves, spec = pytree.tree_flatten(list(args))
        key = _signature(function, leaves, spec)
        nodes = _nodes_among(leaves)
        if key is None:
            # A symbolic size is read off the first value that has it: let that be a forward value,
            # and not a gradient of the same size.
            nodes.sort()
        known = self.traces.under(self.inner_table)
        if key is not None and key in known:
            trace = known[key]
        else:
            mode = _torch.fake_mode_of(before.graph)
            trace = _trace(function, leaves, nodes, spec, mode, dict(self.inner_table))
            if key is not None:
                known[key] = trace
        return NotImplemented if trace is None else _splice(trace, nodes, before, provenance)

    def call(
        self,
        op: torch._ops.OpOverload,
        args: Sequence[Any],
        before: fx.Node,
        *,
        provenance: fx.Node,
        kwargs: Mapping[str, Any] | None = None,
    ) -> fx.Node:
        """Insert one call, without a trace unless the inner compiler wants the op taken apart.

        Args:
            op: yields one tensor.
            args: positional arguments, nodes among them.
            before: the node in front of which the call is inserted.
            provenance: the node whose source location the call carries.
            kwargs: keyword arguments, no nodes.
        """
        given = dict(kwargs or {})
        if op in self.inner_table:
            flat = _Call(op, len(args), tuple(given))
            made: fx.Node = self.insert(
                flat, [*args, *given.values()], before, provenance=provenance
            )
            return made
        with before.graph.inserting_before(before):
            name = op.overloadpacket.__name__
            node = before.graph.create_node("call_function", op, tuple(args), given, name)
        with _torch.tracing_over(_torch.fake_mode_of(before.graph)):
            node.meta["val"] = op(*map_arg(tuple(args), lambda n: n.meta["val"]), **given)
        set_provenance(node, provenance)
        return node


@dataclass(frozen=True)
class _Trace:
    module: fx.GraphModule
    out_spec: pytree.TreeSpec


def _trace(
    function: Callable[..., Any],
    leaves: list[Any],
    nodes: list[fx.Node],
    spec: pytree.TreeSpec,
    mode: FakeTensorMode,
    table: dict[Any, Callable[..., Any]],
) -> _Trace | None:
    out_spec: list[pytree.TreeSpec] = []

    def flat_function(*values: Any) -> list[Any]:
        by_node = dict(zip(nodes, values, strict=True))
        filled = [by_node[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        result = function(*pytree.tree_unflatten(filled, spec))
        if result is NotImplemented:
            return []
        flat, result_spec = pytree.tree_flatten(result)
        out_spec.append(result_spec)
        return flat

    with _torch.tracing_over(mode):
        values = _distinct([node.meta["val"] for node in nodes])
        module = make_fx(flat_function, decomposition_table=table)(*values)
    module.graph.eliminate_dead_code()
    return _Trace(module, out_spec[-1]) if out_spec else None


def _distinct(values: list[Any]) -> list[Any]:
    """Replace repeated tensors by aliases: a tracer tells its inputs apart by identity.

    Nodes that were spliced in from one trace hold one fake tensor.
    """
    seen: set[int] = set()
    found = []
    for value in values:
        repeated = isinstance(value, torch.Tensor) and id(value) in seen
        found.append(value.detach() if repeated else value)
        seen.add(id(value))
    return found


def _nodes_among(leaves: list[Any]) -> list[fx.Node]:
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node)))


def _splice(trace: _Trace, nodes: list[fx.Node], before: fx.Node, provenance: fx.Node) -> Any:
    graph = before.graph
    mapping: dict[fx.Node, Any] = dict(
        zip(trace.module.graph.find_nodes(op="placeholder"), nodes, strict=True)
    )
    results: list[Any] = []
    with graph.inserting_before(before):
        for inner in trace.module.graph.nodes:
            if inner.op == "output":
                results = [map_arg(leaf, lambda n: mapping[n]) for leaf in inner.args[0]]
            elif inner.op == "get_attr":
                mapping[inner] = _copy_constant(trace.module, inner, graph)
            elif inner.op == "call_function":
                mapping[inner] = graph.node_copy(inner, lambda n: mapping[n])
                set_provenance(mapping[inner], provenance)
    return pytree.tree_unflatten(results, trace.out_spec)


def _signature(function: Callable[..., Any], leaves: list[Any], spec: pytree.TreeSpec) -> Any:
    """Return a key under which a trace can be used again, or None if there is none."""
    described: list[Any] = []
    for leaf in leaves:
        val = leaf.meta["val"] if isinstance(leaf, fx.Node) else None
        if isinstance(val, torch.Tensor):
            geometry = (*val.shape, *val.stride())
            if not all(isinstance(number, int) for number in geometry):
                return None
            described.append((tuple(val.shape), val.stride(), val.dtype, val.device))
        elif isinstance(leaf, (fx.Node, torch.SymInt)):
            return None
        else:
            described.append((type(leaf), repr(leaf) if isinstance(leaf, float) else leaf))
    place = {node: i for i, node in enumerate(_nodes_among(leaves))}
    places = tuple(place[leaf] for leaf in leaves if isinstance(leaf, fx.Node))
    # Methods of equal objects (a codec a site) are equal only if the objects are the same one.
    called: Any = function
    if isinstance(function, types.MethodType):
        called = (function.__func__, function.__self__)
    return called, tuple(described), places, str(spec)


@dataclass(frozen=True)
class _Call:
    """A function with its keyword arguments made positional, hashable by what it does."""

    function: Callable[..., Any]
    num_args: int
    names: tuple[str, ...]

    def __call__(self, *flat: Any) -> Any:
        kwargs = dict(zip(self.names, flat[self.num_args :], strict=True))
        return self.function(*flat[: self.num_args], **kwargs)


def _replace_call(node: fx.Node, function: Callable[..., Any], inserter: Inserter) -> None:
    call = _Call(function, len(node.args), tuple(node.kwargs))
    args = [*node.args, *node.kwargs.values()]
    result = inserter.insert(call, args, node, provenance=node)
    if result is NotImplemented:
        return
    if isinstance(result, (tuple, list)):
        for user in list(node.users):
            assert user.target is operator.getitem, f"{node} yields a tuple, {user} reads it whole"
            index = user.args[1]
            assert isinstance(index, int), f"{user} takes item {index}"
            user.replace_all_uses_with(result[index])
            node.graph.erase_node(user)
    else:
        node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _copy_constant(traced: fx.GraphModule, inner: fx.Node, graph: fx.Graph) -> fx.Node:
    owner = graph.owning_module
    assert owner is not None
    base, number = f"_spliced_{inner.target}", 0
    while hasattr(owner, f"{base}_{number}"):
        number += 1
    value = getattr(traced, str(inner.target))
    assert isinstance(value, torch.Tensor), f"{inner} holds {type(value)}, expected a tensor"
    owner.register_buffer(f"{base}_{number}", value)
    constant = graph.get_attr(f"{base}_{number}")
    constant.meta["val"] = inner.meta.get("val", value)
    return constant


def set_provenance(node: fx.Node, source: fx.Node) -> None:
    """Give a node the source location and the modules of another, in place."""
    for name in _PROVENANCE:
        node.meta.pop(name, None)
        if name in source.meta:
            node.meta[name] = source.meta[name]
