"""Python's garbage collector while graphs are made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Switch the cyclic garbage collector off, until the end.

    Passes make hundreds of thousands of objects, nearly all of which stay. The collector goes
    through all that there are whenever their number has grown by a quarter, and finds little; what
    leaves more behind calls :func:`collect_where_off`. Once it is on again it does not go through
    the new ones apart, but counts them among the old.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if not gc.get_freeze_count():  # what the program has frozen itself stays so
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def collect_where_off() -> None:
    """Collect what has just been left behind, where that does not happen by itself."""
    if not gc.isenabled():
        gc.collect()
