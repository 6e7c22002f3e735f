"""Measured costs of sketches in place of modelled ones.

Owns what a measurement of one graph is (:class:`GraphMeasurement`), its form as a plain dict, the
finding of the one that belongs to a graph, and the cost table with it. Measuring is left to
:mod:`passes.measure`.

The harm of sketching a value v with a codec c is the noise that it adds to all gradients g_p of
parameters p, each beside the mini-batch noise N_p of that gradient:

    harm(v, c) = sum over p of  E ||g_p(sketch) - g_p||^2 / N_p

Sketches draw independent random numbers, so that the harms of a plan's sketches add up: over the
number of parameters, their sum is the mean square of (sketch noise / mini-batch noise), which is
what a plan should keep small. So the plan's objective becomes

    bytes + noise_price * scale * sum of harm(v, c)

in place of ``bytes + noise_price * sum of noise * sensitivity * nbytes``. The scale, in bytes,
keeps the meaning of a price: it is the geometric mean of modelled over measured terms, weighted by
the bytes of the values, over all graphs of the model. An octave of harm is worth half a bit an
element in either objective, so with this mean the kept bytes stay about what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from passes.estimate import CodecCost, CostTable, ValueCost
from passes.fingerprint import (
    describe_closest,
    fingerprint,
    graph_lines,
    lines_from_dict,
    without_numbers,
)
from passes.joint import JointGraph
from passes.rules import Codec


@dataclass(frozen=True)
class CodecMeasurement:
    """One way to sketch one value, as measured and as modelled.

    Attributes:
        codec: the codec.
        noise: relative squared error of the decoded value.
        harm: summed over the parameters, see the module.
        modelled_noise: what ``codec.noise`` says.
        modelled_sensitivity: what the rules say.
    """

    codec: Codec
    noise: float
    harm: float
    modelled_noise: float
    modelled_sensitivity: float


@dataclass(frozen=True)
class ValueMeasurement:
    """One forward value that may be sketched.

    Attributes:
        position: of the value in the graph, counted from 0.
        node: its name; for people.
        module: path of the module that computes it; for people.
        nbytes: of the value as it is.
        is_read: whether the backward reads it itself, not only what is derived from it.
        on_path: whether noise in it reaches more than one gradient of a parameter.
        zeros: share of elements that are zero.
        range_to_rms: largest less smallest element over the root mean square; 0 if all are zero.
        kurtosis: fourth central moment over the squared variance; 0 for a constant.
        codecs: the sketches that fit it, most exact first.
    """

    position: int
    node: str
    module: str
    nbytes: int
    is_read: bool
    on_path: bool
    zeros: float
    range_to_rms: float
    kurtosis: float
    codecs: tuple[CodecMeasurement, ...]


@dataclass(frozen=True)
class GradientMeasurement:
    """One gradient that the backward returns.

    Attributes:
        position: among the graph's inputs, counted from 0.
        module: path of the module that reads the input; for people.
        energy: its squared norm.
        noise_energy: squared deviation between mini-batches; the energy itself where the batch
            could not be split.
        weight: what a unit of squared error in it counts in the harm: ``1 / noise_energy``, or 0
            where the gradient vanishes.
    """

    position: int
    module: str
    energy: float
    noise_energy: float
    weight: float


@dataclass(frozen=True)
class GraphMeasurement:
    """One graph.

    Attributes:
        lines: the graph, see :func:`passes.fingerprint.graph_lines`.
        num_groups: groups that the batch was split into; 1 where it could not be split.
        values: in graph order.
        gradients: in the order of the graph's inputs.
    """

    lines: tuple[str, ...]
    num_groups: int
    values: tuple[ValueMeasurement, ...]
    gradients: tuple[GradientMeasurement, ...]

    @property
    def fingerprint(self) -> str:
        """A short hash of the graph."""
        return fingerprint(self.lines)


@dataclass(frozen=True)
class Match:
    """What was found for a graph.

    Attributes:
        measurement: the one to use; None if none fits.
        remark: what differs; None if nothing does.
    """

    measurement: GraphMeasurement | None
    remark: str | None


def find_measurement(measurements: Sequence[GraphMeasurement], joint: JointGraph) -> Match:
    """Return the measurement of a graph like this one, at the same sizes if there is one.

    Harms do not depend on the size of the batch (sketch noise and mini-batch noise both average
    out with it), so a graph that differs in numbers alone is served too, with a remark.

    Args:
        measurements: of any number of graphs.
        joint: an exposed joint graph.
    """
    lines = graph_lines(joint)
    if not measurements:
        return Match(None, "nothing was measured")
    same = next((m for m in measurements if m.lines == lines), None)
    if same is not None:
        return Match(same, None)
    form = without_numbers(lines)
    alike = next((m for m in measurements if without_numbers(m.lines) == form), None)
    closest = describe_closest([m.lines for m in ([alike] if alike else measurements)], lines)
    return Match(alike, closest)


def common_scale(measurements: Sequence[GraphMeasurement]) -> float:
    """Return the bytes that a unit of harm stands for at a noise price of one, see the module.

    0 if nothing was measured that has a harm.
    """
    total, weights = 0.0, 0
    for value in (value for graph in measurements for value in graph.values):
        for found in value.codecs:
            modelled = found.modelled_noise * found.modelled_sensitivity * value.nbytes
            if found.harm > 0.0 and modelled > 0.0:
                total += value.nbytes * math.log(modelled / found.harm)
                weights += value.nbytes
    return math.exp(total / weights) if weights else 0.0


def with_measurements(
    costs: CostTable, joint: JointGraph, measurement: GraphMeasurement, scale: float
) -> tuple[CostTable, tuple[str, ...]]:
    """Return the table with measured noise and sensitivities.

    Codecs that the rules use at any price (a sensitivity of 0: the user chose them) stay so.

    Args:
        costs: the table made by *estimate*.
        joint: the exposed graph it was made for.
        measurement: of a graph that has the same nodes.
        scale: from :func:`common_scale`.

    Returns:
        The table, and the names of values that may be sketched with a codec that was not
        measured: they keep their modelled costs.
    """
    positions = {node.name: i for i, node in enumerate(joint.graph.nodes)}
    found = {value.position: value for value in measurement.values}
    rows = {
        name: _measured_row(value, found.get(positions[name]), scale)
        for name, value in costs.priced().items()
    }
    table = CostTable(tuple(rows.get(value.node) or value for value in costs.values))
    return table, tuple(name for name, row in rows.items() if row is None)


def _measured_row(
    value: ValueCost, measured: ValueMeasurement | None, scale: float
) -> ValueCost | None:
    known = {} if measured is None else {m.codec: m for m in measured.codecs}
    if measured is None or any(cost.codec not in known for cost in value.codecs):
        return None
    costs = tuple(
        _measured_cost(cost, known[cost.codec], scale / measured.nbytes) for cost in value.codecs
    )
    return replace(value, codecs=costs)


def _measured_cost(cost: CodecCost, found: CodecMeasurement, per_byte: float) -> CodecCost:
    sensitivity = found.harm * per_byte / found.noise if found.noise > 0.0 else 0.0
    return replace(cost, noise=found.noise, sensitivity=sensitivity)


def measurement_to_dict(
    measurement: GraphMeasurement, describe: Callable[[Codec], dict[str, Any]]
) -> dict[str, Any]:
    """Return a measurement as plain dicts, lists, texts and numbers.

    Args:
        measurement: the measurement.
        describe: turns a codec into a plain dict.
    """
    values = [
        {
            **{name: getattr(value, name) for name in _VALUE_FIELDS},
            "codecs": [
                {"codec": describe(c.codec), **{name: getattr(c, name) for name in _CODEC_FIELDS}}
                for c in value.codecs
            ],
        }
        for value in measurement.values
    ]
    return {
        "fingerprint": measurement.fingerprint,
        "graph": list(measurement.lines),
        "num_groups": measurement.num_groups,
        "values": values,
        "gradients": [vars(gradient) for gradient in measurement.gradients],
    }


_CODEC_FIELDS = {
    "noise": float,
    "harm": float,
    "modelled_noise": float,
    "modelled_sensitivity": float,
}
_VALUE_FIELDS = {
    "position": int,
    "node": str,
    "module": str,
    "nbytes": int,
    "is_read": bool,
    "on_path": bool,
    "zeros": float,
    "range_to_rms": float,
    "kurtosis": float,
}
_GRADIENT_FIELDS = {
    "position": int,
    "module": str,
    "energy": float,
    "noise_energy": float,
    "weight": float,
}


def measurement_from_dict(
    given: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Codec]
) -> GraphMeasurement:
    """Undo :func:`measurement_to_dict`.

    Args:
        given: what it returned.
        build: turns a plain dict into a codec.

    Raises:
        KeyError: if an entry is missing.
        TypeError: if an entry is of another type.
        ValueError: if an entry is no number, or the fingerprint is not that of the lines.
    """
    values = tuple(
        ValueMeasurement(
            **{name: kind(value[name]) for name, kind in _VALUE_FIELDS.items()},
            codecs=tuple(
                CodecMeasurement(
                    build(c["codec"]),
                    **{name: kind(c[name]) for name, kind in _CODEC_FIELDS.items()},
                )
                for c in value["codecs"]
            ),
        )
        for value in given["values"]
    )
    gradients = tuple(
        GradientMeasurement(**{name: kind(g[name]) for name, kind in _GRADIENT_FIELDS.items()})
        for g in given["gradients"]
    )
    lines = lines_from_dict(given, "measured")
    return GraphMeasurement(lines, int(given["num_groups"]), values, gradients)
