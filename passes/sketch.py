"""*sketch*: carry a plan out on the joint graph.

This is the one pass that changes numbers: sketched values reach the backward as unbiased
estimates (equal in expectation). Packed masks and recomputed values stay exact.

What the backward reads is made explicit: every forward value it needs is kept (tagged
MUST_SAVE), decoded from kept parts, or recomputed by a clone (tagged MUST_RECOMPUTE), so that
the partition that follows has nothing left to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from passes import _torch
from passes.decompose import DecompositionTable, Inserter, Traces, set_provenance
from passes.joint import JointGraph, is_tangent, memory_order, place_after, tensor_val
from passes.plan import Action, Decision, Plan
from passes.rules import Wait
from passes.stand_ins import StandIns, read_stand_ins, read_stand_ins_in_output

aten = torch.ops.aten

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
    stand_ins = StandIns(
        by_name=by_name,
        decisions=decisions,
        parts=_insert_encodes(decisions, seeds, inserter, channels_last),
        seeds=seeds,
        inserter=inserter,
        channels_last=channels_last,
        wait=wait,
    )
    for node in list(backward):
        if not is_tangent(node):
            read_stand_ins(node, backward, stand_ins)
    read_stand_ins_in_output(result, backward, stand_ins)
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
            place_after(node, seeds.get(node)),
            provenance=node,
        )
        parts[node] = tuple(encoded)
        for part in encoded:
            _tag_kept(part)
    return parts


def _tag_kept(node: fx.Node) -> None:
    if tensor_val(node) is not None:
        node.meta["recompute"] = _torch.MUST_SAVE
