"""Rows of a cost table as far as the planner looks at them."""

import dataclasses

from passes.estimate import ValueCost


@dataclasses.dataclass(frozen=True)
class NamedCodec:
    name: str
    exact: bool = False
    needs_seed: bool = True


def value_cost(node, nbytes=1000, **changes):
    """A value that a costly op makes and nobody reads, but for the changes."""
    base = ValueCost(
        node=node,
        inputs=(),
        nbytes=nbytes,
        size_known=True,
        keep_nbytes=nbytes,
        recompute_cost=None,
        ban_reason="costly op",
        must_recompute=False,
        raw_users=(),
        linear_users=(),
        codecs=(),
        unsketchable=None,
        packing=None,
        is_input=False,
    )
    return dataclasses.replace(base, **changes)
