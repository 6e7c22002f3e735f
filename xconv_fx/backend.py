"""The backend ``torch.compile(model, backend="xconv")``.

Registered in the entry-point group ``torch_dynamo_backends``, so no import is needed. Comes
in: Dynamo's graph. Goes out: a compiled callable whose backward keeps sketches. This file
binds options and calls the inner compiler: exactly where it fails, again where a budget is not
kept. What is done to a graph is for ``xconv_fx.partition_function``.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from xconv_fx import _torch, audit
from xconv_fx.calibration import resolve_calibration
from xconv_fx.ledger import Ledger
from xconv_fx.options import Options, parse_options
from xconv_fx.partition_function import PartitionFunction, device_type_of
from xconv_fx.plans import resolve_plans
from xconv_fx.rules import tracing_decompositions
from xconv_fx.step_totals import StepReport, make_step_report

log = logging.getLogger("xconv_fx")

# Which graphs belong together: known only here, as Dynamo hands them over one by one.
_ledger = Ledger()


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
        xconv_fx.errors.BudgetError: if a memory budget is out of reach.
        passes.PlanMismatchError: if a recorded plan does not fit the graph.
    """
    parsed = parse_options(options)
    call = _torch.dynamo_call(module)
    step = _ledger.step_of(call)
    place = step.place(call)
    inner = inner_compiler(parsed, example_inputs)
    settings = {
        **_torch.inductor_settings(device_type_of(example_inputs)),
        **_torch.mode_settings(mode),
        **parsed.inductor,
        **(config_patches or {}),
    }
    partition_function = PartitionFunction(
        parsed,
        inner,
        settings,
        _rank(),
        resolve_plans(parsed.plan),
        resolve_calibration(parsed.calibration),
        step,
        place,
    )
    compiled, used = _compile_or_exactly(module, example_inputs, partition_function)
    for correct in (True, False):
        if used.holds_budget():
            break
        again = used.corrected() if correct else used.restarted(forecasts=False)
        compiled, used = _compile_or_exactly(module, example_inputs, again)
    used.publish()
    step.record_inference(place, call, module)
    return compiled


def step_report() -> StepReport | None:
    """Return the totals over the graphs of the model compiled last, or None if there is none."""
    return None if _ledger.last is None else make_step_report(_ledger.last)


def reset() -> None:
    """Forget the reports and what belongs together; called by ``torch.compiler.reset()``."""
    audit.clear_reports()
    _ledger.clear()


xconv.reset = reset  # type: ignore[attr-defined]


def _compile_or_exactly(
    module: fx.GraphModule, example_inputs: Sequence[Any], partition_function: PartitionFunction
) -> tuple[Callable[..., Any], PartitionFunction]:
    """Compile, exactly if the inner compiler fails; return the partition function in use too."""
    try:
        return _compile(module, example_inputs, partition_function), partition_function
    except _torch.InductorError as error:
        if not partition_function.can_be_exact:
            raise
        reason = f"the inner compiler failed: {error.inner_exception!r}"
        log.warning("compiling this graph exactly: %s", reason)
        log.debug("the inner compiler failed", exc_info=True)
        exactly = partition_function.restarted(exact_because=reason)
        return _compile(module, example_inputs, exactly), exactly


def _compile(
    module: fx.GraphModule, example_inputs: Sequence[Any], partition_function: PartitionFunction
) -> Callable[..., Any]:
    if partition_function.inner == "aot_eager":
        compiled = _torch.compile_with_aot_eager(
            module, example_inputs, partition_function, tracing_decompositions()
        )
    else:
        compiled = _torch.compile_with_inductor(
            module,
            example_inputs,
            partition_function,
            partition_function.identity,
            tracing_decompositions(),
            partition_function.settings,
            on_backward_failure=None
            if partition_function.holds_bytes and partition_function.exact_because is None
            else partition_function.note_interpreted,
            on_scheduled=partition_function.schedules.keep,
            backward_at_once=partition_function.holds_bytes,
        )
    return cast(Callable[..., Any], compiled)


def inner_compiler(options: Options, example_inputs: Sequence[Any]) -> str:
    """Return the inner compiler, ``aot_eager`` where Inductor cannot work."""
    on_cpu = device_type_of(example_inputs) == "cpu"
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
