"""Regions of a model whose gradients stay exact: the user's side, a context manager.

Goes out: an annotation on the nodes that are traced inside, which ``xconv_fx.rules.regions``
reads. Imports torch and nothing of this package, for a model may import it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.fx import traceback

EXACT_KEY = "xconv_fx.exact"


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Keep what is computed inside exact: no sketch serves its backward.

    ::

        def forward(self, x):
            x = self.stem(x)
            with xconv_fx.exact():
                x = self.neck(x)
            return self.head(x)

    The backward of every operation inside reads exact values (kept, recomputed, or packed
    without loss). Noise of a norm or an activation further on, outside, still reaches it with
    the gradient that flows in. May be nested; does nothing in eager mode and under other
    backends. It needs ``torch.fx.traceback.annotate`` and its support in Dynamo (read in
    2.11, 2.13 and 2.14).

    It reaches what is compiled together with it, and no more: around a call of a compiled model
    it does nothing, and after a graph break inside Dynamo compiles the functions called there
    each by itself, as if outside. ``torch.compile(..., fullgraph=True)`` makes a graph break an
    error. Where the same call on the same tensors, with the same gradient, stands both inside and
    outside, torch merges the two, and which one's wish is followed is not defined.
    """
    if not torch.compiler.is_compiling():
        yield
        return
    with traceback.annotate({EXACT_KEY: True}):
        yield
