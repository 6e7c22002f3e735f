"""Budgets: what ``options["memory_budget"]`` means for one graph, and what if it cannot be met.

Comes in: the options and an exposed graph with its costs. Goes out: the planner that the passes
ask for a plan. A share is of the bytes that torch's default partition of the same graph keeps; an
absolute budget is of the step's predicted peak: parameters, buffers, batch, gradients, kept values
and transients (optimiser state not included). Several graphs (graph breaks, buckets): a share
applies to each; an absolute budget to the step of each graph by itself, without what others keep.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import fx

from passes import (
    BudgetedPlan,
    CostTable,
    JointGraph,
    Outcome,
    Plan,
    at_price,
    plan_within,
    plan_within_peak,
)
from passes.joint import tensor_nbytes, tensor_val
from passes.pipeline import Planner
from passes.provenance import module_of
from xconv_fx.errors import BudgetError
from xconv_fx.sketches.randomness import SCHEDULE_LENGTH

_NUM_HOLDERS = 5


def make_planner(
    budget: float | int | None,
    noise_price: float,
    *,
    strict: bool,
    stock_nbytes: Callable[[], int],
    peak_nbytes: Callable[[Outcome], int],
) -> Planner:
    """Return the planner for the user's budget.

    Args:
        budget: from :func:`xconv_fx.memory_size.parse_budget`; None for no budget.
        noise_price: lambda where there is no budget.
        strict: whether an unreachable budget is an error rather than a warning.
        stock_nbytes: counts what torch's default partition of the graph keeps.
        peak_nbytes: predicts the peak of a step above what is allocated before it.

    Returns:
        A planner, see :data:`passes.pipeline.Planner`. It raises :class:`BudgetError` for a
        budget out of reach, and for an absolute one if the graph has dynamic sizes.
    """
    if budget is None:
        return at_price(noise_price)

    def planner(joint: JointGraph, costs: CostTable, carry_out: Callable[[Plan], Outcome]) -> Plan:
        if isinstance(budget, float):
            found = plan_within(costs, int(budget * stock_nbytes()), _kept_nbytes)
            asked = f"{budget:g} of what torch's default partition keeps"
        else:
            _refuse_dynamic(joint)
            resident = _resident_nbytes(joint)
            found = plan_within_peak(
                costs, budget, lambda plan: resident + peak_nbytes(carry_out(plan))
            )
            asked = f"a predicted peak of {budget} bytes"
        if not found.fits:
            text = _unreachable(asked, found, joint)
            if strict:
                raise BudgetError(text)
            warnings.warn(f"xconv: {text} Going on with the least.", stacklevel=2)
        return found.plan

    return planner


def _kept_nbytes(plan: Plan) -> int:
    """Bytes that a plan keeps, its seeds included."""
    seeds = sum(d.codec is not None and d.codec.needs_seed for d in plan.decisions)
    return plan.kept_nbytes + seeds * SCHEDULE_LENGTH * torch.int32.itemsize


def _resident_nbytes(joint: JointGraph) -> int:
    """Parameters, buffers and the batch."""
    held = dict.fromkeys([*joint.static_inputs(), *joint.caller_held_inputs()])
    vals = [tensor_val(node) for node in held]
    return sum(tensor_nbytes(val) or 0 for val in vals if val is not None)


def _refuse_dynamic(joint: JointGraph) -> None:
    for node in joint.graph.find_nodes(op="placeholder"):
        val = tensor_val(node)
        if val is not None and not all(isinstance(size, int) for size in val.shape):
            shape = "x".join(map(str, val.shape))
            raise BudgetError(
                f"memory_budget in bytes needs sizes known when the graph is compiled; input "
                f"{node.name} is {shape}. Give a share such as 0.3, which holds for every size, or "
                "compile with dynamic=False."
            )


def _unreachable(asked: str, found: BudgetedPlan, joint: JointGraph) -> str:
    nodes: dict[str, fx.Node] = {node.name: node for node in joint.graph.nodes}
    holders = sorted(found.plan.decisions, key=lambda d: -d.kept_nbytes)[:_NUM_HOLDERS]
    listed = "; ".join(
        f"{h.node} ({module_of(nodes[h.node])}, {h.action.value}, {h.kept_nbytes} bytes)"
        for h in holders
        if h.kept_nbytes
    )
    return (
        f"memory_budget asks for {asked}, {found.limit_nbytes} bytes; the least that can be "
        f"reached is {found.measured_nbytes}. Most is kept by: {listed or 'nothing'}. Ask for "
        "more, use a smaller batch, or set strict=False to take the least."
    )
