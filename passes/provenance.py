"""Where in the user's model a node comes from: source line and module path.

Comes in: a node with the metadata that Dynamo leaves on it. Goes out: text for reports.
"""

from __future__ import annotations

import re

from torch import fx


def source_of(node: fx.Node) -> str:
    """Return ``file:line: text`` of the model's source line behind a node, or ``unknown``."""
    trace = node.meta.get("stack_trace") or ""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', trace)
    if not frames:
        return "unknown"
    path, line, text = frames[-1]
    return f"{path}:{line}: {text.strip()}"


def module_of(node: fx.Node) -> str:
    """Return the path of the innermost module that a node was traced in, or ``unknown``."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return "unknown" if source_of(node) == "unknown" else "(root)"
    path, _ = list(stack.values())[-1]
    path = re.sub(r"getattr\((.*?), '([^']+)'\)", r"\1.\2", str(path))
    path = re.sub(r"^[LG]\['\w+'\]|^[LG]\.\w+|\._modules\b", "", path)
    path = re.sub(r"\['?([^'\]]+)'?\]", r".\1", path)
    return path.strip(".") or "(root)"
