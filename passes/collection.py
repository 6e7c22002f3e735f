"""Python's garbage collector while graphs are made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Switch the cyclic garbage collector off, until the end.

    Passes make hundreds of thousands of objects, nearly all of which stay. The collector goes
    through all that there are whenever their number has grown by a quarter, and finds little.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
