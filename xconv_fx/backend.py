"""The backend ``torch.compile(model, backend="xconv")``.

Registered in the entry-point group ``torch_dynamo_backends``, so no import is needed. Comes
in: Dynamo's graph. Goes out: a compiled callable whose backward keeps sketches. The work is
done by ``passes``; this file binds options to them, falls back, and reports.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

import passes
from passes import JointGraph, MemoryEstimate, Partition
from xconv_fx import _torch, audit
from xconv_fx.budget import make_planner
from xconv_fx.calibration import Calibration, resolve_calibration
from xconv_fx.errors import BudgetError
from xconv_fx.memory import predict_step_memory
from xconv_fx.memory_size import parse_budget
from xconv_fx.options import Options, parse_options
from xconv_fx.plans import Plans, resolve_plans
from xconv_fx.record_files import package_version
from xconv_fx.rules import exact_decompositions, make_rules, tracing_decompositions
from xconv_fx.rules.regions import unmatched_patterns

log = logging.getLogger("xconv_fx")


def xconv(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    config_patches: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph so that its backward keeps sketches of activations.

    Args:
        module: the graph from Dynamo.
        example_inputs: its (fake) inputs.
        mode: a ``torch.compile`` mode, for the inner compiler.
        options: see :class:`xconv_fx.options.Options`.
        config_patches: settings of the inner compiler, merged over ``options["inductor"]``.

    Returns:
        The compiled callable.

    Raises:
        xconv_fx.errors.OptionError: for an unknown option or a bad value.
        xconv_fx.errors.PlanFileError: if ``options["plan"]`` names a file that cannot be read.
        xconv_fx.errors.CalibrationFileError: the same for ``options["calibration"]``.
        passes.PlanMismatchError: if a recorded plan does not fit the graph.
    """
    parsed = parse_options(options)
    inner = inner_compiler(parsed, example_inputs)
    settings = {
        **_torch.inductor_settings(),
        **_torch.mode_settings(mode),
        **parsed.inductor,
        **(config_patches or {}),
    }
    partition_function = _PartitionFunction(
        parsed,
        inner,
        settings,
        _rank(),
        resolve_plans(parsed.plan),
        resolve_calibration(parsed.calibration),
    )
    if inner == "aot_eager":
        compiled = _torch.compile_with_aot_eager(
            module, example_inputs, partition_function, tracing_decompositions()
        )
        return cast(Callable[..., Any], compiled)
    compiled = _torch.compile_with_inductor(
        module,
        example_inputs,
        partition_function,
        partition_function.identity,
        tracing_decompositions(),
        settings,
    )
    return cast(Callable[..., Any], compiled)


def reset() -> None:
    """Forget the reports; called by ``torch.compiler.reset()``."""
    audit.clear_reports()


xconv.reset = reset  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _PartitionFunction:
    """The partition function handed to AOTAutograd: all passes, or the exact fallback."""

    options: Options
    inner: str
    settings: Mapping[str, Any]
    rank: int
    plans: Plans | None = None
    calibration: Calibration | None = None

    @property
    def identity(self) -> str:
        """A text that changes with everything that changes the result."""
        plans = "" if self.plans is None else f"plans={self.plans.digest} "
        measured = "" if self.calibration is None else f"measured={self.calibration.digest} "
        return (
            f"xconv {package_version()} {self.options} rank={self.rank} {plans}{measured}"
            f"{_source_hash()}"
        )

    def __call__(
        self,
        module: fx.GraphModule,
        joint_inputs: Sequence[Any],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        joint = JointGraph(module, num_fwd_outputs, tuple(static_lifetime_input_indices or ()))
        exactly = functools.partial(partition_exact, joint.copy(), kwargs)
        try:
            split, report = self._sketched(joint, joint_inputs, kwargs, exactly)
        except (BudgetError, passes.PlanMismatchError):
            raise
        except Exception as error:  # noqa: BLE001  training must not break because of us
            log.warning("compiling this graph exactly: %s: %s", type(error).__name__, error)
            log.debug("the passes failed", exc_info=True)
            split = exactly()
            report = self._exact_report(split, joint, f"{type(error).__name__}: {error}")
        _announce(report)
        return split.forward, split.backward

    def _sketched(
        self,
        joint: JointGraph,
        joint_inputs: Sequence[Any],
        kwargs: dict[str, Any],
        exactly: Callable[[], Partition],
    ) -> tuple[Partition, audit.Report]:
        if not has_convolution(joint.graph):
            split = exactly()
            return split, self._exact_report(split, joint, "no convolution in this graph")
        rules = rules_for(self.options, self.inner, joint)
        given, calibration = self.options.memory_budget, self.calibration
        planner = make_planner(
            None if given is None else parse_budget(given),
            self.options.noise_price,
            strict=self.options.strict,
            stock_nbytes=lambda: audit.kept_nbytes(exactly(), joint.held_inputs()),
            peak_nbytes=lambda outcome: self._predict_memory(outcome.split).peak_nbytes,
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
        predict = functools.partial(self._describe_memory, outcome.split)
        remarks = unmatched_patterns(self.options.exact_patterns, outcome.exposed.graph)
        if calibration is not None:
            remarks = [*calibration.remarks(outcome.exposed, outcome.costs), *remarks]
        report = audit.make_report(outcome, rules, exactly, predict, remarks=remarks)
        return outcome.split, report

    def _exact_report(self, split: Partition, joint: JointGraph, reason: str) -> audit.Report:
        predict = functools.partial(self._describe_memory, split)
        return audit.make_exact_report(split, joint.held_inputs(), reason, predict)

    def _describe_memory(self, split: Partition) -> MemoryEstimate | None:
        """Predict for the report alone: a failure must not make the graph exact."""
        try:
            return self._predict_memory(split)
        except Exception:  # noqa: BLE001  the graph is fine, only its description failed
            log.warning("the memory of this graph could not be predicted", exc_info=True)
            return None

    def _predict_memory(self, split: Partition) -> MemoryEstimate:
        return predict_step_memory(split, self.inner, self.settings)


def _announce(report: audit.Report) -> None:
    """Publish a report; its text partitions the graph once more, which must not end training."""
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
    return make_rules(options, channels_last=prefers)


def partition_exact(joint: JointGraph, kwargs: dict[str, Any]) -> Partition:
    """Partition as torch would: its own decompositions for the ops we asked to have whole."""
    module = passes.decompose(
        joint.module, exact_decompositions(), _torch.inductor_decompositions()
    )
    return passes.partition_exact(joint.with_module(module), (), **kwargs)


# An odd constant that spreads the ranks over the seed space [0, 2**62).
_RANK_STRIDE = 0x1E3779B97F4A7C15


def inner_compiler(options: Options, example_inputs: Sequence[Any]) -> str:
    """Return the inner compiler, ``aot_eager`` where Inductor cannot work."""
    tensors = [x for x in example_inputs if isinstance(x, torch.Tensor)]
    on_cpu = all(x.device.type == "cpu" for x in tensors)
    if options.inner == "inductor" and on_cpu and _torch.missing_cpp_compiler() is not None:
        _warn_no_compiler()
        return "aot_eager"
    return options.inner


@functools.cache
def _warn_no_compiler() -> None:
    warnings.warn(
        "xconv: Inductor finds no C++ compiler on this machine "
        f"({_torch.missing_cpp_compiler()}); falling back to inner='aot_eager', which saves "
        "the same bytes but runs slower. Install g++ or clang, or set CXX.",
        stacklevel=2,
    )


def _rank() -> int:
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if ready else 0


@functools.cache
def _source_hash() -> str:
    """Hash of the sources that decide the result, for Inductor's cache key."""
    from pathlib import Path

    digest = hashlib.sha256()
    for package in (Path(passes.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
