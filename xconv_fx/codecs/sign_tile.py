"""The codec of tiles whose details are kept as signs and lengths; for rates below 2 bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xconv_fx.codecs.checks import required
from xconv_fx.codecs.quantize import Quantize
from xconv_fx.codecs.tile import Tile
from xconv_fx.ops import sketching
from xconv_fx.sketches.layout import Size
from xconv_fx.sketches.octonions import DIM, MEAN_ABS_COORDINATE, num_vectors
from xconv_fx.sketches.quantize import compute_dtype
from xconv_fx.sketches.tile_rows import kept_rows, num_planes, num_rows
from xconv_fx.sketches.tiles import grid_of

# Of the means and the lengths.
_SCALARS = Quantize(4)


@dataclass(frozen=True)
class SignTile:
    """Tile means, and rows drawn of each level as signs and lengths.

    See ``sketches.sign_tiles``. Eight kept rows take 8 bits, and 4 bits for their length.

    Attributes:
        side: elements of a tile along each spatial dimension, 2, 4 or 8.
        kept: rows kept of each level, coarsest first; ``log2(side)`` numbers of at least 1, no
            more than the level has. Their sum is best a multiple of 8.
    """

    side: int = 8
    kept: tuple[int, ...] = (2, 5, 9)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: if ``side`` or ``kept`` is not allowed.
        """
        Tile(self.side, self.kept)

    @property
    def name(self) -> str:
        """Name with options, such as ``sign_tile[8,2+5+9]``."""
        return f"sign_tile[{self.side},{'+'.join(map(str, self.kept))}]"

    @property
    def exact(self) -> bool:
        """False: rows and octonions are drawn, and numbers rounded at random."""
        return False

    @property
    def needs_seed(self) -> bool:
        """True: rows and octonions are drawn, twice alike."""
        return True

    def encode(
        self, x: Tensor, seed: Tensor | None, dim_order: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`; returns signs, and the parts of means and lengths."""
        seed = required(seed, self.name)
        signs, scalars = sketching.sign_tile(x, seed, self.side, list(self.kept), list(dim_order))
        return (signs, *_SCALARS.encode(scalars, seed, dim_order))

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
        signs, *rounded = parts
        shape, wide = self._scalars_shape(size), compute_dtype(dtype)
        scalars = _SCALARS.decode(rounded, seed, shape, wide, dim_order)
        rest = (list(size), dtype, self.side, list(self.kept), list(dim_order))
        decoded: Tensor = sketching.sign_untile(signs, scalars, seed, *rest)
        return decoded

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.nbytes`: a byte for every eight rows, and the rounded scalars."""
        signs = num_vectors(num_planes(len(shape) - 2, self.kept))
        rounded = _SCALARS.nbytes(self._scalars_shape(shape), dtype)
        return signs * math.prod(grid_of(shape, self.side)) + rounded

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.decoding_nbytes`: the planes are decoded first."""
        return Tile(self.side, self.kept).decoding_nbytes(shape, dtype)

    def noise(self, shape: Sequence[int]) -> float:
        """Model the noise for independent standard normal elements, as ``Tile`` does.

        Rows enter their vector with the second moments e of ``tile_rows.KeptRow``. A vector of
        n rows and 8 - n zeros, with E the sum of its e, comes back with ``(n A + B) E``: with ``d =
        8`` and kappa of ``sketches.octonions`` the covariance of a vector of length 1 is ``A I + B
        y y^T``, so that ``8 A + B`` and ``A + B`` follow from ``|y_hat|^2`` and ``E <y_hat, y>^2``.
        Its length has the variance ``sum e^2 / (2 E)``, of which rounding takes
        ``Quantize.noise``. See there on activations.
        """
        num_spatial = len(shape) - 2
        across, along = _vector_moments()
        moments = [row.moment for row in kept_rows(num_spatial, self.kept)]
        rounded = _SCALARS.noise(self._scalars_shape(shape))
        total = 1.0 + rounded
        for first in range(0, len(moments), DIM):
            vector = moments[first : first + DIM]
            energy = sum(vector)
            spread = sum(moment * moment for moment in vector) / (2.0 * energy)
            total += (len(vector) * across + along) * (energy + rounded * spread)
        # What the rows of the levels stand for, the mean among them.
        levels = range(1, len(self.kept) + 1)
        present = 1 + sum(num_rows(num_spatial, level) for level in levels)
        return (total - present) / float(self.side) ** num_spatial

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """See :meth:`Codec.supports`; see ``Tile``, and levels must have the rows asked for."""
        reason = Tile(self.side, self.kept).supports(shape, dtype)
        if reason is not None:
            return reason
        for level, count in enumerate(self.kept, 1):
            present = num_rows(len(shape) - 2, level)
            if count > present:
                return (
                    f"level {level} of a tile in {len(shape) - 2} dimensions has {present} rows, "
                    f"of which {count} are asked for"
                )
        return None

    def _scalars_shape(self, size: Size) -> list[int]:
        """Means and lengths as channels of one activation: ``(N, (1 + Q) C, *tile counts)``."""
        count = 1 + num_vectors(num_planes(len(size) - 2, self.kept))
        grid = grid_of(size, self.side)
        return [grid[0], count * grid[1], *grid[2:]]


def _vector_moments() -> tuple[float, float]:
    """Return A and B of :meth:`SignTile.noise`."""
    kappa, dim = MEAN_ABS_COORDINATE, float(DIM)
    trace = 1.0 / (dim * kappa * kappa)
    # E (sum |u_k|)^2 over the sphere, with E |u_1 u_2| = 2 / (pi d).
    along = (1.0 + (dim - 1.0) * 2.0 / math.pi) / (dim * kappa) ** 2
    across = (trace - along) / (dim - 1.0)
    return across, along - across
