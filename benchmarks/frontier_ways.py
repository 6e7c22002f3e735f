"""The ways to run a training step that the frontier compares.

In: a model. Out: for each way a callable that maps a batch to logits, with the model's own
parameters. Compiled ways are compiled in isolation from each other, so that none runs code that
was compiled for another, and none is compiled again when another is. What is measured of them is
left to `benchmarks.frontier`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.checkpointed_blocks import checkpoint_blocks
from benchmarks.rounded_saves import RoundedSaves
from xconv_fx import _torch
from xconv_fx.backend import xconv

Run = Callable[[Tensor], Tensor]

BASELINE = "inductor"
"""What the ratios are taken to."""

SKETCHED_FAMILIES = ("paper", "xconv")
"""Those compiled by ``backend="xconv"``, whose gradients are calls of convolutions."""

TORCH_BUDGETS = (0.7, 0.5, 0.3, 0.1)
XCONV_BUDGETS = (0.5, 0.3, 0.15, 0.08, 0.05)
PROBES = (2, 16, 64)


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        name: how the command and the results call it.
        family: what the chart colours alike: ``stock``, ``budget``, ``checkpoint``, ``fp8``,
            ``rounding``, ``paper`` or ``xconv``.
        note: what it does, a sentence.
        build: makes its callable from a model in training mode, on whose parameters it runs.
        exact: whether it computes the gradient exactly, by storing or recomputing.
        random: whether two steps on one batch differ.
        sketched: whether it is compiled by ``backend="xconv"``.
    """

    name: str
    family: str
    note: str
    build: Callable[[nn.Module], Run]
    exact: bool = False
    random: bool = False
    sketched: bool = False


@dataclass(frozen=True)
class BudgetRun:
    """A compiled model that runs, and so is first compiled, under torch's memory budget."""

    compiled: Run
    budget: float

    def __call__(self, x: Tensor) -> Tensor:
        """Run the model on a batch ``(N, ...)``."""
        with _torch.activation_memory_budget(self.budget):
            return self.compiled(x)


def _eager(model: nn.Module) -> Run:
    return model


def _compiled(model: nn.Module, backend: Any = BASELINE, **options: Any) -> Run:
    def run(x: Tensor, model: nn.Module = model) -> Tensor:
        result: Tensor = model(x)
        return result

    # Dynamo keeps what it compiled with the code: each way has a copy of it.
    run.__code__ = run.__code__.replace()
    compiled: Run = torch.compile(
        run, backend=backend, fullgraph=True, dynamic=False, options=options or None
    )
    return compiled


def _budget(model: nn.Module, budget: float) -> Run:
    return BudgetRun(_compiled(model), budget)


def _checkpointed(model: nn.Module) -> Run:
    return _compiled(checkpoint_blocks(model))


def _fp8(model: nn.Module, quant_type: str, use_scaling: bool) -> Run:
    settings = {
        "allowed_dtypes": "torch.float32",
        # Smaller ones are the statistics of norms; by default only those from 100 MB are taken.
        "size_in_mb": 0.01,
        "quant_type": quant_type,
        # Both ways of reading a missing one occur, False in the backward and True elsewhere (2.13).
        "use_scaling": use_scaling,
        "exclude_primals": True,
    }
    passes = {"activation_quantization_aten_pass": settings}
    return _compiled(model, post_grad_fusion_options=passes)


def _rounded(model: nn.Module, bits: int) -> Run:
    return RoundedSaves(model, bits)


def _sketched(model: nn.Module, **options: Any) -> Run:
    return _compiled(model, xconv, **options)


def _stock_ways() -> list[Way]:
    ways = [
        Way("eager", "stock", "eager autograd", _eager, exact=True),
        Way(BASELINE, "stock", "torch.compile with its default backend", _compiled, exact=True),
    ]
    for budget in TORCH_BUDGETS:
        note = f"inductor with torch's activation_memory_budget {budget:g}"
        build = functools.partial(_budget, budget=budget)
        ways.append(Way(f"budget-{budget:g}", "budget", note, build, exact=True))
    note = "torch.utils.checkpoint around every block, then inductor"
    ways.append(Way("checkpoint", "checkpoint", note, _checkpointed, exact=True))
    return ways


def _lossy_ways() -> list[Way]:
    note = "torch's fp8 activation pass, {}, on saved values from 10 kB; deterministic, so biased"
    ways = []
    for name, quant_type, scaled, kind in (
        ("fp8", "torch.float8_e5m2", False, "e5m2 as is its default"),
        ("fp8-scaled", "torch.float8_e4m3fn", True, "e4m3 with a scale a row"),
    ):
        build = functools.partial(_fp8, quant_type=quant_type, use_scaling=scaled)
        ways.append(Way(name, "fp8", note.format(kind), build))
    for bits in (4, 2):
        note = (
            f"every tensor that eager autograd saves, of two or more dimensions, stochastically "
            f"rounded to {bits} bits by eager kernels; biased where it is not read linearly"
        )
        build = functools.partial(_rounded, bits=bits)
        ways.append(Way(f"rounding-{bits}b", "rounding", note, build, random=True))
    return ways


def _sketched_ways() -> list[Way]:
    ways = []
    for probes in PROBES:
        note = f"the paper's probing of inputs with r = {probes} in xconv, else xconv's defaults"
        build = functools.partial(_sketched, sketch="independent", probes=probes)
        ways.append(Way(f"probing-{probes}", "paper", note, build, random=True, sketched=True))
    ways.append(Way("xconv", "xconv", "its defaults", _sketched, random=True, sketched=True))
    for budget in XCONV_BUDGETS:
        build = functools.partial(_sketched, memory_budget=budget, strict=False)
        note = f"memory_budget {budget:g}, or the least that it reaches"
        ways.append(
            Way(f"xconv-{budget:g}", "xconv", note, build, random=True, sketched=True),
        )
    return ways


WAYS = (*_stock_ways(), *_lossy_ways(), *_sketched_ways())
"""All ways, in the order in which they are measured."""


def find_ways(names: tuple[str, ...]) -> tuple[Way, ...]:
    """Find ways by their names; the baseline is always among them.

    Args:
        names: some of those in :data:`WAYS`; empty for all.

    Returns:
        The ways, in the order of :data:`WAYS`.

    Raises:
        ValueError: there is none of a name; the text lists all.
    """
    known = [way.name for way in WAYS]
    for name in names:
        if name not in known:
            raise ValueError(f"frontier: unknown way {name!r}; known: {', '.join(known)}")
    return tuple(way for way in WAYS if not names or way.name in (*names, BASELINE))
