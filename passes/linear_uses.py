"""Linear uses: which backward nodes read a forward value linearly, and how much its noise counts.

Comes in: a joint graph's nodes and the rules. Goes out: uses, settled where a rule leaves open
whether they are on the path of the gradient. Changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from passes.derive import sizes_of
from passes.joint import argument_nodes, hinted_shape, tensor_nbytes, tensor_val
from passes.op_traits import is_view
from passes.rules import LinearUse, Rules

# A weight gradient sums over the positions of its input, and independent noise averages out: its
# relative error falls with their number. Inputs with fewer than this many are priced up in
# proportion: a classifier's features, the last stages at small images. They weigh little in bytes.
_FEW_POSITIONS = 8192


def split_uses(
    node: fx.Node, backward: dict[fx.Node, None], rules: Rules
) -> tuple[list[tuple[fx.Node, LinearUse]], list[str]]:
    """Return the linear uses in the backward, one an argument, and the other users' names.

    A linear use that was asked to be exact counts among the others.
    """
    linear: list[tuple[fx.Node, LinearUse]] = []
    raw: list[str] = []
    for user in node.users:
        if user not in backward:
            continue
        uses = {use.arg: use for use in rules.linear.get(user.target, ())}
        positions = [i for i, arg in enumerate(user.args) if node in argument_nodes(arg)]
        in_kwargs = any(node in argument_nodes(arg) for arg in user.kwargs.values())
        use = uses.get(positions[0]) if len(positions) == 1 and not in_kwargs else None
        if use is not None and use.same_size and sizes_of(node) != sizes_of(user):
            use = None
        if use is not None and rules.asked_exact(user) is None:
            linear.append((user, _settle(user, use)))
        else:
            raw.append(user.name)
    return linear, raw


def sensitivity_of(user: fx.Node, use: LinearUse) -> float:
    """Raise a use's sensitivity where it is a weight gradient over few positions."""
    argument = user.args[use.arg]
    val = tensor_val(argument) if isinstance(argument, fx.Node) else None
    if use.on_path or val is None or tensor_nbytes(val) is None:
        return use.sensitivity
    return use.sensitivity * max(1.0, _FEW_POSITIONS / num_positions(hinted_shape(val)))


def num_positions(shape: Sequence[int]) -> int:
    """Count the positions that a weight gradient sums over: all dimensions but the channels.

    Args:
        shape: ``(N, C, *spatial)``, or ``(rows, features)``.
    """
    return max(math.prod(shape) // max(shape[1] if len(shape) > 2 else shape[-1], 1), 1)


def _settle(user: fx.Node, use: LinearUse) -> LinearUse:
    """Find out from the graph what a rule leaves open: whether the use is on the path."""
    if use.on_path is not None:
        return use
    on_path = _reaches_further_gradients(user)
    sensitivity = use.path_sensitivity if on_path else use.sensitivity
    return replace(use, on_path=on_path, sensitivity=sensitivity)


def _reaches_further_gradients(user: fx.Node) -> bool:
    """Whether a backward node's result does more than become an output, viewed or cast."""
    queue, seen = [user], {user}
    while queue:
        node = queue.pop()
        moved = is_view(node.target) if isinstance(node.target, torch._ops.OpOverload) else False
        if node is not user and node.op != "output" and not moved and not _is_cast(node):
            return True
        queue.extend(follower for follower in node.users if follower not in seen)
        seen.update(node.users)
    return False


def _is_cast(node: fx.Node) -> bool:
    return str(node.target).startswith(("prims.convert_element_type", "aten._to_copy"))
