"""Operators that make sketches and masks and rebuild tensors from them.

In eager mode each calls its function in ``xconv_fx.sketches``; in lowering the same function is
traced to aten. None is differentiable: they appear where gradients have been formed already.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from xconv_fx.ops.registry import define
from xconv_fx.sketches import (
    bitpack,
    blocks,
    octonions,
    probing,
    quantize,
    randomness,
    sign_tiles,
    tile_rows,
    tiles,
)
from xconv_fx.sketches.layout import Size, inverse, planes_order, stack_order


def empty_in_order(
    like: Tensor, size: Size, dtype: torch.dtype, dim_order: Sequence[int]
) -> Tensor:
    """Allocate a dense tensor with a given memory order.

    Args:
        like: gives the device.
        size: shape of the result.
        dtype: dtype of the result.
        dim_order: dimensions of the result from outermost to innermost in memory.

    Returns:
        Uninitialised tensor of shape ``size``.
    """
    ordered = like.new_empty([size[d] for d in dim_order], dtype=dtype)
    return ordered.permute(inverse(dim_order))


def _fake_pack(x: Tensor, bits: int, dim_order: Sequence[int]) -> Tensor:
    _check_order(dim_order, x.dim())
    if x.dtype.is_floating_point or x.dtype.is_complex:
        raise TypeError(f"xconv::pack expects booleans or integers, got {x.dtype}")
    size = bitpack.packed_size(x.shape, 8 // bits, dim_order)
    return empty_in_order(x, size, torch.uint8, dim_order)


def _fake_unpack(
    packed: Tensor, size: Size, dtype: torch.dtype, bits: int, dim_order: Sequence[int]
) -> Tensor:
    del bits
    _check_order(dim_order, len(size))
    return empty_in_order(packed, size, dtype, dim_order)


def _fake_quantize(
    x: Tensor, seed: Tensor, bits: int, group_size: int, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    del seed
    _check_order(dim_order, x.dim())
    size = bitpack.packed_size(x.shape, 8 // bits, dim_order)
    grid = blocks.grid_of(x.shape, blocks.choose_blocks(x.shape, group_size))
    dtype = quantize.compute_dtype(x.dtype)
    codes = empty_in_order(x, size, torch.uint8, dim_order)
    offset = empty_in_order(x, grid, dtype, dim_order)
    return codes, offset, empty_in_order(x, grid, dtype, dim_order)


def _fake_dequantize(
    codes: Tensor,
    offset: Tensor,
    step: Tensor,
    seed: Tensor,
    size: Size,
    dtype: torch.dtype,
    bits: int,
    dim_order: Sequence[int],
) -> Tensor:
    del offset, step, seed, bits
    _check_order(dim_order, len(size))
    return empty_in_order(codes, size, dtype, dim_order)


def _fake_probe(x: Tensor, seed: Tensor, mode: str, probes: int, distribution: str) -> Tensor:
    del seed, distribution
    size = [x.shape[0], probes] if mode == "multichannel" else [x.shape[0], x.shape[1], probes]
    return x.new_empty(size, dtype=quantize.compute_dtype(x.dtype))


def _fake_reconstruct(
    sketch: Tensor, seed: Tensor, size: Size, dtype: torch.dtype, mode: str, distribution: str
) -> Tensor:
    del seed, mode, distribution
    return sketch.new_empty(list(size), dtype=dtype)


def _fake_tile(
    x: Tensor, seed: Tensor, side: int, kept: Sequence[int], dim_order: Sequence[int]
) -> Tensor:
    del seed
    _check_order(dim_order, x.dim())
    size = [tile_rows.num_planes(x.dim() - 2, kept), *tiles.grid_of(x.shape, side)]
    return empty_in_order(x, size, quantize.compute_dtype(x.dtype), planes_order(dim_order))


def _fake_untile(
    planes: Tensor,
    seed: Tensor,
    size: Size,
    dtype: torch.dtype,
    side: int,
    kept: Sequence[int],
    dim_order: Sequence[int],
) -> Tensor:
    del seed, side, kept
    _check_order(dim_order, len(size))
    return empty_in_order(planes, size, dtype, dim_order)


def _fake_sign_tile(
    x: Tensor, seed: Tensor, side: int, kept: Sequence[int], dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    del seed
    _check_order(dim_order, x.dim())
    count = octonions.num_vectors(tile_rows.num_planes(x.dim() - 2, kept))
    grid = tiles.grid_of(x.shape, side)
    signs = empty_in_order(x, [count, *grid], torch.uint8, stack_order(dim_order))
    size = [grid[0], (1 + count) * grid[1], *grid[2:]]
    return signs, empty_in_order(x, size, quantize.compute_dtype(x.dtype), dim_order)


def _fake_sign_untile(
    signs: Tensor,
    scalars: Tensor,
    seed: Tensor,
    size: Size,
    dtype: torch.dtype,
    side: int,
    kept: Sequence[int],
    dim_order: Sequence[int],
) -> Tensor:
    del signs, seed, side, kept
    _check_order(dim_order, len(size))
    return empty_in_order(scalars, size, dtype, dim_order)


def _fake_draw_signs(
    seed: Tensor, grid: Size, side: int, kept: Sequence[int], dim_order: Sequence[int]
) -> tuple[Tensor, Tensor]:
    signs, divisors = tiles.rows_sizes(grid, side, kept, dim_order)
    return seed.new_empty(signs, dtype=torch.int32), seed.new_empty(divisors, dtype=torch.int32)


def _fake_draw_octonions(seed: Tensor, grid: Size, count: int) -> Tensor:
    size = [count, octonions.DIM, *octonions.octonions_grid(grid)]
    return seed.new_empty(size, dtype=torch.float32)


def _check_order(dim_order: Sequence[int], num_dims: int) -> None:
    if sorted(dim_order) != list(range(num_dims)):
        raise ValueError(
            f"dim_order {list(dim_order)} is no permutation of the {num_dims} dimensions"
        )


def _in_order(x: Tensor, dim_order: Sequence[int]) -> Tensor:
    return x.permute(list(dim_order)).contiguous().permute(inverse(dim_order))


def _pack(x: Tensor, bits: int, dim_order: Sequence[int]) -> Tensor:
    return _in_order(bitpack.pack(x, bits, dim_order), dim_order)


def _unpack(
    packed: Tensor, size: Size, dtype: torch.dtype, bits: int, dim_order: Sequence[int]
) -> Tensor:
    return _in_order(bitpack.unpack(packed, size, dtype, bits, dim_order), dim_order)


def _quantize(
    x: Tensor, seed: Tensor, bits: int, group_size: int, dim_order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    codes, offset, step = quantize.quantize(x, seed, bits, group_size, dim_order)
    return _in_order(codes, dim_order), _in_order(offset, dim_order), _in_order(step, dim_order)


def _dequantize(
    codes: Tensor,
    offset: Tensor,
    step: Tensor,
    seed: Tensor,
    size: Size,
    dtype: torch.dtype,
    bits: int,
    dim_order: Sequence[int],
) -> Tensor:
    x = quantize.dequantize(codes, offset, step, seed, size, dtype, bits, dim_order)
    return _in_order(x, dim_order)


def _probe(x: Tensor, seed: Tensor, mode: str, probes: int, distribution: str) -> Tensor:
    return probing.probe(x, seed, mode, probes, distribution).contiguous()


def _fake_key_schedule(seeds: Tensor) -> Tensor:
    return seeds.new_empty([seeds.shape[0], randomness.SCHEDULE_LENGTH], dtype=torch.int32)


def _wait(kept: Tensor, other: Tensor) -> Tensor:
    """Copy a small tensor once another one is there; not lowered, so that its result comes last."""
    del other
    return kept.clone()


def _store(x: Tensor, dim_order: Sequence[int] | None = None) -> Tensor:
    """Copy a tensor; Inductor stores it and reads it from there, with no copy (``_calls``)."""
    return x.clone() if dim_order is None else _in_order(x, dim_order).clone()


key_schedule = define(
    "key_schedule(Tensor seeds) -> Tensor",
    randomness.key_schedule,
    _fake_key_schedule,
    randomness.key_schedule,
)
pack = define(
    "pack(Tensor x, int bits, int[] dim_order) -> Tensor",
    _pack,
    _fake_pack,
    bitpack.pack,
)
unpack = define(
    "unpack(Tensor packed, SymInt[] size, ScalarType dtype, int bits, int[] dim_order) -> Tensor",
    _unpack,
    _fake_unpack,
    bitpack.unpack,
)
quantize_op = define(
    "quantize(Tensor x, Tensor seed, int bits, int group_size, int[] dim_order)"
    " -> (Tensor, Tensor, Tensor)",
    _quantize,
    _fake_quantize,
    quantize.quantize,
)
dequantize = define(
    "dequantize(Tensor codes, Tensor offset, Tensor step, Tensor seed, SymInt[] size,"
    " ScalarType dtype, int bits, int[] dim_order) -> Tensor",
    _dequantize,
    _fake_dequantize,
    quantize.dequantize,
)
probe = define(
    "probe(Tensor x, Tensor seed, str mode, int probes, str distribution) -> Tensor",
    _probe,
    _fake_probe,
    _probe,
)
reconstruct = define(
    "reconstruct(Tensor sketch, Tensor seed, SymInt[] size, ScalarType dtype, str mode,"
    " str distribution) -> Tensor",
    probing.reconstruct,
    _fake_reconstruct,
    probing.reconstruct,
)
# Not lowered: what is drawn is small, and drawing it takes many operations, of which Inductor's
# compiler would be given as many lines for every tensor that is sketched.
draw_signs = define(
    "draw_signs(Tensor seed, SymInt[] grid, int side, int[] kept, int[] dim_order)"
    " -> (Tensor, Tensor)",
    tiles.draw_signs,
    _fake_draw_signs,
)
draw_octonions = define(
    "draw_octonions(Tensor seed, SymInt[] grid, int count) -> Tensor",
    octonions.draw_octonions,
    _fake_draw_octonions,
)
tile = define(
    "tile(Tensor x, Tensor seed, int side, int[] kept, int[] dim_order) -> Tensor",
    tiles.tile,
    _fake_tile,
    functools.partial(tiles.tile, draw=draw_signs),
)
untile = define(
    "untile(Tensor planes, Tensor seed, SymInt[] size, ScalarType dtype, int side, int[] kept,"
    " int[] dim_order) -> Tensor",
    tiles.untile,
    _fake_untile,
    functools.partial(tiles.untile, draw=draw_signs),
)
wait = define("wait(Tensor kept, Tensor other) -> Tensor", _wait, _wait)
store = define(
    "store(Tensor x, int[]? dim_order=None) -> Tensor",
    _store,
    _store,
    layout=torch.Tag.flexible_layout,
)
sign_tile = define(
    "sign_tile(Tensor x, Tensor seed, int side, int[] kept, int[] dim_order) -> (Tensor, Tensor)",
    sign_tiles.sign_tile,
    _fake_sign_tile,
    functools.partial(sign_tiles.sign_tile, draw_signs=draw_signs, draw_octonions=draw_octonions),
)
sign_untile = define(
    "sign_untile(Tensor signs, Tensor scalars, Tensor seed, SymInt[] size, ScalarType dtype,"
    " int side, int[] kept, int[] dim_order) -> Tensor",
    sign_tiles.sign_untile,
    _fake_sign_untile,
    functools.partial(sign_tiles.sign_untile, draw_signs=draw_signs, draw_octonions=draw_octonions),
)
