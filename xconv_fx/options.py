"""The options of ``torch.compile(model, backend="xconv", options={...})``, validated.

Comes in: the user's mapping. Goes out: :class:`Options`, frozen, with every field checked.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xconv_fx.calibration import Calibration, CalibrationSource
from xconv_fx.codecs import ALLOWED_BITS, MAX_PROBES, Tile
from xconv_fx.errors import OptionError
from xconv_fx.memory_size import parse_budget
from xconv_fx.plans import Plans, PlanSource
from xconv_fx.sketches.probing import DISTRIBUTIONS, MODES

INNERS = ("inductor", "aot_eager")
SKETCHES = ("auto", "quantize", "tile", *MODES)

DEFAULT_KEPT = {2: (1,), 4: (1, 2), 8: (1, 2, 4)}

# Bytes, as a share of a value's own, worth paying per unit of relative squared noise. With the
# modelled noise of the ladder this picks 4 bits for most inputs of convolutions and norms, and 8
# for those whose noise counts more.
DEFAULT_NOISE_PRICE = 0.3


@dataclass(frozen=True)
class Options:
    """What a user may set; the defaults need no thought.

    Attributes:
        inner: compiler of the two graphs, ``"inductor"`` or ``"aot_eager"``.
        sketch: ``"auto"`` lets the plan choose from the ladder of codecs; a name fixes the
            codec: ``"quantize"``, ``"tile"`` or one of the paper's probings
            ``"independent"``, ``"multichannel"``, ``"orthogonal"``.
        probes: number of probing vectors r >= 1 of a probing (default 16).
        distribution: of the probing vectors' entries, ``"gaussian"`` or ``"rademacher"``.
        bits: bits an element of stochastic quantisation, or a kept number of a tile (default
            4): 8, 4, 2 or 1; with ``sketch="auto"`` quantisation at that rate is all there is.
        side: side of a tile, 2, 4 (default) or 8 elements.
        kept: rows kept of each level of a tile, coarsest first (default 1, 2, 4 as far as the
            tile has levels).
        exact_modules: a pattern or a list of patterns (as for :mod:`fnmatch`) of module paths,
            as in ``model.named_modules()`` and in the audit. What a matching module and the
            modules in it compute keeps exact gradients, as under :func:`xconv_fx.exact`;
            ``"(root)"`` is what the model's own ``forward`` computes.
        noise_price: lambda >= 0 of the plan: higher buys less noise with more bytes. A codec
            chosen by name is used at any price on the inputs of weight gradients.
        memory_budget: a share in (0, 1] of the bytes that torch's default partition would keep,
            or bytes (an int, or text such as ``"8GiB"``) of the step's predicted peak:
            parameters, batch, gradients, kept values and transients. The plan of least noise
            that fits is taken, whatever ``noise_price``.
        memory_budget_graphs: how many graphs a step of the model has, for a budget in bytes: a
            graph leaves as much to each graph still to come as it keeps itself. By default one
            more where Dynamo stopped at a graph break, else none.
        time_price: what the time of a step counts beside noise, >= 0, so that convolutions, matrix
            products and reductions are computed again in the backward where that is better than
            noise at the same bytes: at 1, a step that takes twice as long counts as much as a
            relative squared noise of 1 in all that the backward reads. Without a budget both are
            paid at ``noise_price``. By default, and at ``math.inf``, nothing is computed again; but
            by default a ``memory_budget`` out of reach is searched once more at 1.
        machine_balance: floating-point operations that the machine does while it moves a byte,
            > 0: what computing again takes is weighed by it. By default a constant of the kind of
            device. What :func:`xconv_fx.measure_machine_balance` returns differs a little each
            time, and plans may with it: measure once, and write the number down.
        strict: whether a budget out of reach is an error; if not, the least that can be reached
            is taken, with a warning.
        plan: plans to carry out in place of planning, from :func:`xconv_fx.load_plans`, or the
            path of a file that :func:`xconv_fx.save_plans` wrote, with the same ``inner``. The
            options that choose sketches then play no part.
        calibration: what :func:`xconv_fx.calibrate` measured, or the path of a file that
            ``Calibration.save`` wrote. Plans then weigh measured noise in place of modelled. A
            graph that was not measured is planned from its shapes, and its report says so.
        inductor: settings of ``torch._inductor.config`` for the inner compiler, as in
            ``torch.compile(..., options=...)`` with ``backend="inductor"``.
    """

    inner: str = "inductor"
    sketch: str = "auto"
    probes: int | None = None
    distribution: str = "gaussian"
    bits: int | None = None
    side: int | None = None
    kept: tuple[int, ...] | None = None
    exact_modules: str | Sequence[str] = ()
    noise_price: float = DEFAULT_NOISE_PRICE
    memory_budget: float | int | str | None = None
    memory_budget_graphs: int | None = None
    time_price: float | None = None
    machine_balance: float | None = None
    strict: bool = True
    plan: PlanSource | None = None
    calibration: CalibrationSource | None = None
    inductor: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            OptionError: naming the option, the value and what is allowed.
        """
        _check_choice("inner", self.inner, INNERS)
        _check_choice("sketch", self.sketch, SKETCHES)
        _check_choice("distribution", self.distribution, DISTRIBUTIONS)
        if self.bits is not None and (type(self.bits) is not int or self.bits not in ALLOWED_BITS):
            raise OptionError("bits", self.bits, f"one of {list(ALLOWED_BITS)}")
        if self.probes is not None and (
            type(self.probes) is not int or not 1 <= self.probes <= MAX_PROBES
        ):
            allowed = f"an int from 1 to {MAX_PROBES}, the number of probing vectors"
            raise OptionError("probes", self.probes, allowed)
        if not _is_number(self.noise_price) or not 0 <= self.noise_price < math.inf:
            raise OptionError("noise_price", self.noise_price, "a finite number >= 0")
        if self.time_price is not None and not (
            _is_number(self.time_price) and self.time_price >= 0
        ):
            raise OptionError("time_price", self.time_price, "a number >= 0, or math.inf")
        if self.machine_balance is not None and not (
            _is_number(self.machine_balance) and 0 < self.machine_balance < math.inf
        ):
            allowed = "a finite number > 0, as xconv_fx.measure_machine_balance() returns"
            raise OptionError("machine_balance", self.machine_balance, allowed)
        if self.memory_budget is not None:
            parse_budget(self.memory_budget)
        graphs = self.memory_budget_graphs
        if graphs is not None and (type(graphs) is not int or graphs < 1):
            raise OptionError("memory_budget_graphs", graphs, "an int >= 1, graphs of a step")
        if not isinstance(self.strict, bool):
            raise OptionError("strict", self.strict, "True or False")
        patterns = self.exact_modules
        if not isinstance(patterns, (str, list, tuple)) or not all(
            isinstance(pattern, str) and pattern for pattern in self.exact_patterns
        ):
            allowed = "a module pattern such as 'layer1.*', or a list of such patterns"
            raise OptionError("exact_modules", patterns, allowed)
        if self.plan is not None and not isinstance(self.plan, (str, os.PathLike, Plans)):
            raise OptionError("plan", self.plan, "a path, or plans from xconv_fx.load_plans")
        given = self.calibration
        if given is not None and not isinstance(given, (str, os.PathLike, Calibration)):
            allowed = "a path, or a calibration from xconv_fx.calibrate"
            raise OptionError("calibration", given, allowed)
        if not isinstance(self.inductor, Mapping):
            raise OptionError("inductor", self.inductor, "a mapping of Inductor settings")
        self._check_together()

    def _check_together(self) -> None:
        probing = self.sketch in MODES
        if self.memory_budget is not None and self.noise_price != DEFAULT_NOISE_PRICE:
            allowed = "only without memory_budget, which finds its own price"
            raise OptionError("noise_price", self.noise_price, allowed)
        if self.memory_budget_graphs is not None and self.budget_nbytes is None:
            allowed = 'only with memory_budget in bytes, such as "8GiB"; a share needs no division'
            raise OptionError("memory_budget_graphs", self.memory_budget_graphs, allowed)
        if self.calibration is not None and self.plan is not None:
            allowed = "only without plan, which decides everything"
            raise OptionError("calibration", self.calibration, allowed)
        if self.probes is not None and not probing:
            allowed = f"only with sketch in {list(MODES)} (here sketch={self.sketch!r})"
            raise OptionError("probes", self.probes, allowed)
        if self.bits is not None and probing:
            allowed = f"only with sketch 'auto', 'quantize' or 'tile' (here {self.sketch!r})"
            raise OptionError("bits", self.bits, allowed)
        if self.distribution != "gaussian" and self.sketch not in ("independent", "multichannel"):
            allowed = f"only with sketch 'independent' or 'multichannel' (here {self.sketch!r})"
            raise OptionError("distribution", self.distribution, allowed)
        for name in ("side", "kept"):
            if getattr(self, name) is not None and self.sketch != "tile":
                allowed = f"only with sketch='tile' (here sketch={self.sketch!r})"
                raise OptionError(name, getattr(self, name), allowed)
        if self.sketch == "tile":
            self.make_tile()

    @property
    def budget_nbytes(self) -> int | None:
        """The bytes of ``memory_budget``; None without one and for a share."""
        budget = None if self.memory_budget is None else parse_budget(self.memory_budget)
        return budget if isinstance(budget, int) else None

    @property
    def exact_patterns(self) -> tuple[str, ...]:
        """The patterns of ``exact_modules``, one or many."""
        given = self.exact_modules
        return (given,) if isinstance(given, str) else tuple(given)

    def make_tile(self) -> Tile:
        """Build the codec of ``sketch="tile"``.

        Raises:
            OptionError: if ``side`` or ``kept`` is not allowed.
        """
        side = 4 if self.side is None else self.side
        bits = 4 if self.bits is None else self.bits
        if self.kept is not None:
            kept = tuple(self.kept) if isinstance(self.kept, list) else self.kept
            return Tile(side, kept, bits)
        return Tile(side, DEFAULT_KEPT.get(side, ()), bits)


def parse_options(given: Mapping[str, Any] | None) -> Options:
    """Turn the user's mapping into :class:`Options`.

    Raises:
        OptionError: for an unknown name (the closest known one is suggested) or a bad value.
    """
    if given is None:
        return Options()
    if not isinstance(given, Mapping):
        raise OptionError("options", given, "a dict of option names to values")
    known = [f.name for f in dataclasses.fields(Options)]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise OptionError(str(name), given[name], f"an option in {known}{hint}")
    return Options(**given)


def _is_number(value: object) -> bool:
    """Whether a value is a number that a float can be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise OptionError(name, value, f"one of {list(allowed)}{hint}")
