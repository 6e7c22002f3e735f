"""The codec of tiles: means and a few drawn rows of each, quantised; for rates below 2 bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xconv_fx.codecs.checks import floating_only, is_int, required
from xconv_fx.codecs.quantize import ALLOWED_BITS, Quantize
from xconv_fx.errors import OptionError
from xconv_fx.ops import sketching
from xconv_fx.sketches.layout import Size, planes_order
from xconv_fx.sketches.quantize import compute_dtype
from xconv_fx.sketches.tile_rows import kept_rows, num_planes, num_rows
from xconv_fx.sketches.tiles import grid_of

ALLOWED_SIDES = (2, 4, 8)
MAX_KEPT = 2**9


@dataclass(frozen=True)
class Tile:
    """Tile means, and rows drawn of each level of detail (see ``sketches.tiles``).

    Attributes:
        side: elements of a tile along each spatial dimension, 2, 4 or 8.
        kept: rows kept of each level, coarsest first; ``log2(side)`` numbers of at least 1. A
            level with fewer rows is kept whole.
        bits: 8, 4, 2 or 1 bits a kept number.
    """

    side: int = 4
    kept: tuple[int, ...] = (1, 2)
    bits: int = 4

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: if ``side``, ``kept`` or ``bits`` is not allowed.
        """
        if not is_int(self.side) or self.side not in ALLOWED_SIDES:
            raise OptionError("side", self.side, "2, 4 or 8")
        levels = self.side.bit_length() - 1
        kept = self.kept
        if (
            not isinstance(kept, tuple)
            or len(kept) != levels
            or not all(is_int(count) and 1 <= count <= MAX_KEPT for count in kept)
        ):
            allowed = f"a tuple of {levels} ints from 1 to {MAX_KEPT} with side={self.side}"
            raise OptionError("kept", kept, allowed)
        if not is_int(self.bits) or self.bits not in ALLOWED_BITS:
            raise OptionError("bits", self.bits, "8, 4, 2 or 1")

    @property
    def name(self) -> str:
        """Name with options, such as ``tile[4,1+2,4b]``."""
        return f"tile[{self.side},{'+'.join(map(str, self.kept))},{self.bits}b]"

    @property
    def exact(self) -> bool:
        """False: rows are drawn and numbers rounded at random."""
        return False

    @property
    def needs_seed(self) -> bool:
        """True: rows are drawn, twice alike."""
        return True

    def encode(
        self, x: Tensor, seed: Tensor | None, dim_order: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`; returns the parts of the quantised planes."""
        seed = required(seed, self.name)
        planes: Tensor = sketching.tile(x, seed, self.side, list(self.kept), list(dim_order))
        return Quantize(self.bits).encode(planes, seed, planes_order(dim_order))

    def decode(
        self,
        parts: Sequence[Tensor],
        seed: Tensor | None,
        size: Size,
        dtype: torch.dtype,
        dim_order: Sequence[int],
    ) -> Tensor:
        """See :meth:`Codec.decode`."""
        seed = required(seed, self.name)
        planes = Quantize(self.bits).decode(
            parts, seed, self._planes_shape(size), compute_dtype(dtype), planes_order(dim_order)
        )
        decoded: Tensor = sketching.untile(
            planes, seed, list(size), dtype, self.side, list(self.kept), list(dim_order)
        )
        return decoded

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.nbytes`."""
        return Quantize(self.bits).nbytes(self._planes_shape(shape), dtype)

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.decoding_nbytes`: the planes are decoded first."""
        return math.prod(self._planes_shape(shape)) * compute_dtype(dtype).itemsize

    def noise(self, shape: Sequence[int]) -> float:
        """Model the noise for independent standard normal elements, as ``Quantize`` does.

        Every row then has the mean energy 1, and the terms ``c_k / (m p_k)`` of a level the sum
        of second moments A of ``tile_rows.KeptRow``. Drawing adds ``A - n`` for the n rows of
        a level, quantising the fraction ``q`` of ``1 + sum A``; both over T. A level kept whole
        has ``A = n``.

        Activations are smooth: most of their energy is in the means, and this noise is several
        times too high for them. ``Quantize.noise`` is too high by about as much (its ranges are
        wide because of the mean and few large elements), so the two compare as they should.
        """
        num_spatial = len(shape) - 2
        kept = sum(row.moment for row in kept_rows(num_spatial, self.kept))
        levels = range(1, len(self.kept) + 1)
        drawn = kept - sum(num_rows(num_spatial, level) for level in levels)
        rounded = Quantize(self.bits).noise(self._planes_shape(shape))
        return (drawn + rounded * (1.0 + kept)) / float(self.side) ** num_spatial

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """See :meth:`Codec.supports`; no spatial extent may be below the side of a tile."""
        reason = floating_only(dtype)
        if reason is not None:
            return reason
        if not 3 <= len(shape) <= 5:
            return (
                "tiles need (batch, channels, ...) with 1, 2 or 3 spatial dimensions "
                f"and got {len(shape)} dimensions"
            )
        if min(shape[2:]) < self.side:
            extents = "x".join(map(str, shape[2:]))
            return f"{extents} positions are too few for tiles of side {self.side}"
        return None

    def _planes_shape(self, size: Size) -> list[int]:
        return [num_planes(len(size) - 2, self.kept), *grid_of(size, self.side)]
