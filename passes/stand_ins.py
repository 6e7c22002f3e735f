"""Stand-ins: what the backward reads for a forward value, decoded, derived or recomputed.

Comes in: a joint graph whose encodes are inserted, and the decisions. A backward node then reads
kept parts through calls tagged MUST_RECOMPUTE, inserted in front of it, so that what is decoded
lives as briefly as the order of the graph allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from passes import _torch
from passes.decompose import Inserter
from passes.derive import Derivation
from passes.joint import (
    JointGraph,
    memory_order,
    output_node,
    place_after,
    tensor_nbytes,
    tensor_val,
)
from passes.plan import Action, Decision
from passes.rules import Wait

aten = torch.ops.aten

_ESTIMATED = (Action.SKETCH, Action.DERIVE)


@dataclass(frozen=True)
class StandIns:
    """What stand-ins are made from, and those made so far.

    Attributes:
        by_name: the nodes of the graph.
        decisions: how the backward gets each forward value that it needs.
        parts: what is kept of encoded values.
        seeds: the seed, or its row, of each sketched value.
        inserter: inserts what decodes and rebuilds.
        channels_last: see :class:`passes.rules.Rules`.
        wait: see :class:`passes.rules.Wait`.
        made: the stand-in of each value that has one.
    """

    by_name: Mapping[str, fx.Node]
    decisions: Mapping[fx.Node, Decision]
    parts: Mapping[fx.Node, tuple[fx.Node, ...]]
    seeds: Mapping[fx.Node, fx.Node]
    inserter: Inserter
    channels_last: bool
    wait: Wait | None
    made: dict[fx.Node, fx.Node] = field(default_factory=dict)


def read_stand_ins(reader: fx.Node, backward: dict[fx.Node, None], stand_ins: StandIns) -> None:
    """Make a backward node read kept, decoded or recomputed values."""
    for value in reader.all_input_nodes:
        if value not in backward:
            stand_in = _stand_in(value, reader, stand_ins)
            if stand_in is not value:
                reader.replace_input_with(value, stand_in)


def read_stand_ins_in_output(
    joint: JointGraph, backward: dict[fx.Node, None], stand_ins: StandIns
) -> None:
    """Do the same for gradients that are forward values; forward outputs stay as they are."""
    output = output_node(joint.graph)
    structure = output.args[0]
    assert isinstance(structure, (list, tuple)), "a joint graph returns a flat list"
    outputs = list(structure)
    for i in range(joint.num_fwd_outputs, len(outputs)):
        value = outputs[i]
        if isinstance(value, fx.Node) and value not in backward:
            outputs[i] = _stand_in(value, output, stand_ins)
    output.args = (type(structure)(outputs),)


def _stand_in(value: fx.Node, reader: fx.Node, stand_ins: StandIns) -> fx.Node:
    """Return what the backward reads for ``value``, inserting it before ``reader``.

    What only led to it, decoded or derived, is made anew for the next value: shared, it would stay
    alive from the weight gradient that reads this one to the norm further on.
    """
    missing = _missing_stand_ins(value, stand_ins)
    for needed in missing:
        decision = stand_ins.decisions[needed]
        if decision.codec is not None:
            made = _insert_decode(needed, decision, reader, stand_ins)
        elif decision.derivation is not None:
            made = _insert_derived(needed, decision.derivation, reader, stand_ins)
        else:
            made = _insert_clone(needed, reader, stand_ins)
        stand_ins.made[needed] = made
    stand_in = stand_ins.made.get(value, value)
    for led_to in missing:
        if led_to is not value and stand_ins.decisions[led_to].action in _ESTIMATED:
            del stand_ins.made[led_to]
    return stand_in


def _missing_stand_ins(value: fx.Node, stand_ins: StandIns) -> list[fx.Node]:
    """Values to decode or recompute before ``value`` can be read, each behind what it is made of.

    Not in graph order: a derived relu is made with its mask, which comes behind it there.
    """
    found: dict[fx.Node, None] = {}
    stack = [(value, False)]
    while stack:
        node, is_ready = stack.pop()
        decision = stand_ins.decisions.get(node)
        if decision is None or decision.action is Action.KEEP or node in stand_ins.made:
            continue
        if is_ready:
            found[node] = None
        elif node not in found:
            stack.append((node, True))
            stack.extend((made_of, False) for made_of in _made_of(node, decision, stand_ins))
    return list(found)


def _made_of(node: fx.Node, decision: Decision, stand_ins: StandIns) -> list[fx.Node]:
    if decision.action is Action.RECOMPUTE:
        return node.all_input_nodes
    return [] if decision.derivation is None else _inputs_of(decision.derivation, stand_ins)


def _insert_decode(
    value: fx.Node, decision: Decision, reader: fx.Node, stand_ins: StandIns
) -> fx.Node:
    assert decision.codec is not None
    val = value.meta["val"]
    sizes = [_size_argument(value, dim) for dim in range(val.dim())]
    order = memory_order(val, stand_ins.channels_last)
    parts, seed = stand_ins.parts[value], stand_ins.seeds.get(value)
    if decision.action is Action.SKETCH and stand_ins.wait is not None:
        parts, seed = _wait_for_reader(parts, seed, value, reader, stand_ins.wait, stand_ins)
    arguments = [parts, seed, sizes, val.dtype, order]
    return _insert_recomputed(decision.codec.decode, arguments, value, reader, stand_ins)


def _wait_for_reader(
    parts: tuple[fx.Node, ...],
    seed: fx.Node | None,
    value: fx.Node,
    reader: fx.Node,
    wait: Wait,
    stand_ins: StandIns,
) -> tuple[tuple[fx.Node, ...], fx.Node | None]:
    """Hand the smallest of what is decoded, or the seed beside a lone part, through a wait."""
    other = reader.args[wait.arguments[reader.target]] if reader.target in wait.arguments else None
    if not isinstance(other, fx.Node):
        return parts, seed
    if len(parts) == 1:
        if seed is None:
            return parts, seed
        return parts, _call_recomputed(wait.call, [seed, other], value, reader, stand_ins)
    nbytes = [tensor_nbytes(part.meta["val"]) for part in parts]
    sizes = [math.inf if size is None else size for size in nbytes]
    small = sizes.index(min(sizes))
    waited = _call_recomputed(wait.call, [parts[small], other], value, reader, stand_ins)
    return (*parts[:small], waited, *parts[small + 1 :]), seed


def _insert_derived(
    value: fx.Node, derivation: Derivation, reader: fx.Node, stand_ins: StandIns
) -> fx.Node:
    """Derive a value, laid out as a decoded one is; its reader would copy it else.

    Of a concatenation the parts are, since the whole is written part by part.
    """
    if derivation.rebuild is not None:
        inputs = [stand_ins.made.get(n, n) for n in _inputs_of(derivation, stand_ins)]
        made = _insert_recomputed(derivation.rebuild, inputs, value, reader, stand_ins)
        return _laid_out(made, value, reader, stand_ins)
    made = _insert_clone(value, reader, stand_ins)
    if value.target is not aten.cat.default:
        return _laid_out(made, value, reader, stand_ins)
    for part in made.all_input_nodes:
        made.replace_input_with(part, _laid_out(part, value, made, stand_ins))
    parts = fx.map_arg(made.args[0], lambda part: part.meta["val"])
    with value.meta["val"].fake_mode:
        made.meta["val"] = aten.cat.default(parts, *made.args[1:])
    return made


def _laid_out(made: fx.Node, value: fx.Node, reader: fx.Node, stand_ins: StandIns) -> fx.Node:
    if not stand_ins.channels_last or value.meta["val"].dim() != 4:
        return made
    layout = {"memory_format": torch.channels_last}
    return _call_recomputed(aten.clone.default, [made], value, reader, stand_ins, layout)


def _inputs_of(derivation: Derivation, stand_ins: StandIns) -> list[fx.Node]:
    return [stand_ins.by_name[name] for name in (*derivation.exact, *derivation.linear)]


def _insert_recomputed(
    function: Callable[..., torch.Tensor],
    arguments: list[Any],
    value: fx.Node,
    reader: fx.Node,
    stand_ins: StandIns,
) -> fx.Node:
    """Insert a function's calls in front of a backward node, none of them to be kept."""
    last = reader.prev
    made = stand_ins.inserter.insert(function, arguments, reader, provenance=value)
    _tag_recomputed(last, reader)
    assert isinstance(made, fx.Node), f"the stand-in for {value} is no tensor"
    return made


def _call_recomputed(
    op: torch._ops.OpOverload,
    arguments: list[Any],
    value: fx.Node,
    reader: fx.Node,
    stand_ins: StandIns,
    kwargs: Mapping[str, Any] | None = None,
) -> fx.Node:
    """Insert one call in front of a backward node, not to be kept."""
    last = reader.prev
    made = stand_ins.inserter.call(op, arguments, reader, provenance=value, kwargs=kwargs)
    _tag_recomputed(last, reader)
    return made


def _tag_recomputed(before: fx.Node, reader: fx.Node) -> None:
    """Tag what has been inserted between two nodes."""
    node = before.next
    while node is not reader:
        node.meta["recompute"] = _torch.MUST_RECOMPUTE
        node = node.next


def _size_argument(value: fx.Node, dim: int) -> int | fx.Node:
    size = value.meta["val"].shape[dim]
    if isinstance(size, int):
        return size
    with value.graph.inserting_before(place_after(value)):
        node = value.graph.call_function(aten.sym_size.int, (value, dim))
    node.meta["val"] = size
    return node


def _insert_clone(value: fx.Node, reader: fx.Node, stand_ins: StandIns) -> fx.Node:
    with value.graph.inserting_before(reader):
        clone = value.graph.node_copy(value, lambda n: stand_ins.made.get(n, n))
    if tensor_val(value) is not None or isinstance(value.meta.get("val"), (tuple, list)):
        clone.meta["recompute"] = _torch.MUST_RECOMPUTE
    return clone
