"""The tables that a calibration prints: per module what was measured, beside what was modelled.

Comes in: measurements of graphs. Goes out: text.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from passes.measured import CodecMeasurement, GraphMeasurement, ValueMeasurement, common_scale

_WIDTH = 180
_CAPTION = (
    "Sensitivity: measured / modelled. Of each codec: its noise, measured over modelled. Noise in: "
    "one gradient of a parameter (weight), or those of the modules upstream too."
)


def render(graphs: Sequence[GraphMeasurement]) -> str:
    """Return two tables a graph, of its gradients and of the values that the backward reads.

    Args:
        graphs: of one model.
    """
    buffer = io.StringIO()
    console = Console(file=buffer, width=_WIDTH)
    scale = common_scale(graphs)
    for graph in graphs:
        console.print(_gradient_table(graph))
        console.print(_value_table(graph, scale))
    return buffer.getvalue()


def _gradient_table(graph: GraphMeasurement) -> Table:
    table = Table(title=f"graph {graph.fingerprint}: gradients", title_justify="left")
    table.add_column("module", overflow="fold")
    for heading in ("gradients", "share of energy", "mini-batch noise"):
        table.add_column(heading, justify="right")
    total = sum(gradient.energy for gradient in graph.gradients) or 1.0
    for module in dict.fromkeys(gradient.module for gradient in graph.gradients):
        own = [gradient for gradient in graph.gradients if gradient.module == module]
        energy = sum(gradient.energy for gradient in own)
        deviation = sum(gradient.noise_energy for gradient in own)
        noise = f"{math.sqrt(max(deviation, 0.0) / energy):.3f}" if energy > 0.0 else "no gradient"
        table.add_row(module, str(len(own)), f"{energy / total:.2%}", noise)
    if graph.num_groups < 2:
        table.caption = "The batch could not be split: the gradients themselves count as noise."
    return table


def _value_table(graph: GraphMeasurement, scale: float) -> Table:
    read = [value for value in graph.values if value.is_read]
    table = Table(title="values that the backward reads", title_justify="left", caption=_CAPTION)
    for heading in ("module", "value", "noise in"):
        table.add_column(heading, overflow="fold")
    for heading in ("zeros", "range/rms", "kurtosis", "sensitivity"):
        table.add_column(heading, justify="right")
    names = list(dict.fromkeys(m.codec.name for value in read for m in value.codecs))
    for name in names:
        table.add_column(name.replace("[", "\n["), justify="right", no_wrap=True)
    for value in read:
        ratios = {m.codec.name: _ratio(m.noise, m.modelled_noise) for m in value.codecs}
        table.add_row(
            value.module,
            value.node,
            "upstream" if value.on_path else "weight",
            f"{value.zeros:.1%}",
            f"{value.range_to_rms:.1f}",
            f"{value.kurtosis:.1f}",
            _sensitivity(value, scale),
            *(ratios.get(name, "") for name in names),
        )
    return table


def _sensitivity(value: ValueMeasurement, scale: float) -> str:
    """What a unit of the middle codec's noise counts, measured and as the rules have it."""
    found: CodecMeasurement = value.codecs[len(value.codecs) // 2]
    measured = found.harm * scale / (value.nbytes * found.noise) if found.noise > 0.0 else 0.0
    return f"{measured:.2g} / {found.modelled_sensitivity:.2g}"


def _ratio(measured: float, modelled: float) -> str:
    return f"{measured / modelled:.2f}" if modelled > 0.0 else f"{measured:.2g}"
