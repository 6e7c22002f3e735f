"""The one place where ``xconv_fx`` touches private torch modules.

Each use names the versions it was checked on. Everything else in ``xconv_fx`` imports only
public names, and a linter rule (TID251) keeps it so.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._decomp import get_decompositions
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._functorch import config as functorch_config
from torch._guards import CompileContext, TracingContext
from torch._inductor import (
    config as inductor_config,
)
from torch._inductor import (
    list_mode_options,
    lowering,  # registers ops that Inductor's decompositions call (2.13)
)
from torch._inductor.compile_fx import compile_fx
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import InductorError as InductorError  # for the backend too
from torch._inductor.graph import GraphLowering
from torch._logging._internal import trace_structured

from passes.joint import copy_module
from xconv_fx import (
    _calls,  # noqa: F401  registers how Inductor calls our operators
    _fusion,
)

PartitionFunction = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]


class Partitioner(CustomPartitionerFn):
    """A partition function in the form that Inductor's config takes (2.11 to 2.13)."""

    def __init__(self, function: PartitionFunction, identity: str) -> None:
        """Wrap ``function``; ``identity`` stands for it in Inductor's cache keys."""
        self._function = function
        self._identity = identity

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Partition the joint graph."""
        return self._function(gm, joint_inputs, **kwargs)

    def uuid(self) -> str:
        """Return what distinguishes this partitioner from others."""
        return self._identity

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by identity: Inductor hashes its config, and the function may hold graphs."""
        return (str, (self._identity,))


@dataclass(frozen=True)
class DynamoCall:
    """What Dynamo tells about a graph while it hands it to a backend.

    To be dropped when the call is over: it holds the model and the batch.

    Attributes:
        compiled: stands for the ``torch.compile`` call, one object for all graphs of it; None
            outside of Dynamo.
        frame: number of the code object that the graph was traced from; None outside of Dynamo.
        trace: changes with every graph that Dynamo traced; those of one trace are parts of a graph.
        name: of the traced function.
        ends_in_break: whether Dynamo stopped at a graph break, so that more code follows.
        modules: those among the locals of the traced function: the model, ``self`` of its method.
        inputs: the real tensor behind each input, parameters included; None where unknown.
    """

    compiled: object | None
    frame: int | None
    trace: str | None
    name: str
    ends_in_break: bool
    modules: tuple[torch.nn.Module, ...]
    inputs: tuple[torch.Tensor | None, ...]


def dynamo_call(module: fx.GraphModule) -> DynamoCall:
    """Return what Dynamo tells about the graph that is being compiled (2.13).

    Where a version of torch does not tell it so, the graph is a step by itself.
    """
    arguments = [node.meta.get("grapharg") for node in module.graph.find_nodes(op="placeholder")]
    examples = [getattr(argument, "example", None) for argument in arguments]
    inputs = (
        *module.parameters(),
        *module.buffers(),
        *(x if isinstance(x, torch.Tensor) else None for x in examples),
    )
    try:
        return _call_of(InstructionTranslator.current_tx(), inputs)
    except AttributeError:  # not called by Dynamo, or by another version of it
        return DynamoCall(None, None, None, "graph", False, (), inputs)


def _call_of(translator: Any, inputs: tuple[torch.Tensor | None, ...]) -> DynamoCall:
    trace: Any = CompileContext.current_trace_id()
    code, output = translator.f_code, translator.output
    reason = getattr(output, "compile_subgraph_reason", None)
    return DynamoCall(
        # DDP puts a compiler of its own before it, a new one for each frame.
        compiled=getattr(
            getattr(output.compiler_fn, "__self__", None),
            "backend_compile_fn",
            output.compiler_fn,
        ),
        frame=trace.compile_id.frame_id,
        trace=str(trace),
        name=code.co_name,
        ends_in_break=bool(getattr(reason, "graph_break", False)),
        modules=tuple(x for x in translator.f_locals.values() if isinstance(x, torch.nn.Module)),
        inputs=inputs,
    )


def compile_with_inductor(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    partition_function: PartitionFunction,
    identity: str,
    decompositions: Mapping[Any, Callable[..., Any]],
    patches: Mapping[str, Any],
    *,
    on_backward_failure: Callable[[Exception], None] | None = None,
    on_scheduled: Callable[..., None] | None = None,
    backward_at_once: bool = False,
    interpreted: bool = False,
) -> Any:
    """Compile with Inductor around our partition function.

    The AOTAutograd cache is off: on a hit the partitioner would not run, and there would be
    no report for the graph. Inductor's own cache of generated code stays on. If ``interpreted``,
    the partitioned graphs run op by op in place of what Inductor would make of them (``compile_fx``
    takes another inner compiler, 2.11 to 2.13). So does a backward on which Inductor fails, after
    ``on_backward_failure`` was told: where the backward is compiled when it first runs, the forward
    has run, and there is no other way left. An error in the forward is raised, and so is one in the
    backward if there is no such function.

    ``on_scheduled`` is called with Inductor's graph, and whether it is a backward
    (``is_backward``), as :func:`xconv_fx._fusion.compile_inner` says. A backward is compiled when
    it first runs, where its sizes are static; ``backward_at_once`` has it compiled with the forward
    (2.11 to 2.13).

    Raises:
        InductorError: Inductor failed on the forward, or on a backward as said above.
    """
    inner_compile: Any = (
        _interpret
        if interpreted
        else functools.partial(
            _compile_inner,
            on_backward_failure=on_backward_failure,
            on_scheduled=on_scheduled,
            keeps_saved=backward_at_once,
        )
    )
    config = {**patches, "custom_partitioner_fn": Partitioner(partition_function, identity)}
    settings: dict[str, Any] = {"enable_autograd_cache": False}
    if backward_at_once:
        settings["force_non_lazy_backward_lowering"] = True
    with functorch_config.patch(settings):
        return compile_fx(
            module,
            list(example_inputs),
            config_patches=config,
            inner_compile=inner_compile,
            decompositions=dict(decompositions),
        )


def compile_with_aot_eager(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    partition_function: PartitionFunction,
    decompositions: Mapping[Any, Callable[..., Any]],
) -> Any:
    """Run the partitioned graphs op by op, by default on the decompositions of Inductor."""
    with functorch_config.patch(enable_autograd_cache=False):
        return aot_autograd(
            fw_compiler=_interpret,
            bw_compiler=_interpret,
            partition_fn=partition_function,
            decompositions=dict(decompositions),
        )(module, list(example_inputs))


def mode_settings(mode: str | None) -> dict[str, Any]:
    """Return Inductor's settings for a ``torch.compile`` mode such as "max-autotune"."""
    return dict(list_mode_options(mode)) if mode is not None and mode != "default" else {}


# What decides whether and how long a decoded value is in memory.
_SETTINGS = {
    # The reordering takes a packed value for as large as the loops that read it, so that decoding
    # seems to free memory and is done early (2.13).
    "reorder_for_peak_memory": False,
    # A freed buffer is held back for a later one of its size wherever Inductor's estimate of the
    # peak allows, which knows nothing of the workspace of convolutions: the peak rose by up to a
    # fifth. Memory is taken over in place all the same.
    "allow_buffer_reuse": False,
    # An elementwise value of more operations than this (by default 50 on a CPU, 30 else; above 100
    # in any case) that reads two buffers or more is stored. A decode costs little but has
    # many: the product of a norm's input with its gradient was stored as a whole activation (2.13).
    "realize_opcount_threshold": 100,
    # So is any that reads more buffers than this (by default 12 on a CPU, 8 else). The product of a
    # decoded norm input with its gradient reads 8 or 9, that of a vector with an octonion 16 (off
    # the CPU 12 was measured, 16 was not).
    "realize_acc_reads_threshold": 16,
}


# Off the CPU. A value that several kernels read is stored if it reads more than 4 buffers; a
# decoded norm input reads 6. A kernel moves bytes there for longer than it decodes, and a third of
# those of a backward were such values and the above (2.11). With 8 on the CPU peaks rise by a
# sixth: all loops between two calls are one function, whose buffers are live together (2.13).
_ACCELERATOR_SETTINGS = {"realize_reads_threshold": 8}


def inductor_settings(device_type: str = "cpu") -> dict[str, Any]:
    """Return the settings under which Inductor decodes late, as far as it has them (2.13).

    Args:
        device_type: of the graph, as in ``torch.device.type``.
    """
    settings = _SETTINGS if device_type == "cpu" else {**_SETTINGS, **_ACCELERATOR_SETTINGS}
    return {name: value for name, value in settings.items() if hasattr(inductor_config, name)}


def inductor_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions that Inductor expects to have been applied (2.11 to 2.13)."""
    table: dict[Any, Callable[..., Any]] = select_decomp_table()
    return table


def inductor_prefers_channels_last(module: fx.GraphModule) -> bool:
    """Whether Inductor will lay the convolutions of a forward out channels-last (2.11 to 2.13).

    Its decision counts ``aten.convolution`` nodes only, so a joint graph gives the forward's.
    """
    return bool(GraphLowering.decide_layout_opt(module, is_inference=False))


@contextlib.contextmanager
def without_guards(graph: fx.Graph) -> Iterator[None]:
    """Let nothing that is tried out on a graph guard its dynamic sizes (2.13)."""
    vals = (node.meta.get("val") for node in graph.find_nodes(op="placeholder"))
    modes = (mode for val in vals if (mode := getattr(val, "fake_mode", None)) is not None)
    shape_env = getattr(next(modes, None), "shape_env", None)
    with contextlib.nullcontext() if shape_env is None else shape_env.suppress_guards():
        yield


def decompositions_of(ops: Sequence[Any]) -> dict[Any, Callable[..., Any]]:
    """Return torch's own decompositions of these ops (``torch._decomp``, 2.11 to 2.13)."""
    table: dict[Any, Callable[..., Any]] = get_decompositions(ops)
    return table


@contextlib.contextmanager
def activation_memory_budget(budget: float) -> Iterator[None]:
    """Partition under torch's own memory budget, a share of what it keeps without (2.13)."""
    with functorch_config.patch(activation_memory_budget=budget):
        yield


def max_pool_forms_offsets(window: Sequence[int]) -> bool:
    """Whether Inductor's decomposition of a max pool returns offsets in the window (2.13).

    Small windows become ``prims._low_memory_max_pool_with_offsets``; larger ones stay the aten op
    with int64 indices. A wrong answer costs time or bytes, never exactness.
    """
    falls_back = getattr(lowering, "should_fallback_max_pool_with_indices", None)
    return falls_back is None or not falls_back(list(window), n_dim=len(window))


@functools.cache
def missing_cpp_compiler() -> str | None:
    """Return why Inductor finds no C++ compiler, or None if it finds one."""
    try:
        get_cpp_compiler()
    except Exception as error:  # noqa: BLE001  InvalidCxxCompiler moved between versions
        return str(error) or type(error).__name__
    return None


def emit_artifact(name: str, payload: Callable[[], str]) -> None:
    """Put a text next to torch's own artifacts when TORCH_TRACE is set (2.11 to 2.13)."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=payload,
    )


def _compile_inner(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    on_backward_failure: Callable[[Exception], None] | None,
    on_scheduled: Callable[..., None] | None,
    keeps_saved: bool,
    **settings: Any,
) -> Any:
    is_backward = bool(settings.get("is_backward"))
    context = TracingContext.try_get()
    if is_backward and keeps_saved and context is not None and context.fw_metadata is not None:
        # A backward that may run twice (``retain_graph``) must not write over what was kept; when
        # it first runs AOTAutograd sees whether this one may, and says so (2.11 to 2.13).
        context.fw_metadata.bw_donated_idxs = []
    if on_scheduled is not None:
        settings["on_scheduled"] = functools.partial(on_scheduled, is_backward=is_backward)
    if not is_backward:
        return _fusion.compile_inner(module, example_inputs, **settings)
    as_it_is = copy_module(module)  # Inductor's passes change it
    compile_backward = _without_autocast(functools.partial(_fusion.compile_inner, **settings))
    try:
        return _without_autocast(compile_backward(module, example_inputs))
    except InductorError as error:
        if on_backward_failure is None:
            raise
        on_backward_failure(error.inner_exception)
        return _interpret(as_it_is, example_inputs)


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep autocast around a backward from changing dtypes, as it is compiled and as it runs.

    Its generated code calls ``aten.convolution``, which autocast casts; torch's own has
    ``aten.convolution_backward`` in that place, which it does not (2.11 to 2.13). A backward may be
    compiled when it first runs.
    """
    disable_autocast: Any = torch._C._DisableAutocast

    def run(*args: Any) -> Any:
        with disable_autocast():
            return function(*args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _interpret(
    module: fx.GraphModule, example_inputs: Sequence[Any], **settings: Any
) -> Callable[..., Any]:
    del example_inputs, settings

    def run(args: list[Any]) -> Any:
        return _Interpreter(module).boxed_run(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


class _Interpreter(fx.Interpreter):
    """Takes a view of any layout, as Inductor does: what passes form need not have torch's own."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default
        return super().call_function(target, args, kwargs)
