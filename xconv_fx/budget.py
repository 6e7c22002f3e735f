"""Budgets: what ``options["memory_budget"]`` means for one graph, and what if it cannot be met.

Comes in: the options and an exposed graph with its costs. Goes out: the planner that the passes ask
for a plan. A share is of the bytes that torch's default partition of the same graph keeps; in a
graph that is a whole step, costly ops are not computed again for one where that raises the peak by
more than it keeps less, and where kernels are merged no codec is used that raises it above that of
a larger share by what it stores on its way (:mod:`passes.falling_peaks`). An absolute budget is of
the step's predicted peak: parameters, buffers, batch, gradients, kept values and transients
(optimiser state not included). It is searched by forecasts (:mod:`passes.forecast`), or by the
graphs of plans where those do not do. Several graphs (graph breaks, buckets): a share applies to
each; an absolute budget to the step of all of them, by the formula and the rule in
:mod:`xconv_fx.step_memory`. Dynamic sizes: either is planned at the sizes that the graph is
compiled with; at other sizes a peak is what it is there, nearly in proportion.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from passes import (
    Action,
    BudgetedPlan,
    CostTable,
    JointGraph,
    Outcome,
    Plan,
    at_price,
    plan_below,
    plan_within,
    plan_within_peak,
)
from passes.joint import hinted_shape, tensor_nbytes, tensor_val
from passes.pipeline import Planner
from passes.provenance import module_of
from xconv_fx.errors import BudgetError
from xconv_fx.sketches.randomness import SCHEDULE_LENGTH
from xconv_fx.step_memory import GraphMemory, StepRoom

log = logging.getLogger("xconv_fx")

_NUM_HOLDERS = 5

TIME_PRICE_OUT_OF_REACH = 1.0
"""What time counts where a budget is out of reach of plans that compute nothing costly again."""

# A forecast is taken to be too small by up to this part of the limit: to compile a plan in vain
# costs more than the bytes. Once it is known by how much it was, little is left to be unsure of.
_FORECAST_MARGIN = 12
_CORRECTED_MARGIN = 50


PeaksOf = Callable[[JointGraph, Callable[[Plan], Outcome]], Callable[[Plan], int]]
"""Of an exposed graph, and of what carries a plan of it out: what predicts the peak of a plan."""


@dataclass(frozen=True)
class StepBudget:
    """A budget in bytes for a step, one graph of which is planned.

    Attributes:
        limit_nbytes: the budget.
        room: the rest of the step.
        memory_of: predicts what a plan of the graph adds to the step.
        forecasts: of an exposed graph what forecasts the same before the plan is carried out; None
            where plans are chosen by ``memory_of`` alone.
        forecast_error_nbytes: by how much an earlier plan took more than was forecast.
        name: of the graph.
        earlier: what the graphs before it hold, each a text.
    """

    limit_nbytes: int
    room: StepRoom
    memory_of: Callable[[Outcome], GraphMemory]
    forecasts: Callable[[JointGraph], Callable[[Plan], GraphMemory]] | None = None
    forecast_error_nbytes: int = 0
    name: str = "graph"
    earlier: tuple[str, ...] = ()

    @property
    def part_limit_nbytes(self) -> int:
        """The budget of the graph being planned, were those to come like it."""
        return self.limit_nbytes // self.room.num_parts

    def part_nbytes(self, memory: GraphMemory) -> int:
        """What is held to :attr:`part_limit_nbytes`.

        With n - 1 graphs to come that keep as much, each byte that this one keeps counts n times;
        the search counts it once, so it is given an n-th of the peak and of the budget.
        """
        return -(-self.room.assumed_peak_nbytes(memory) // self.room.num_parts)

    def holds(self, memory: GraphMemory) -> bool:
        """Whether the step keeps to the budget with a graph of that memory."""
        return self.part_nbytes(memory) <= self.part_limit_nbytes


def make_planner(
    budget: float | int | None,
    noise_price: float,
    time_price: float | None = None,
    *,
    strict: bool,
    stock_nbytes: Callable[[], int],
    step: StepBudget | None,
    peaks: PeaksOf | None = None,
    decodes_in_steps: bool = False,
) -> Planner:
    """Return the planner for the user's budget.

    Args:
        budget: from :func:`xconv_fx.memory_size.parse_budget`; None for no budget.
        noise_price: lambda where there is no budget.
        time_price: see :class:`xconv_fx.options.Options`.
        strict: whether an unreachable budget is an error rather than a warning.
        stock_nbytes: counts what torch's default partition of the graph keeps.
        step: the budget in bytes and the rest of the step; None for a share, or no budget.
        peaks: predicts the peak of plans where the graph is a whole step, None elsewhere: for a
            share, unless ``time_price`` is given, no costly op is computed again if that raises it
            by more than it keeps less.
        decodes_in_steps: whether plans differ in what decoding stores on its way: then a share
            raises no peak by that if it can be helped (:mod:`passes.falling_peaks`).

    Returns:
        A planner, see :data:`passes.pipeline.Planner`. It raises :class:`BudgetError` for a
        budget out of reach, and for an absolute one if a size in the graph is unknown.
    """
    if budget is None:
        return at_price(noise_price, math.inf if time_price is None else time_price)

    def planner(joint: JointGraph, costs: CostTable, carry_out: Callable[[Plan], Outcome]) -> Plan:
        refused = ""
        if isinstance(budget, float):
            predict = None if peaks is None else functools.partial(peaks, joint, carry_out)
            limit = int(budget * stock_nbytes())
            found, refused = _plan_within_share(limit, costs, time_price, predict, decodes_in_steps)
            asked = f"{budget:g} of what torch's default partition keeps"
        else:
            _refuse_unknown(joint)
            assert step is not None, "a budget in bytes is one of a step"
            found = _plan_in_step(step, joint, costs, carry_out, time_price)
            asked = f"a predicted peak of {budget} bytes"
        if not found.fits:
            earlier = () if step is None else step.earlier
            _give_up(_unreachable(asked, found, joint, earlier, refused), strict)
        return found.plan

    return planner


def _plan_within_share(
    limit_nbytes: int,
    costs: CostTable,
    time_price: float | None,
    peaks: Callable[[], Callable[[Plan], int]] | None,
    decodes_in_steps: bool,
) -> tuple[BudgetedPlan, str]:
    """Plan a graph within a share; say what plan was refused for its peak, if one was."""
    search = functools.partial(plan_within, limit_nbytes=limit_nbytes, measure=_kept_nbytes)
    if peaks is None:
        return _candidates(search, costs, time_price)[-1], ""
    prepare = functools.cache(peaks)

    @functools.cache
    def peak_of(plan: Plan) -> int:
        return prepare()(plan)

    falling = functools.partial(
        plan_below, limit_nbytes=limit_nbytes, measure=_kept_nbytes, peak_of=peak_of
    )
    try:
        *others, found = _candidates(falling if decodes_in_steps else search, costs, time_price)
        if not others:
            return found, ""
        (least,) = others
        peak, least_peak = peak_of(found.plan), peak_of(least.plan)
    except Exception:  # noqa: BLE001  the share is met without it
        log.warning("the memory of plans of this graph could not be predicted", exc_info=True)
        return _candidates(search, costs, time_price)[-1], ""
    # Were there another graph like it, what is kept less would count once more.
    if peak - least_peak <= least.measured_nbytes - found.measured_nbytes:
        return found, ""
    return least, (
        f" Computing convolutions and the like again would keep {found.measured_nbytes}, but raise "
        f"the predicted peak by {peak - least_peak} bytes; set time_price (to 1, say) to have that."
    )


def _candidates(
    search: Callable[[CostTable], BudgetedPlan], costs: CostTable, time_price: float | None
) -> list[BudgetedPlan]:
    """Search a plan, and by default one that computes costly ops again only if none else fits.

    Returns:
        The plan to take last; before it, where that computes costly ops again because no other
        fits, the best that does not.
    """
    if time_price is not None:
        return [search(replace(costs, time_price=time_price))]
    found = search(costs)
    if found.fits:
        return [found]
    slower = search(replace(costs, time_price=TIME_PRICE_OUT_OF_REACH))
    if slower.fits or slower.measured_nbytes < found.measured_nbytes:
        return [found, slower]
    return [found]


def check_exact(step: StepBudget, memory: GraphMemory, strict: bool) -> None:
    """Hold a step to its budget where a graph of it is compiled exactly, without a choice.

    Args:
        step: the budget.
        memory: what the graph adds to the step.
        strict: whether a step above it is an error rather than a warning.

    Raises:
        BudgetError: for a predicted peak above the budget.
    """
    peak = step.room.known_peak_nbytes(memory)
    if peak > step.limit_nbytes:
        text = (
            f"memory_budget asks for a predicted peak of {step.limit_nbytes} bytes; with the graph "
            f"{step.name}, which is compiled exactly, it is {peak}.{_say(step.earlier)} Ask for "
            "more, use a smaller batch, or set strict=False to go on all the same."
        )
        _give_up(text, strict)


def _give_up(text: str, strict: bool) -> None:
    if strict:
        raise BudgetError(text)
    warnings.warn(f"xconv: {text} Going on with the least.", stacklevel=3)


def _plan_in_step(
    step: StepBudget,
    joint: JointGraph,
    costs: CostTable,
    carry_out: Callable[[Plan], Outcome],
    time_price: float | None,
) -> BudgetedPlan:
    """Plan a graph within its part of a budget."""
    if step.forecasts is not None:
        try:
            found = _plan_by_forecast(step, step.forecasts(joint), costs, time_price)
        except Exception:  # noqa: BLE001  plans can be tried without it
            log.warning("the memory of plans of this graph could not be forecast", exc_info=True)
            found = None
        if found is not None:
            return found
    search = functools.partial(
        plan_within_peak,
        limit_nbytes=step.part_limit_nbytes,
        measure=lambda plan: step.part_nbytes(step.memory_of(carry_out(plan))),
    )
    found = _candidates(search, costs, time_price)[-1]
    if found.fits:
        return found
    # With graphs to come like this one even the least does not fit; but they may be smaller.
    known = step.room.known_peak_nbytes(step.memory_of(carry_out(found.plan)))
    return BudgetedPlan(found.plan, known, step.limit_nbytes)


def _plan_by_forecast(
    step: StepBudget,
    forecast: Callable[[Plan], GraphMemory],
    costs: CostTable,
    time_price: float | None,
) -> BudgetedPlan | None:
    """Plan a graph without carrying any plan out, or return None where that is not safe.

    What is forecast is kept below the limit by as much as forecasts may be too small. A plan that
    computes costly ops again is not taken: one that does not may fit within that.
    """
    limit = step.part_limit_nbytes
    margin = _CORRECTED_MARGIN if step.forecast_error_nbytes else _FORECAST_MARGIN
    found = plan_within(
        costs if time_price is None else replace(costs, time_price=time_price),
        limit - limit // margin,
        lambda plan: step.part_nbytes(forecast(plan)) + step.forecast_error_nbytes,
    )
    costly = {v.node for v in costs.values if v.recompute_time is not None}
    again = any(d.action is Action.RECOMPUTE and d.node in costly for d in found.plan.decisions)
    return found if found.fits and not again else None


def _kept_nbytes(plan: Plan) -> int:
    """Bytes that a plan keeps, its seeds included."""
    seeds = sum(d.codec is not None and d.codec.needs_seed for d in plan.decisions)
    return plan.kept_nbytes + seeds * SCHEDULE_LENGTH * torch.int32.itemsize


def dynamic_sizes(joint: JointGraph) -> str | None:
    """Say at which sizes the dynamic inputs of a graph are compiled; None if none is dynamic."""
    vals = ((node.name, tensor_val(node)) for node in joint.primals)
    shapes = [
        f"{name} {'x'.join(map(str, hinted_shape(val)))}"
        for name, val in vals
        if val is not None and not all(isinstance(size, int) for size in val.shape)
    ]
    return ", ".join(shapes) or None


def _refuse_unknown(joint: JointGraph) -> None:
    for node in joint.graph.nodes:
        val = tensor_val(node)
        if val is not None and tensor_nbytes(val) is None:
            shape = "x".join(map(str, val.shape))
            raise BudgetError(
                f"memory_budget in bytes needs sizes known when the graph is compiled; {node.name} "
                f"is {shape}, which depends on the data. Give a share such as 0.3, or keep what "
                "makes it out of the compiled model (torch.compiler.disable)."
            )


def _say(earlier: Sequence[str]) -> str:
    if not earlier:
        return ""
    count = len(earlier) + 1
    return (
        f" It is graph {count} of the step, and those before it hold: {'; '.join(earlier)}. Set "
        f"memory_budget_graphs to the number of graphs of a step, {count} at least, so that each "
        "leaves room to the next."
    )


def _unreachable(
    asked: str, found: BudgetedPlan, joint: JointGraph, earlier: Sequence[str], refused: str
) -> str:
    nodes: dict[str, fx.Node] = {node.name: node for node in joint.graph.nodes}
    holders = sorted(found.plan.decisions, key=lambda d: -d.kept_nbytes)[:_NUM_HOLDERS]
    listed = "; ".join(
        f"{h.node} ({module_of(nodes[h.node])}, {h.action.value}, {h.kept_nbytes} bytes)"
        for h in holders
        if h.kept_nbytes
    )
    return (
        f"memory_budget asks for {asked}, {found.limit_nbytes} bytes; the least that can be "
        f"reached is {found.measured_nbytes}. Most is kept by: {listed or 'nothing'}."
        f"{_say(earlier)}{refused} Ask for more, use a smaller batch, or set strict=False to take "
        "the least."
    )
