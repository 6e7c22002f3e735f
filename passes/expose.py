"""*expose*: make every linear use and every mask visible; the numbers are kept."""

from __future__ import annotations

from passes import _torch
from passes.decompose import DecompositionTable, decompose
from passes.joint import JointGraph


def expose(
    joint: JointGraph, table: DecompositionTable, inner_table: DecompositionTable
) -> JointGraph:
    """Return the joint graph with the calls in ``table`` taken apart and equal calls merged.

    Args:
        joint: the graph as AOTAutograd traced it; left untouched.
        table: backward ops to functions that show what they read of the forward and how,
            such as one convolution backward as three gradients.
        inner_table: decompositions for the ops that those functions are made of.

    Returns:
        The new joint graph.
    """
    exposed = joint.with_module(decompose(joint.module, table, inner_table))
    exposed.graph.eliminate_dead_code()
    exposed.module.graph = _torch.merge_common_subexpressions(exposed.graph)
    exposed.module.recompile()
    return exposed
