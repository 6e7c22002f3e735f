"""*sketch*: carry a plan out on the joint graph.

This is the one pass that changes numbers: sketched values reach the backward as unbiased
estimates (equal in expectation). Packed masks and recomputed values stay exact.

What the backward reads is made explicit: every forward value it needs is kept (tagged
MUST_SAVE), decoded from kept parts, or recomputed by a clone (tagged MUST_RECOMPUTE), so that
the partition that follows has nothing left to decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from passes import _torch
from passes.decompose import DecompositionTable, Inserter, Traces, set_provenance
from passes.derive import Derivation
from passes.joint import JointGraph, is_tangent, output_node, tensor_nbytes, tensor_val
from passes.op_traits import recompute_ban
from passes.plan import Action, Decision, Plan
from passes.rules import Wait

aten = torch.ops.aten

_ESTIMATED = (Action.SKETCH, Action.DERIVE)

# Seeds are drawn from [0, 2**62): the codecs' hash takes 62 bits.
_SEED_RANGE = 2**62


def apply_plan(
    joint: JointGraph,
    plan: Plan,
    *,
    expand_seeds: Callable[[torch.Tensor], torch.Tensor] | None = None,
    seed_offset: int = 0,
    channels_last: bool = False,
    wait: Wait | None = None,
    primitives: DecompositionTable | None = None,
    traces: Traces | None = None,
) -> JointGraph:
    """Return a copy of the joint graph in which the plan's decisions are carried out.

    One ``aten.randint`` a device draws a seed for each sketched value, at the start of the
    forward, from torch's generator. What the backward reads of them is kept.

    Args:
        joint: the exposed joint graph that the plan was made for; left untouched.
        plan: the decisions.
        expand_seeds: see :class:`passes.rules.Rules`.
        seed_offset: added to every seed (modulo 2**62), so that ranks seeded alike still
            draw different probes.
        channels_last: see :class:`passes.rules.Rules`.
        wait: see :class:`passes.rules.Wait`.
        primitives: decompositions of what codecs and derivations are made of, see
            :class:`passes.rules.Rules`. The draw of the seeds is none of it: it stays one call.
        traces: see :func:`passes.decompose.decompose`.

    Returns:
        The new joint graph. Its kept values carry ``meta["recompute"] = MUST_SAVE``.
    """
    result = joint.copy()
    for node in result.graph.nodes:
        node.meta.pop("recompute", None)
    backward = result.backward_nodes()
    by_name = {node.name: node for node in result.graph.nodes}
    decisions = {by_name[d.node]: d for d in plan.decisions}
    draw = _SeedDraw(expand_seeds, seed_offset % _SEED_RANGE)
    traces = traces or Traces()
    seeds = _insert_seeds(result, decisions, draw, Inserter(traces=traces))
    inserter = Inserter(primitives or {}, traces)
    rewriter = _Rewriter(
        by_name=by_name,
        decisions=decisions,
        parts=_insert_encodes(decisions, seeds, backward, inserter, channels_last),
        seeds=seeds,
        inserter=inserter,
        channels_last=channels_last,
        wait=wait,
    )
    for node in list(backward):
        if not is_tangent(node):
            _read_stand_ins(node, backward, rewriter)
    _read_stand_ins_in_output(result, backward, rewriter)
    result.graph.eliminate_dead_code()
    result.graph.lint()
    result.module.recompile()
    return result


def draw_seed(
    device: torch.device, expand: Callable[[torch.Tensor], torch.Tensor] | None
) -> torch.Tensor:
    """Draw the seed of one sketch from torch's generator, as a compiled forward does.

    Args:
        device: of the sketched value.
        expand: see :class:`passes.rules.Rules`.
    """
    seeds = torch.randint(0, _SEED_RANGE, [1], dtype=torch.int64, device=device)
    return seeds[0] if expand is None else expand(seeds)[0]


@dataclass(frozen=True)
class _SeedDraw:
    """Draws the seeds of a graph; returns them, and the row of each site."""

    expand: Callable[[torch.Tensor], torch.Tensor] | None
    offset: int

    def __call__(
        self, like: torch.Tensor, count: int, device: torch.device
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        del like  # only brings the fake mode in
        seeds = aten.randint.low(0, _SEED_RANGE, [count], dtype=torch.int64, device=device)
        if self.offset:
            seeds = (seeds + self.offset) & (_SEED_RANGE - 1)
        drawn = seeds if self.expand is None else self.expand(seeds)
        return drawn, [torch.select(drawn, 0, i) for i in range(count)]


@dataclass(frozen=True)
class _Rewriter:
    by_name: Mapping[str, fx.Node]
    decisions: Mapping[fx.Node, Decision]
    parts: Mapping[fx.Node, tuple[fx.Node, ...]]
    seeds: Mapping[fx.Node, fx.Node]
    inserter: Inserter
    channels_last: bool
    wait: Wait | None
    stand_ins: dict[fx.Node, fx.Node] = field(default_factory=dict)


def memory_order(val: torch.Tensor, channels_last: bool = False) -> tuple[int, ...]:
    """Return the dims of ``val`` from outermost to innermost in memory.

    Any order is correct; one that is not the memory's is slower. Ties and unknown strides keep
    the logical order. With ``channels_last`` a 4-D value is taken to be laid out so.
    """
    if channels_last and val.dim() == 4:
        return (0, 2, 3, 1)
    strides = [_torch.size_hint(s) for s in val.stride()]
    if any(s is None for s in strides):
        return tuple(range(val.dim()))
    return tuple(sorted(range(val.dim()), key=lambda d: -(strides[d] or 0)))


def _insert_seeds(
    joint: JointGraph, decisions: Mapping[fx.Node, Decision], draw: _SeedDraw, inserter: Inserter
) -> dict[fx.Node, fx.Node]:
    """Draw the seeds of all sites; return the seed (or its row) of each sketched value."""
    by_device: dict[torch.device, list[fx.Node]] = {}
    for node, decision in decisions.items():
        val = tensor_val(node)
        if decision.codec is not None and val is not None:
            sites = by_device.setdefault(val.device, [])
            if decision.codec.needs_seed:
                sites.append(node)
    first = next(n for n in joint.graph.nodes if n.op != "placeholder")
    seeds: dict[fx.Node, fx.Node] = {}
    for device, sites in by_device.items():
        if not sites:
            continue
        arguments = [sites[0], len(sites), device]
        drawn, rows = inserter.insert(draw, arguments, first, provenance=sites[0])
        _tag_kept(drawn)
        for site, row in zip(sites, rows, strict=True):
            set_provenance(row, site)
            # One value is to be kept, the seeds; a cut through a lone select weighs as much.
            row.meta["recompute"] = _torch.MUST_RECOMPUTE
            seeds[site] = row
    return seeds


def _insert_encodes(
    decisions: Mapping[fx.Node, Decision],
    seeds: Mapping[fx.Node, fx.Node],
    backward: Mapping[fx.Node, None],
    inserter: Inserter,
    channels_last: bool,
) -> dict[fx.Node, tuple[fx.Node, ...]]:
    parts: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node, decision in decisions.items():
        if decision.action is Action.KEEP and node.op != "placeholder":
            _tag_kept(node)
        if decision.codec is None:
            continue
        val = node.meta["val"]
        encoded = inserter.insert(
            decision.codec.encode,
            [node, seeds.get(node), memory_order(val, channels_last)],
            _after(_settled(node, backward), seeds.get(node)),
            provenance=node,
        )
        parts[node] = tuple(encoded)
        for part in encoded:
            _tag_kept(part)
    return parts


def _read_stand_ins(reader: fx.Node, backward: dict[fx.Node, None], rewriter: _Rewriter) -> None:
    """Make a backward node read kept, decoded or recomputed values."""
    for value in reader.all_input_nodes:
        if value not in backward:
            stand_in = _stand_in(value, reader, rewriter)
            if stand_in is not value:
                reader.replace_input_with(value, stand_in)


def _read_stand_ins_in_output(
    joint: JointGraph, backward: dict[fx.Node, None], rewriter: _Rewriter
) -> None:
    """Do the same for gradients that are forward values; forward outputs stay as they are."""
    output = output_node(joint.graph)
    structure = output.args[0]
    assert isinstance(structure, (list, tuple)), "a joint graph returns a flat list"
    outputs = list(structure)
    for i in range(joint.num_fwd_outputs, len(outputs)):
        value = outputs[i]
        if isinstance(value, fx.Node) and value not in backward:
            outputs[i] = _stand_in(value, output, rewriter)
    output.args = (type(structure)(outputs),)


def _stand_in(value: fx.Node, reader: fx.Node, rewriter: _Rewriter) -> fx.Node:
    """Return what the backward reads for ``value``, inserting it before ``reader``.

    What only led to it, decoded or derived, is made anew for the next value: shared, it would stay
    alive from the weight gradient that reads this one to the norm further on.
    """
    missing = _missing_stand_ins(value, rewriter)
    for needed in missing:
        decision = rewriter.decisions[needed]
        if decision.codec is not None:
            made = _insert_decode(needed, decision, reader, rewriter)
        elif decision.derivation is not None and decision.derivation.rebuild is not None:
            made = _insert_rebuild(needed, decision.derivation, reader, rewriter)
        else:
            made = _insert_clone(needed, reader, rewriter)
        rewriter.stand_ins[needed] = made
    stand_in = rewriter.stand_ins.get(value, value)
    if value in missing and rewriter.decisions[value].action is Action.DERIVE:
        stand_in = _laid_out(stand_in, value, reader, rewriter)
        rewriter.stand_ins[value] = stand_in
    for led_to in missing:
        if led_to is not value and rewriter.decisions[led_to].action in _ESTIMATED:
            del rewriter.stand_ins[led_to]
    return stand_in


def _laid_out(made: fx.Node, value: fx.Node, reader: fx.Node, rewriter: _Rewriter) -> fx.Node:
    """Lay a derived value out as a decoded one is; its reader would copy it else."""
    if not rewriter.channels_last or value.meta["val"].dim() != 4:
        return made
    return _insert_recomputed(_channels_last, [made], value, reader, rewriter)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _missing_stand_ins(value: fx.Node, rewriter: _Rewriter) -> list[fx.Node]:
    """Values to decode or recompute before ``value`` can be read, each behind what it is made of.

    Not in graph order: a derived relu is made with its mask, which comes behind it there.
    """
    found: dict[fx.Node, None] = {}
    stack = [(value, False)]
    while stack:
        node, is_ready = stack.pop()
        decision = rewriter.decisions.get(node)
        if decision is None or decision.action is Action.KEEP or node in rewriter.stand_ins:
            continue
        if is_ready:
            found[node] = None
        elif node not in found:
            stack.append((node, True))
            stack.extend((made_of, False) for made_of in _made_of(node, decision, rewriter))
    return list(found)


def _made_of(node: fx.Node, decision: Decision, rewriter: _Rewriter) -> list[fx.Node]:
    if decision.action is Action.RECOMPUTE:
        return node.all_input_nodes
    return [] if decision.derivation is None else _inputs_of(decision.derivation, rewriter)


def _insert_decode(
    value: fx.Node, decision: Decision, reader: fx.Node, rewriter: _Rewriter
) -> fx.Node:
    assert decision.codec is not None
    val = value.meta["val"]
    sizes = [_size_argument(value, dim) for dim in range(val.dim())]
    order = memory_order(val, rewriter.channels_last)
    parts, seed = rewriter.parts[value], rewriter.seeds.get(value)
    if decision.action is Action.SKETCH and rewriter.wait is not None:
        parts, seed = _wait_for_reader(parts, seed, value, reader, rewriter.wait, rewriter)
    arguments = [parts, seed, sizes, val.dtype, order]
    return _insert_recomputed(decision.codec.decode, arguments, value, reader, rewriter)


def _wait_for_reader(
    parts: tuple[fx.Node, ...],
    seed: fx.Node | None,
    value: fx.Node,
    reader: fx.Node,
    wait: Wait,
    rewriter: _Rewriter,
) -> tuple[tuple[fx.Node, ...], fx.Node | None]:
    """Hand the smallest of what is decoded, or the seed beside a lone part, through a wait."""
    other = reader.args[wait.arguments[reader.target]] if reader.target in wait.arguments else None
    if not isinstance(other, fx.Node):
        return parts, seed
    if len(parts) == 1:
        if seed is None:
            return parts, seed
        return parts, _insert_recomputed(wait.call, [seed, other], value, reader, rewriter)
    nbytes = [tensor_nbytes(part.meta["val"]) for part in parts]
    sizes = [math.inf if size is None else size for size in nbytes]
    small = sizes.index(min(sizes))
    waited = _insert_recomputed(wait.call, [parts[small], other], value, reader, rewriter)
    return (*parts[:small], waited, *parts[small + 1 :]), seed


def _insert_rebuild(
    value: fx.Node, derivation: Derivation, reader: fx.Node, rewriter: _Rewriter
) -> fx.Node:
    assert derivation.rebuild is not None
    inputs = [rewriter.stand_ins.get(n, n) for n in _inputs_of(derivation, rewriter)]
    return _insert_recomputed(derivation.rebuild, inputs, value, reader, rewriter)


def _inputs_of(derivation: Derivation, rewriter: _Rewriter) -> list[fx.Node]:
    return [rewriter.by_name[name] for name in (*derivation.exact, *derivation.linear)]


def _insert_recomputed(
    function: Callable[..., torch.Tensor],
    arguments: list[Any],
    value: fx.Node,
    reader: fx.Node,
    rewriter: _Rewriter,
) -> fx.Node:
    """Insert a function's calls in front of a backward node, none of them to be kept."""
    mark = reader.prev
    made = rewriter.inserter.insert(function, arguments, reader, provenance=value)
    node = mark.next
    while node is not reader:
        node.meta["recompute"] = _torch.MUST_RECOMPUTE
        node = node.next
    assert isinstance(made, fx.Node), f"the stand-in for {value} is no tensor"
    return made


def _size_argument(value: fx.Node, dim: int) -> int | fx.Node:
    size = value.meta["val"].shape[dim]
    if isinstance(size, int):
        return size
    with value.graph.inserting_before(_after(value)):
        node = value.graph.call_function(aten.sym_size.int, (value, dim))
    node.meta["val"] = size
    return node


def _insert_clone(value: fx.Node, reader: fx.Node, rewriter: _Rewriter) -> fx.Node:
    with value.graph.inserting_before(reader):
        clone = value.graph.node_copy(value, lambda n: rewriter.stand_ins.get(n, n))
    if tensor_val(value) is not None or isinstance(value.meta.get("val"), (tuple, list)):
        clone.meta["recompute"] = _torch.MUST_RECOMPUTE
    return clone


def _after(node: fx.Node, seed: fx.Node | None = None) -> fx.Node:
    """The place right behind ``node``, past all placeholders; for a placeholder, past its seed."""
    following = seed.next if seed is not None and node.op == "placeholder" else node.next
    while following.op == "placeholder":
        following = following.next
    return following


def _settled(node: fx.Node, backward: Mapping[fx.Node, None]) -> fx.Node:
    """Return the node behind which a value's layout is fixed: its first costly reader, or itself.

    Inductor gives a buffer the layout that its first reader asks for, and an encode reads views,
    for which it takes a contiguous one (torch 2.13): then a convolution would copy the buffer.
    """
    readers = [user for user in node.users if user not in backward and user.op != "output"]
    return min((user for user in readers if recompute_ban(user) == "costly op"), default=node)


def _tag_kept(node: fx.Node) -> None:
    if tensor_val(node) is not None:
        node.meta["recompute"] = _torch.MUST_SAVE
