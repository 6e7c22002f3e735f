"""Charts are drawn with matplotlib, which only the extra ``benchmark`` installs."""

from __future__ import annotations

from typing import Any

import click


def figure_class(wanted_by: str) -> Any:
    """Return matplotlib's class of figures.

    Args:
        wanted_by: what needs it, for the error.

    Raises:
        click.UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise click.UsageError(
            f"{wanted_by} needs matplotlib, which is not installed: pip install -e '.[benchmark]'"
        ) from error
    return Figure
