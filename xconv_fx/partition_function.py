"""The partition function that AOTAutograd is handed: all passes, or the exact fallback.

Comes in: options bound to one compilation, the step that the graph is part of, and joint graphs.
Goes out: the forward and the backward of each, with its report; and whether they keep to the budget
once Inductor has made their schedules. What is done to a graph is said in ``passes``, what fits in
``xconv_fx.budget``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

import passes
from passes import JointGraph, MemoryEstimate, Partition, Plan
from passes.collection import without_collection
from passes.joint import tensor_val
from xconv_fx import _torch, audit
from xconv_fx.budget import PeaksOf, StepBudget, check_exact, dynamic_sizes, make_planner
from xconv_fx.calibration import Calibration
from xconv_fx.errors import BudgetError
from xconv_fx.exact_partition import partition_exact, stock_nbytes
from xconv_fx.ledger import Place, Step, StepGraph
from xconv_fx.memory import Schedules, make_forecast, predict_step_memory
from xconv_fx.memory_size import parse_budget
from xconv_fx.options import Options
from xconv_fx.plans import Plans
from xconv_fx.record_files import package_version
from xconv_fx.rules import make_rules
from xconv_fx.rules.regions import unmatched_patterns
from xconv_fx.step_memory import GraphInputs, GraphMemory, inputs_of

log = logging.getLogger("xconv_fx")

# An odd constant that spreads the ranks over the seed space [0, 2**62).
_RANK_STRIDE = 0x1E3779B97F4A7C15


@dataclass(frozen=True)
class PartitionFunction:
    """The partition function handed to AOTAutograd: all passes, or the exact fallback.

    The fallback alone if it is known beforehand why (``exact_because``). A budget in bytes is
    planned by ``forecasts``, and held to what Inductor's schedules turn out to need once they are
    made (:meth:`holds_budget`). Where that is more, a second attempt knows by how much; a third
    makes the schedules of plans that it tries.
    """

    options: Options
    inner: str
    settings: Mapping[str, Any]
    rank: int
    plans: Plans | None = None
    calibration: Calibration | None = None
    step: Step = dataclasses.field(default_factory=Step)
    place: Place = dataclasses.field(default_factory=Place)
    exact_because: str | None = None
    forecasts: bool = True
    forecast_error_nbytes: int = 0
    graphs: list[StepGraph] = dataclasses.field(default_factory=list)  # what it partitioned
    schedules: Schedules = dataclasses.field(default_factory=Schedules)
    # Of each graph the budget that it was planned for by forecasts; None if it was not.
    to_be_held: list[_ForecastBudget | None] = dataclasses.field(default_factory=list)

    def restarted(self, **changes: Any) -> PartitionFunction:
        """Return the same for another attempt, which is told of this one by ``changes`` alone."""
        fresh: dict[str, Any] = {"graphs": [], "schedules": Schedules(), "to_be_held": []}
        return dataclasses.replace(self, **fresh, **changes)

    def corrected(self) -> PartitionFunction:
        """Return the same for an attempt that knows by how much the forecast was too small."""
        errors = [
            budget.error_nbytes(graph.memory) if graph.is_predicted else None
            for graph, budget in zip(self.graphs, self.to_be_held, strict=True)
            if budget is not None
        ]
        known = [error for error in errors if error is not None]
        if len(known) < len(errors):
            return self.restarted(forecasts=False)
        log.info("the forecast was too small by %d bytes: planning again", max(known))
        return self.restarted(forecast_error_nbytes=max(known))

    @property
    def holds_bytes(self) -> bool:
        """Whether a plan is searched for a budget in bytes, and Inductor's schedules show it."""
        is_searched = self.options.budget_nbytes is not None and self.plans is None
        return is_searched and self.inner == "inductor"

    @property
    def is_sketched(self) -> bool:
        """Whether it partitioned a graph otherwise than torch would."""
        return any(graph.report is not None and graph.report.exact is None for graph in self.graphs)

    @property
    def can_be_exact(self) -> bool:
        """Whether compiling exactly may help where Inductor failed.

        It does not on a forward that is torch's own. Within bytes a backward is not run op by op
        before that, since its peak would not be the one that was seen.
        """
        return self.is_sketched or (bool(self.graphs) and self.holds_bytes)

    def holds_budget(self) -> bool:
        """Whether graphs that were planned by forecasts keep to the budget, once compiled."""
        return all(
            budget is None or (graph.is_predicted and budget.step.holds(graph.memory))
            for graph, budget in zip(self.graphs, self.to_be_held, strict=True)
        )

    def publish(self) -> None:
        """Enter the graphs in the step, and their reports in the audit."""
        for graph in self.graphs:
            self.step.record(graph)
            assert graph.report is not None, "a partitioned graph has a report"
            _announce(graph.report)
        self.to_be_held.clear()  # they hold the joint graphs

    def note_interpreted(self, error: Exception) -> None:
        """Say in the report that the backward runs op by op, and because of which error."""
        note = f"the backward runs op by op, since the inner compiler failed on it: {error!r}"
        log.warning("%s", note)
        for i, graph in enumerate(self.graphs):
            assert graph.report is not None, "a partitioned graph has a report"
            noted = audit.annotate_report(graph.report, note)
            self.graphs[i] = dataclasses.replace(graph, report=noted)

    @property
    def identity(self) -> str:
        """A text that changes with everything that changes the result."""
        plans = "" if self.plans is None else f"plans={self.plans.digest} "
        measured = "" if self.calibration is None else f"measured={self.calibration.digest} "
        return (
            f"xconv {package_version()} {self.options} rank={self.rank} {plans}{measured}"
            f"{'' if self.exact_because is None else 'exact '}"
            f"{_source_hash()}"
        )

    @without_collection()
    def __call__(
        self,
        module: fx.GraphModule,
        joint_inputs: Sequence[Any],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Partition a joint graph, with the signature that AOTAutograd asks for (2.11 to 2.13)."""
        joint = JointGraph(module, num_fwd_outputs, tuple(static_lifetime_input_indices or ()))
        inputs = inputs_of(joint, self.place.inputs)
        untouched = joint.copy()
        exactly = functools.partial(partition_exact, untouched, kwargs)
        count_stock = functools.partial(stock_nbytes, untouched, kwargs)
        budget = None
        try:
            if self.exact_because is not None:
                split, report = self._exact(joint, inputs, exactly, self.exact_because)
            elif not has_convolution(joint.graph):
                reason = "no convolution in this graph"
                split, report = self._exact(joint, inputs, exactly, reason)
            else:
                split, report, budget = self._sketched(
                    joint, inputs, joint_inputs, kwargs, count_stock
                )
        except (BudgetError, passes.PlanMismatchError):
            raise
        except Exception as error:  # noqa: BLE001  training must not break because of us
            log.warning("compiling this graph exactly: %s: %s", type(error).__name__, error)
            log.debug("the passes failed", exc_info=True)
            reason = f"{type(error).__name__}: {error}"
            split, report = self._exact(joint, inputs, exactly, reason)
        self.graphs.append(
            StepGraph(self.place, inputs, report, limit_nbytes=self.options.budget_nbytes)
        )
        self.to_be_held.append(budget)
        return split.forward, split.backward

    def _sketched(
        self,
        joint: JointGraph,
        inputs: GraphInputs,
        joint_inputs: Sequence[Any],
        kwargs: dict[str, Any],
        count_stock: Callable[[], int],
    ) -> tuple[Partition, audit.Report, _ForecastBudget | None]:
        """Take the graph through the passes.

        Returns:
            The graphs, their report, and the budget if it is still to be seen whether they keep it.
        """
        # Trying plans out predicts their memory; the report needs one of those again.
        predicted: dict[Partition, MemoryEstimate] = {}

        def predict(outcome: passes.Outcome) -> MemoryEstimate:
            if outcome.split not in predicted:
                predicted[outcome.split] = self._predict_memory(outcome.split)
            return predicted[outcome.split]

        step = self._step_budget(inputs, predict)
        rules = rules_for(self.options, self.inner, joint)
        if step is not None and self.forecasts and self.holds_bytes:
            step = dataclasses.replace(
                step,
                forecasts=functools.cache(functools.partial(self._forecasts, inputs, rules)),
                forecast_error_nbytes=self.forecast_error_nbytes,
            )
        given, calibration = self.options.memory_budget, self.calibration
        planner = make_planner(
            None if given is None else parse_budget(given),
            self.options.noise_price,
            self.options.time_price,
            strict=self.options.strict,
            stock_nbytes=count_stock,
            step=step,
            peaks=self._peaks(inputs, predict, rules),
            decodes_in_steps=self.inner == "inductor",
        )
        outcome = passes.run(
            joint,
            rules,
            planner,
            joint_inputs,
            seed_offset=self.rank * _RANK_STRIDE,
            find_record=None if self.plans is None else self.plans.find,
            adjust_costs=None if calibration is None else calibration.adjust,
            **kwargs,
        )
        known = predicted.get(outcome.split)
        describe = functools.partial(self._describe_memory, outcome.split, known)
        remarks = unmatched_patterns(self.options.exact_patterns, outcome.exposed.graph)
        if calibration is not None:
            remarks = [*calibration.remarks(outcome.exposed, outcome.costs), *remarks]
        if step is not None and (sizes := dynamic_sizes(joint)) is not None:
            remarks = [f"memory_budget was planned at {sizes}; a larger batch takes more", *remarks]
        report = audit.make_report(outcome, rules, count_stock, describe, remarks=remarks)
        is_open = known is None and self.plans is None
        budget = _ForecastBudget.of(step, outcome) if step is not None and is_open else None
        return outcome.split, report, budget

    def _step_budget(
        self, inputs: GraphInputs, predict: Callable[[passes.Outcome], MemoryEstimate]
    ) -> StepBudget | None:
        """Return the budget in bytes for the step that the graph is part of, if there is one."""
        limit = self.options.budget_nbytes
        if limit is None:
            return None
        return StepBudget(
            limit,
            self.step.room(self.place, inputs, self.options.memory_budget_graphs),
            lambda outcome: GraphMemory.of(inputs, predict(outcome)),
            name=self.place.name,
            earlier=self.step.earlier(self.place, inputs),
        )

    def _exact(
        self,
        joint: JointGraph,
        inputs: GraphInputs,
        exactly: Callable[[], Partition],
        reason: str,
    ) -> tuple[Partition, audit.Report]:
        """Partition as torch does, under the budget in bytes if there is one."""
        split = exactly()
        predict = functools.partial(self._describe_memory, split)
        report = audit.make_exact_report(split, joint.held_inputs(), reason, predict)
        step = self._step_budget(inputs, lambda outcome: self._predict_memory(outcome.split))
        if step is not None:
            check_exact(step, StepGraph(self.place, inputs, report).memory, self.options.strict)
        return split, report

    def _forecasts(
        self, inputs: GraphInputs, rules: passes.Rules, joint: JointGraph
    ) -> Callable[[Plan], GraphMemory]:
        """Return what forecasts the memory that plans of an exposed graph add to a step."""
        with _torch.without_guards(joint.graph):
            forecast = make_forecast(
                joint,
                self.settings,
                channels_last=rules.channels_last,
                waiting=() if rules.wait is None else rules.wait.arguments,
            )
        return lambda plan: GraphMemory.of(inputs, forecast.memory(plan))

    def _peaks(
        self,
        inputs: GraphInputs,
        predict: Callable[[passes.Outcome], MemoryEstimate],
        rules: passes.Rules,
    ) -> PeaksOf | None:
        """Return what predicts the peak of plans under a share, if the graph is a whole step.

        Inductor is not asked, since to schedule a plan takes it nearly as long as to compile it.
        """
        room = self.step.room(self.place, inputs, self.options.memory_budget_graphs)
        if not room.is_empty:
            return None

        def peaks(
            joint: JointGraph, carry_out: Callable[[Plan], passes.Outcome]
        ) -> Callable[[Plan], int]:
            if self.inner == "inductor":
                forecast = self._forecasts(inputs, rules, joint)
                return lambda plan: room.known_peak_nbytes(forecast(plan))
            return lambda plan: room.known_peak_nbytes(
                GraphMemory.of(inputs, predict(carry_out(plan)))
            )

        return peaks

    def _describe_memory(
        self, split: Partition, known: MemoryEstimate | None = None
    ) -> MemoryEstimate | None:
        """Predict for the report alone: a failure must not make the graph exact."""
        if known is not None:
            return known
        # Where several graphs were partitioned nothing says whose schedules those are.
        schedules = self.schedules if len(self.graphs) == 1 else None
        try:
            return self._predict_memory(split, schedules)
        except Exception:  # noqa: BLE001  the graph is fine, only its description failed
            log.warning("the memory of this graph could not be predicted", exc_info=True)
            return None

    def _predict_memory(
        self, split: Partition, schedules: Schedules | None = None
    ) -> MemoryEstimate:
        with _torch.without_guards(split.forward.graph):
            return predict_step_memory(split, self.inner, self.settings, schedules)


@dataclass(frozen=True)
class _ForecastBudget:
    """A budget that a graph was planned for by a forecast, and what was forecast."""

    step: StepBudget
    forecast_nbytes: int

    @classmethod
    def of(cls, step: StepBudget, outcome: passes.Outcome) -> _ForecastBudget:
        """Forecast once more what was planned."""
        assert step.forecasts is not None, "only forecasts leave open what a plan takes"
        return cls(step, step.part_nbytes(step.forecasts(outcome.exposed)(outcome.plan)))

    def error_nbytes(self, memory: GraphMemory) -> int:
        """By how much the graph takes more than was forecast."""
        return self.step.part_nbytes(memory) - self.forecast_nbytes


def _announce(report: audit.Report) -> None:
    """Publish a report; its text has torch cut the graph once more: that must not end training."""
    try:
        audit.publish(report)
        _torch.emit_artifact("xconv_report", report.__str__)
    except Exception:  # noqa: BLE001  the graph is compiled, only its description failed
        log.warning("the report of this graph could not be written", exc_info=True)


def has_convolution(graph: fx.Graph) -> bool:
    """Whether a graph calls a convolution; the backend leaves graphs without one alone."""
    targets = {torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default}
    return any(node.target in targets for node in graph.nodes)


def rules_for(options: Options, inner: str, joint: JointGraph) -> passes.Rules:
    """Return the rules for a graph: they depend on how the inner compiler will lay it out."""
    prefers = inner == "inductor" and _torch.inductor_prefers_channels_last(joint.module)
    device_type = device_type_of(tensor_val(node) for node in joint.primals)
    return make_rules(
        options,
        channels_last=prefers,
        device_type=device_type,
        merges_kernels=inner == "inductor",
    )


def device_type_of(inputs: Iterable[Any]) -> str:
    """Return the type of the device that a graph runs on; of a CPU and another the other one.

    Args:
        inputs: of the graph; what is no tensor is passed over.
    """
    types = (x.device.type for x in inputs if isinstance(x, torch.Tensor))
    return next((found for found in types if found != "cpu"), "cpu")


@functools.cache
def _source_hash() -> str:
    """Hash of the sources that decide the result, for Inductor's cache key."""
    from pathlib import Path

    digest = hashlib.sha256()
    for package in (Path(passes.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
