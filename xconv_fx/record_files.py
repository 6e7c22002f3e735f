"""Files of records, one a graph: the frame that plans and calibrations share.

Owns the JSON around the records (schema, versions) and how a codec is written, by name and
options. Comes in: plain dicts. Goes out: text, or what a caller's function builds of a dict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from passes.plan_record import PlanMismatchError
from passes.rules import Codec
from xconv_fx.codecs import Pack, Probe, Quantize, SignTile, Tile
from xconv_fx.errors import OptionError

_CODECS: Mapping[str, Any] = MappingProxyType(
    {"pack": Pack, "probe": Probe, "quantize": Quantize, "sign_tile": SignTile, "tile": Tile}
)

Record = TypeVar("Record")


def records_text(
    schema: int | str, torch_version: str, package_version: str, graphs: Sequence[Mapping[str, Any]]
) -> str:
    """Return the text of a file.

    Args:
        schema: what tells this kind and version of file from others.
        torch_version: of torch when the records were made.
        package_version: of this package when they were made.
        graphs: the records as plain dicts.
    """
    content = {
        "schema": schema,
        "torch": torch_version,
        "package": package_version,
        "graphs": list(graphs),
    }
    return json.dumps(content, indent=1) + "\n"


def digest_of(text: str) -> str:
    """Return a short hash of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_records(
    path: str | os.PathLike[str],
    schema: int | str,
    build: Callable[[Mapping[str, Any]], Record],
    error_type: Callable[[object, str], ValueError],
) -> tuple[str, str, tuple[Record, ...]]:
    """Read a file.

    Args:
        path: of the file.
        schema: what it must have.
        build: makes a record of a plain dict.
        error_type: the error to raise, from a path and what is wrong.

    Returns:
        The versions of torch and of this package, and the records.

    Raises:
        ValueError: of ``error_type``, if the file cannot be read, is of another schema, is
            damaged, or names a codec that is unknown.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise error_type(path, f"cannot be read: {error}") from error
    found = given.get("schema") if isinstance(given, dict) else None
    if found != schema:
        raise error_type(path, f"expected schema {schema}, got {found!r}")
    try:
        records = tuple(build(graph) for graph in given["graphs"])
        return str(given["torch"]), str(given["package"]), records
    except KeyError as error:
        raise error_type(path, f"the entry {error} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise error_type(path, str(error)) from error


def describe_codec(codec: Codec) -> dict[str, Any]:
    """Return a codec's name and options as a plain dict."""
    name = next(name for name, kind in _CODECS.items() if type(codec) is kind)
    options = {f.name: getattr(codec, f.name) for f in dataclasses.fields(_CODECS[name])}
    return {"name": name, "options": options}


def build_codec(given: Mapping[str, Any]) -> Codec:
    """Undo :func:`describe_codec`.

    Raises:
        passes.plan_record.PlanMismatchError: if the name is unknown or an option is not allowed.
        KeyError: if an entry is missing.
    """
    name = given["name"]
    if name not in _CODECS:
        raise PlanMismatchError(f"codec {name!r} is unknown; known are {list(_CODECS)}")
    options = {
        option: tuple(value) if isinstance(value, list) else value
        for option, value in given["options"].items()
    }
    try:
        codec: Codec = _CODECS[name](**options)
    except (TypeError, OptionError) as error:
        raise PlanMismatchError(f"codec {name!r} with options {options}: {error}") from error
    return codec


def package_version() -> str:
    """Return the version of this package."""
    from xconv_fx import __version__

    return __version__
