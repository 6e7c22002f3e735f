"""Plans as files: save what was decided for each graph, read it, compare it, replay it.

Comes in: the reports of compiled graphs, or a JSON file. Goes out: :class:`Plans`, which the
option ``plan`` takes in place of planning. Codecs are written by name and options.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

import torch

from passes import JointGraph
from passes.fingerprint import first_difference
from passes.plan_record import PlanRecord, find_record, record_from_dict, record_to_dict
from xconv_fx import audit
from xconv_fx.errors import PlanFileError
from xconv_fx.record_files import (
    build_codec,
    describe_codec,
    digest_of,
    package_version,
    read_records,
    records_text,
)

SCHEMA = 1


@dataclass(frozen=True)
class Plans:
    """The plans of a model's graphs.

    Attributes:
        torch_version: of torch when they were made.
        package_version: of this package when they were made.
        records: one a graph.
    """

    torch_version: str
    package_version: str
    records: tuple[PlanRecord, ...] = field(repr=False)

    @property
    def digest(self) -> str:
        """A short hash of everything in them."""
        return digest_of(_to_text(self))

    def find(self, joint: JointGraph) -> PlanRecord:
        """Return the plan for an exposed joint graph.

        Raises:
            passes.plan_record.PlanMismatchError: if there is none.
        """
        return find_record(self.records, joint)


PlanSource = Union[str, "os.PathLike[str]", Plans]


@dataclass(frozen=True)
class DecisionChange:
    """A value that two plans for one graph treat differently; None where one has no decision."""

    fingerprint: str
    node: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class PlanComparison:
    """What differs between two sets of plans.

    Attributes:
        versions: remarks on versions that differ.
        only_before: graphs of the first alone, each a text.
        only_after: graphs of the second alone; says where the closest of the first differs.
        changes: decisions that differ, in graphs of both.
        kept_nbytes: bytes kept by all plans of the first and of the second.
    """

    versions: tuple[str, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    changes: tuple[DecisionChange, ...]
    kept_nbytes: tuple[int, int]

    @property
    def same(self) -> bool:
        """Whether the same graphs get the same decisions."""
        return not (self.only_before or self.only_after or self.changes)

    def __str__(self) -> str:
        """Render as plain text, a difference a line."""
        before, after = self.kept_nbytes
        lines = [
            *self.versions,
            *(f"only before: {text}" for text in self.only_before),
            *(f"only after: {text}" for text in self.only_after),
            *(
                f"graph {c.fingerprint}, {c.node}: {c.before or 'nothing'} -> "
                f"{c.after or 'nothing'}"
                for c in self.changes
            ),
            f"bytes kept: {before} -> {after}",
        ]
        return "\n".join(["the same plans" if self.same else "the plans differ", *lines])


def save_plans(path: str | os.PathLike[str]) -> Plans:
    """Write the plans of all graphs compiled since the last ``torch.compiler.reset()``.

    Graphs that were compiled exactly have no plan and are left out.

    Args:
        path: of the JSON file to write; one that exists is replaced.

    Returns:
        What was written.

    Raises:
        PlanFileError: if no graph with a plan was compiled, or one graph twice with different
            plans.
    """
    records: dict[str, PlanRecord] = {}
    for record in (r.plan for r in audit.all_reports() if r.plan is not None):
        found = records.setdefault(record.fingerprint, record)
        if found.decisions != record.decisions:
            raise PlanFileError(
                path,
                f"graph {record.fingerprint} was compiled with two different plans; call "
                "torch.compiler.reset() before compiling the model whose plans you want",
            )
    if not records:
        raise PlanFileError(
            path,
            "there is no plan to save: no graph was compiled with backend='xconv' and sketches; "
            "run a training step first, and see xconv_fx.all_reports()",
        )
    plans = Plans(str(torch.__version__), package_version(), tuple(records.values()))
    Path(path).write_text(_to_text(plans), encoding="utf-8")
    return plans


def load_plans(path: str | os.PathLike[str]) -> Plans:
    """Read plans that :func:`save_plans` wrote.

    Raises:
        PlanFileError: if the file cannot be read, is of another schema, is damaged, or names a
            codec that is unknown.
    """
    torch_version, package_version, records = read_records(
        path, SCHEMA, lambda graph: record_from_dict(graph, build_codec), PlanFileError
    )
    return Plans(torch_version, package_version, records)


def resolve_plans(given: PlanSource | None) -> Plans | None:
    """Return the plans that the option ``plan`` stands for.

    Raises:
        PlanFileError: as :func:`load_plans`.
    """
    return given if given is None or isinstance(given, Plans) else load_plans(given)


def compare_plans(before: PlanSource, after: PlanSource) -> PlanComparison:
    """Say what differs between two sets of plans.

    Args:
        before: plans, or the path of a file.
        after: plans, or the path of a file.

    Raises:
        PlanFileError: as :func:`load_plans`.
    """
    one, other = (p if isinstance(p, Plans) else load_plans(p) for p in (before, after))
    ones = {record.fingerprint: record for record in one.records}
    others = {record.fingerprint: record for record in other.records}
    pairs = (
        ("torch", one.torch_version, other.torch_version),
        ("xconv_fx", one.package_version, other.package_version),
    )
    return PlanComparison(
        versions=tuple(f"{name}: {a} -> {b}" for name, a, b in pairs if a != b),
        only_before=tuple(_summary(r) for key, r in ones.items() if key not in others),
        only_after=tuple(
            _summary(r) + _closest(r, one.records) for key, r in others.items() if key not in ones
        ),
        changes=tuple(
            change for key in ones if key in others for change in _changes(ones[key], others[key])
        ),
        kept_nbytes=(_kept_nbytes(one.records), _kept_nbytes(other.records)),
    )


def _changes(before: PlanRecord, after: PlanRecord) -> Iterable[DecisionChange]:
    ones, others = ({d.position: d for d in r.decisions} for r in (before, after))
    for position in sorted({*ones, *others}):
        a, b = ones.get(position), others.get(position)
        texts = [None if d is None else d.text for d in (a, b)]
        found = a or b
        if texts[0] != texts[1] and found is not None:
            yield DecisionChange(before.fingerprint, found.node, texts[0], texts[1])


def _summary(record: PlanRecord) -> str:
    return f"graph {record.fingerprint} ({len(record.lines)} lines)"


def _closest(record: PlanRecord, others: Iterable[PlanRecord]) -> str:
    places = [first_difference(other.lines, record.lines) or 0 for other in others]
    if not places:
        return ""
    at = max(places)
    line = record.lines[at] if at < len(record.lines) else "the end of the graph"
    return f"; the closest before differs from node {at} on, here {line!r}"


def _kept_nbytes(records: Iterable[PlanRecord]) -> int:
    return sum(record.kept_nbytes for record in records)


def _to_text(plans: Plans) -> str:
    graphs = [record_to_dict(record, describe_codec) for record in plans.records]
    return records_text(SCHEMA, plans.torch_version, plans.package_version, graphs)
