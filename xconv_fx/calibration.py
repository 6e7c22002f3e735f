"""Calibrations: what :func:`xconv_fx.calibrate` measured, as a value, a table and a file.

Comes in: measurements of graphs, or a JSON file. Goes out: :class:`Calibration`, which the option
``calibration`` takes: plans then weigh measured noise in place of the noise that shapes suggest.
Running models is left to :mod:`xconv_fx.calibrate`.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from passes import CostTable, JointGraph
from passes.measured import (
    GraphMeasurement,
    common_scale,
    find_measurement,
    measurement_from_dict,
    measurement_to_dict,
    with_measurements,
)
from xconv_fx.calibration_table import render
from xconv_fx.errors import CalibrationFileError
from xconv_fx.record_files import (
    build_codec,
    describe_codec,
    digest_of,
    read_records,
    records_text,
)

# Names the kind of file too: a file of plans has another schema.
SCHEMA = "calibration 1"


@dataclass(frozen=True)
class Calibration:
    """What was measured on the graphs of a model.

    Attributes:
        torch_version: of torch when it was measured.
        package_version: of this package when it was measured.
        graphs: one a graph.
    """

    torch_version: str
    package_version: str
    graphs: tuple[GraphMeasurement, ...] = field(repr=False)

    @functools.cached_property
    def digest(self) -> str:
        """A short hash of everything in it."""
        return digest_of(_to_text(self))

    @functools.cached_property
    def scale(self) -> float:
        """Bytes that a unit of harm stands for, see :func:`passes.measured.common_scale`."""
        return common_scale(self.graphs)

    def adjust(self, joint: JointGraph, costs: CostTable) -> CostTable:
        """Return a graph's costs with what was measured on one like it.

        A graph that was not measured keeps its modelled costs: measuring refines a price and
        promises nothing, and a recompile in the midst of training (a last batch that is smaller)
        must not end it. :meth:`remarks` says so.

        Args:
            joint: an exposed joint graph.
            costs: its modelled costs.
        """
        found = find_measurement(self.graphs, joint).measurement
        return costs if found is None else with_measurements(costs, joint, found, self.scale)[0]

    def remarks(self, joint: JointGraph, costs: CostTable) -> list[str]:
        """Say, for the report, what of a graph's costs was measured.

        Args:
            joint: an exposed joint graph.
            costs: its costs, modelled or adjusted.
        """
        match = find_measurement(self.graphs, joint)
        if match.measurement is None:
            return [
                "this graph is not in the calibration: noise is modelled from its shapes; "
                f"{match.remark}. Calibrate with the same options, on a batch like this one"
            ]
        remarks = [
            f"noise and sensitivities are measured (calibration {self.digest}, graph "
            f"{match.measurement.fingerprint})"
        ]
        if match.remark is not None:
            remarks.append(f"they were measured at other sizes: {match.remark}")
        unmeasured = with_measurements(costs, joint, match.measurement, self.scale)[1]
        if unmeasured:
            remarks.append(
                f"{len(unmeasured)} values may get a codec that was not measured and keep their "
                f"modelled noise ({', '.join(unmeasured[:3])}...): calibrate with the same options"
            )
        return remarks

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file; one that exists is replaced.

        Args:
            path: of the file.
        """
        Path(path).write_text(_to_text(self), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file that :meth:`save` wrote.

        Raises:
            CalibrationFileError: if the file cannot be read, is of another schema, is damaged,
                or names a codec that is unknown.
        """
        torch_version, package_version, graphs = read_records(
            path,
            SCHEMA,
            lambda graph: measurement_from_dict(graph, build_codec),
            CalibrationFileError,
        )
        return cls(torch_version, package_version, graphs)

    def __str__(self) -> str:
        """Render as tables, see :func:`xconv_fx.calibration_table.render`."""
        return render(self.graphs)


CalibrationSource = Union[str, "os.PathLike[str]", Calibration]


def resolve_calibration(given: CalibrationSource | None) -> Calibration | None:
    """Return the calibration that the option ``calibration`` stands for.

    Raises:
        CalibrationFileError: as :meth:`Calibration.load`.
    """
    return given if given is None or isinstance(given, Calibration) else Calibration.load(given)


def _to_text(calibration: Calibration) -> str:
    graphs = [measurement_to_dict(graph, describe_codec) for graph in calibration.graphs]
    return records_text(SCHEMA, calibration.torch_version, calibration.package_version, graphs)
