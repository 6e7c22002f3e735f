"""Which backward nodes the user asked to keep exact: by :func:`xconv_fx.exact`, or by module.

Comes in: nodes of a joint graph with torch's provenance (``meta["custom"]`` and the module
stacks, which AOTAutograd copies from a forward node to its backward). Goes out: reasons.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from passes.provenance import module_of
from xconv_fx.regions import EXACT_KEY

# As many module paths as a note lists before it says how many more there are.
_MAX_LISTED = 8


@dataclass(frozen=True)
class KeepExact:
    """The rule ``keep_exact`` of :class:`passes.Rules`.

    Attributes:
        patterns: the patterns of the option ``exact_modules``.
    """

    patterns: tuple[str, ...] = ()

    def __call__(self, node: fx.Node) -> str | None:
        """Return why the uses of a backward node stay exact, or None if they need not."""
        if (node.meta.get("custom") or {}).get(EXACT_KEY):
            return "the user asked for it: inside xconv_fx.exact()"
        if not self.patterns:
            return None
        path = module_of(node)
        found = next((p for p in self.patterns if matches(p, path)), None)
        return None if found is None else f"the user asked for it: exact_modules={found!r}"


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches the path of a module or of one that it is part of.

    Args:
        pattern: as for :func:`fnmatch.fnmatchcase`; ``*`` matches dots too.
        path: as :func:`xconv_fx.audit.module_of` returns it.
    """
    parts = path.split(".")
    enclosing = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return any(fnmatch.fnmatchcase(module, pattern) for module in enclosing)


def unmatched_patterns(patterns: Sequence[str], graph: fx.Graph) -> list[str]:
    """Return a remark for each pattern that matches no module of a graph.

    That is no error: a model may have several graphs.
    """
    if not patterns:
        return []
    calls = [node for node in graph.nodes if node.op == "call_function"]
    paths = sorted({module_of(node) for node in calls} - {"unknown"})
    more = f" and {len(paths) - _MAX_LISTED} more" if len(paths) > _MAX_LISTED else ""
    listed = ", ".join(paths[:_MAX_LISTED]) + more
    return [
        f"exact_modules={pattern!r} matches no module of this graph, which has {listed}"
        for pattern in patterns
        if not any(matches(pattern, path) for path in paths)
    ]
