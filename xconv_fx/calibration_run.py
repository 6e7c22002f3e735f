"""Calibrating: one real training step of a model, measured in place of modelled.

Comes in: a model and a batch. Goes out: a :class:`Calibration`; the model, its gradients, buffers
and torch's random state are as they were. The model is compiled like by ``backend="xconv"``, so
that the graphs are the ones that training will have, but runs op by op and keeps everything; the
work on a graph is done by :mod:`passes.measure`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from passes import JointGraph
from passes.measure import MeasureRequest, measure_graph
from passes.measured import GraphMeasurement
from passes.observe import observed_partition
from passes.pipeline import estimate, expose_verified
from xconv_fx import _torch
from xconv_fx.backend import inner_compiler
from xconv_fx.calibration import Calibration
from xconv_fx.errors import CalibrationError
from xconv_fx.exact_partition import partition_exact
from xconv_fx.options import Options, parse_options
from xconv_fx.partition_function import device_type_of, has_convolution, rules_for
from xconv_fx.record_files import package_version
from xconv_fx.rules import tracing_decompositions
from xconv_fx.rules.norms import PATH_SENSITIVITY


def calibrate(
    model: nn.Module,
    *inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
    num_draws: int = 2,
    num_groups: int = 8,
) -> Calibration:
    """Measure what sketching each activation of a model does to its gradients.

    Runs one training step, forward and backward, without changing the model: parameters, their
    ``grad``, buffers and torch's random state are as before. Give a batch like those of training
    and, best, a model that has trained for a while: gradients at initial weights are others. Takes
    the time of some dozens of steps and the memory of an eager step several times over. What was
    measured serves graphs that are alike up to their sizes, so the batch may be a smaller one.

    Args:
        model: in the mode it will train in; not compiled.
        inputs: of its ``forward``.
        loss: takes what the model returns, returns the scalar to be minimised, a mean over the
            batch. None if the model returns the loss itself; any other output is then set against
            random numbers, as if each sample asked for something else. Mini-batch noise is
            measured only where the samples' gradients come in apart, so not where the model
            itself returns the loss.
        options: as for the backend. Give those that training will have.
        num_draws: sketches drawn for each value and codec, at least 1.
        num_groups: groups the batch is split into to find its mini-batch noise, at least 2.

    Returns:
        What was measured, for the option ``calibration``.

    Raises:
        xconv_fx.errors.OptionError: for a bad option.
        CalibrationError: if no graph with sketches ran backward, or for a bad number.
    """
    parsed = parse_options(options)
    for name, given, least in (("num_draws", num_draws, 1), ("num_groups", num_groups, 2)):
        if type(given) is not int or given < least:
            raise CalibrationError(f"{name}: expected an int of at least {least}, got {given!r}")
    observed = _Observed(parsed, num_draws, num_groups)
    compiled = torch.compile(model, backend=observed, dynamic=False)
    with _left_as_it_was(model), torch.enable_grad():
        value = _loss_of(compiled(*inputs), loss)
        wanted = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(value, wanted, allow_unused=True)
    if not observed.found:
        raise CalibrationError(
            "calibrate: expected a graph with a convolution and a backward to measure, got none. "
            "Is the model a convolutional network whose parameters require gradients, given a "
            "batch, and not under torch.compiler.disable?"
        )
    return Calibration(str(torch.__version__), package_version(), tuple(observed.found))


@dataclass(frozen=True)
class _Observed:
    """A backend that runs graphs op by op, and measures each when its backward runs."""

    options: Options
    num_draws: int
    num_groups: int
    found: list[GraphMeasurement] = field(default_factory=list)

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        inner = inner_compiler(self.options, example_inputs)
        partition = functools.partial(self._partition, inner)
        if inner == "aot_eager":
            return _torch.compile_with_aot_eager(
                module, example_inputs, partition, tracing_decompositions()
            )
        return _torch.compile_with_inductor(
            module,
            example_inputs,
            partition,
            "xconv calibration",
            tracing_decompositions(),
            {
                **_torch.inductor_settings(device_type_of(example_inputs)),
                **self.options.inductor,
            },
            interpreted=True,
        )

    def _partition(
        self,
        inner: str,
        module: fx.GraphModule,
        joint_inputs: Sequence[Any],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        del joint_inputs
        joint = JointGraph(module, num_fwd_outputs, tuple(static_lifetime_input_indices or ()))
        if not has_convolution(joint.graph):
            split = partition_exact(joint, kwargs)
            return split.forward, split.backward
        rules = rules_for(self.options, inner, joint)
        exposed = expose_verified(joint, rules)
        request = MeasureRequest(
            joint=exposed,
            costs=estimate(exposed, rules),
            rules=rules,
            num_draws=self.num_draws,
            num_groups=self.num_groups,
            boundary_weight=PATH_SENSITIVITY,
        )
        split = observed_partition(
            exposed, request.kept(), functools.partial(self._run_backward, request)
        )
        return split.forward, split.backward

    def _run_backward(
        self, request: MeasureRequest, given: Mapping[str, Tensor]
    ) -> list[Tensor | None]:
        measurement, gradients = measure_graph(request, given)
        # A graph that a step runs more than once (a shared module) counts as it was met first.
        if all(measurement.lines != known.lines for known in self.found):
            self.found.append(measurement)
        return gradients


def _loss_of(output: Any, loss: Callable[[Any], Tensor] | None) -> Tensor:
    if loss is not None:
        value = loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CalibrationError(f"loss: expected a function that returns a scalar, got {got}")
        return value
    leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    if not leaves:
        raise CalibrationError(
            "calibrate: expected the model to return a tensor with a gradient, got none: do its "
            "parameters require gradients, and is no_grad off in its forward?"
        )
    if len(leaves) == 1 and leaves[0].numel() == 1:
        return leaves[0]
    return torch.stack([(t * torch.randn_like(t)).sum() / len(t) for t in leaves]).sum()


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put buffers and torch's random state back."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
