"""Reading of ``options["memory_budget"]``: a share, bytes, or bytes with a unit."""

from __future__ import annotations

import re

from xconv_fx.errors import OptionError

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}
_ALLOWED = 'a share in (0, 1], bytes as an int >= 1, or text such as "8GiB"'


def parse_budget(value: object) -> float | int:
    """Read a memory budget.

    Args:
        value: a float in (0, 1], an int of bytes, or a text with a unit: B, KB, KiB, ... TiB.

    Returns:
        The share as a float, or the bytes as an int.

    Raises:
        OptionError: for anything else.
    """
    if isinstance(value, float) and 0.0 < value <= 1.0:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?)B\s*", value, re.IGNORECASE)
        unit = _UNITS.get(match[2].upper()) if match is not None else None
        if match is not None and unit is not None and float(match[1]) * unit >= 1:
            return int(float(match[1]) * unit)
    raise OptionError("memory_budget", value, _ALLOWED)
