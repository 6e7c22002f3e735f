"""What XConv tells the passes: which backward ops are linear in what, and which codecs fit.

A new op's rule is a declaration in one of the files here: an entry of ``EXPOSURES`` (a
decomposition of the backward op, numbers kept, that shows the linear use or the mask) and, if
it brings a new linear op, an entry of ``LINEAR_USES``. Ops with an exposure reach the joint
graph whole; where the passes fail, torch's own decomposition takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx

from passes import LinearUse, Rules
from passes.rules import Codec
from xconv_fx import _torch, ops
from xconv_fx.codecs import ALLOWED_BITS, Pack, Probe, Quantize, SignTile
from xconv_fx.machine import default_balance
from xconv_fx.options import Options
from xconv_fx.rules import (
    convolution,
    gates,
    linear,
    max_pool,
    norms,
    pointwise,
    regions,
    shape_only,
)
from xconv_fx.sketches.probing import MODES

DEFAULT_PROBES = 16
# Noise on the path of the gradient reaches every layer upstream: no tiles there.
PATH_LADDER: tuple[Codec, ...] = tuple(Quantize(bits) for bits in ALLOWED_BITS)
# From 8 bits an element to a quarter: in two dimensions the last four, in three those of side 4, of
# which all but the last want more rows than a tile in two dimensions has. 1 bit and tiles whose
# rows are kept as numbers (Tile) are left out: these err less.
LADDER: tuple[Codec, ...] = (
    *(Quantize(bits) for bits in (8, 4, 2)),
    SignTile(4, (7, 25)),
    SignTile(4, (5, 19)),
    SignTile(4, (3, 13)),
    SignTile(4, (2, 6)),
    SignTile(8, (3, 7, 14)),
    SignTile(8, (2, 5, 9)),
    SignTile(8, (1, 2, 5)),
)

EXPOSURES: dict[Any, Callable[..., Any]] = {
    **convolution.EXPOSURES,
    **max_pool.EXPOSURES,
    **norms.EXPOSURES,
    **pointwise.EXPOSURES,
    **shape_only.EXPOSURES,
}
LINEAR_USES: dict[Any, tuple[LinearUse, ...]] = {
    **convolution.LINEAR_USES,
    **gates.LINEAR_USES,
    **linear.LINEAR_USES,
    **norms.LINEAR_USES,
    **pointwise.LINEAR_USES,
}
AUDITED = frozenset({torch.ops.xconv.conv_weight_grad.default})


def make_rules(
    options: Options,
    *,
    channels_last: bool = False,
    device_type: str = "cpu",
    merges_kernels: bool = False,
) -> Rules:
    """Return the rules for these options.

    Args:
        options: the user's.
        channels_last: whether the inner compiler lays 4-D values out channels-last.
        device_type: of the graph, as in ``torch.device.type``.
        merges_kernels: whether the inner compiler does, rather than store every value.
    """
    backward = torch.ops.aten.convolution_backward.default
    exposed = partial(convolution.expose_convolution_backward, channels_last=channels_last)
    return Rules(
        linear=_linear_uses(options),
        exposures={**EXPOSURES, backward: exposed},
        slices=convolution.SLICES,
        lowerings=ops.DECOMPOSITIONS,
        primitives=_torch.inductor_decompositions(),
        codecs=candidate_codecs(options),
        path_codecs=PATH_LADDER,
        expand_seeds=torch.ops.xconv.key_schedule.default,
        wait=convolution.WAIT,
        store=torch.ops.xconv.store.default if merges_kernels else None,
        packing=packing,
        channels_last=channels_last,
        machine_balance=options.machine_balance or default_balance(device_type),
        audited=AUDITED,
        keep_exact=regions.KeepExact(options.exact_patterns),
    )


def packing(node: fx.Node) -> Codec | None:
    """Return the exact codec of a boolean or of a max-pool's window offsets, if it saves bytes."""
    val = node.meta["val"]
    levels = 2 if val.dtype == torch.bool else max_pool.num_offsets(node)
    if levels is None or levels > 2**7:  # an eighth bit saves nothing over the byte it is in
        return None
    codec = Pack(max((levels - 1).bit_length(), 1))
    static = all(isinstance(size, int) for size in val.shape)
    # Groups are padded: a handful of elements takes fewer bytes as it is.
    return None if static and codec.nbytes(val.shape, val.dtype) >= val.nbytes else codec


def candidate_codecs(options: Options) -> tuple[Codec, ...]:
    """Return the sketches for inputs of weight gradients, most exact first."""
    if options.sketch in MODES:
        probes = DEFAULT_PROBES if options.probes is None else options.probes
        return (Probe(options.sketch, probes, options.distribution),)
    if options.sketch == "tile":
        return (options.make_tile(),)
    if options.bits is not None:
        return (Quantize(options.bits),)
    return (Quantize(),) if options.sketch == "quantize" else LADDER


def _linear_uses(options: Options) -> dict[Any, tuple[LinearUse, ...]]:
    """Return the linear uses; a codec chosen by name is used wherever it is smaller."""
    if options.sketch == "auto" and options.bits is None:
        return LINEAR_USES
    return {
        op: tuple(use if use.on_path else replace(use, sensitivity=0.0) for use in uses)
        for op, uses in LINEAR_USES.items()
    }


def tracing_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions for tracing the joint graph: Inductor's, less the exposed ops."""
    table = _torch.inductor_decompositions()
    return {op: function for op, function in table.items() if op not in EXPOSURES}


def exact_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return Inductor's decompositions of the exposed ops, for compiling a graph exactly."""
    table = _torch.inductor_decompositions()
    return {op: table[op] for op in EXPOSURES if op in table}
