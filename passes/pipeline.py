"""The sequence of the passes, with the verifier after each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from passes import _torch
from passes.collection import without_collection
from passes.decompose import Traces
from passes.estimate import CostTable, estimate_costs
from passes.expose import expose
from passes.joint import JointGraph
from passes.lower import lower
from passes.partition import Partition, partition
from passes.plan import Decision, Plan, make_plan
from passes.plan_record import PlanRecord, replay_plan
from passes.rules import Rules
from passes.sketch import apply_plan
from passes.verify import verify_joint, verify_partition, verify_planned


@dataclass(frozen=True)
class Outcome:
    """Everything the passes produced for one joint graph.

    Attributes:
        exposed: the graph that the costs and the plan speak of.
        costs: the estimate.
        plan: the decisions.
        split: the lowered forward and backward.
    """

    exposed: JointGraph
    costs: CostTable
    plan: Plan
    split: Partition


Planner = Callable[[JointGraph, CostTable, Callable[[Plan], "Outcome"]], Plan]
"""Makes the plan of an exposed graph from its costs; it may try plans out before it settles."""


def run(
    joint: JointGraph,
    rules: Rules,
    planner: Planner,
    joint_inputs: Any,
    *,
    seed_offset: int = 0,
    find_record: Callable[[JointGraph], PlanRecord] | None = None,
    adjust_costs: Callable[[JointGraph, CostTable], CostTable] | None = None,
    **partitioner_kwargs: Any,
) -> Outcome:
    """Take a joint graph through all passes.

    Args:
        joint: what AOTAutograd hands to a partitioner; left untouched.
        rules: linear uses, exposures, lowerings and codecs.
        planner: makes the plan; :func:`at_price` for a fixed lambda.
        joint_inputs: passed through to torch's partitioner.
        seed_offset: added to every drawn seed (a rank's share of the seed space).
        find_record: returns the recorded plan of an exposed graph, to be carried out in place
            of planning; the planner and the codecs of ``rules`` then play no part.
        adjust_costs: puts measured costs in place of modelled ones before the planner sees them.
        partitioner_kwargs: passed through to torch's partitioner.

    Raises:
        passes.plan_record.PlanMismatchError: if there is no record, or it does not fit.
        passes.verify.VerifierError: if a pass broke one of its promises.
    """
    exposed = expose_verified(joint, rules)
    record = None if find_record is None else find_record(exposed)
    if record is not None:
        rules = replace(rules, codecs=record.codecs(), path_codecs=record.codecs())
    costs = estimate(exposed, rules)
    if adjust_costs is not None:
        costs = adjust_costs(exposed, costs)
    tried: dict[tuple[Decision, ...], Outcome] = {}
    traces = Traces()

    def carry_out(plan: Plan) -> Outcome:
        if plan.decisions not in tried:
            planned = _sketched(exposed, plan, rules, seed_offset, traces)
            split = partition(planned, joint_inputs, **partitioner_kwargs)
            verify_partition(planned, split)
            _lower(split, rules, traces)
            tried[plan.decisions] = Outcome(exposed, costs, plan, split)
        return tried[plan.decisions]

    if record is not None:
        return carry_out(replay_plan(record, exposed, costs))
    return carry_out(planner(exposed, costs, carry_out))


@without_collection()
def expose_verified(joint: JointGraph, rules: Rules) -> JointGraph:
    """Return the exposed graph, which the costs and the plan speak of.

    Args:
        joint: what AOTAutograd hands to a partitioner; left untouched.
        rules: with the exposures.

    Raises:
        passes.verify.VerifierError: if exposing broke one of its promises.
    """
    exposed = expose(joint, rules.exposures, rules.primitives, rules.slices)
    verify_joint(joint, exposed, "expose")
    return exposed


@without_collection()
def estimate(exposed: JointGraph, rules: Rules) -> CostTable:
    """Price an exposed graph, with what the user's checkpoint regions ask of it.

    Args:
        exposed: from :func:`expose_verified`.
        rules: linear uses and codecs.
    """
    recomputed = [n.name for n in exposed.graph.nodes if _torch.asks_to_recompute(n)]
    saved = [n.name for n in exposed.graph.nodes if _torch.asks_to_save(n)]
    return estimate_costs(exposed, rules, recomputed, saved)


def at_price(noise_price: float, time_price: float = math.inf) -> Planner:
    """Return a planner with fixed prices, see :mod:`passes.plan`."""
    return lambda _joint, costs, _carry_out: make_plan(
        replace(costs, time_price=time_price), noise_price
    )


def _sketched(
    exposed: JointGraph, plan: Plan, rules: Rules, seed_offset: int, traces: Traces
) -> JointGraph:
    planned = apply_plan(
        exposed,
        plan,
        expand_seeds=rules.expand_seeds,
        seed_offset=seed_offset,
        channels_last=rules.channels_last,
        wait=rules.wait,
        primitives=rules.primitives,
        traces=traces,
    )
    verify_joint(exposed, planned, "sketch")
    verify_planned(planned, "sketch")
    return planned


def _lower(split: Partition, rules: Rules, traces: Traces) -> None:
    lower(
        split,
        rules.lowerings,
        rules.primitives,
        channels_last=rules.channels_last,
        store=rules.store,
        traces=traces,
    )
