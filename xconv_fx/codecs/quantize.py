"""The codec of stochastic quantisation in groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from xconv_fx.codecs.checks import floating_only, is_int, required
from xconv_fx.errors import OptionError
from xconv_fx.ops import sketching
from xconv_fx.sketches.bitpack import packed_size
from xconv_fx.sketches.blocks import choose_blocks, grid_of
from xconv_fx.sketches.layout import Size
from xconv_fx.sketches.quantize import compute_dtype, subtracts_dither

ALLOWED_BITS = (8, 4, 2, 1)
MAX_GROUP_SIZE = 2**16


@dataclass(frozen=True)
class Quantize:
    """Stochastic quantisation in groups (see ``sketches.quantize``).

    Attributes:
        bits: 8, 4, 2 or 1 bits a code.
        group_size: elements that share a range, as far as the sizes' divisors allow; a multiple
            of 8 up to 2**16.
    """

    bits: int = 2
    group_size: int = 256

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: if ``bits`` or ``group_size`` is not allowed.
        """
        if not is_int(self.bits) or self.bits not in ALLOWED_BITS:
            raise OptionError("bits", self.bits, "8, 4, 2 or 1")
        size = self.group_size
        if not is_int(size) or size % 8 or not 8 <= size <= MAX_GROUP_SIZE:
            raise OptionError("group_size", size, f"a multiple of 8 from 8 to {MAX_GROUP_SIZE}")

    @property
    def name(self) -> str:
        """Name with options; the group size appears when it is not 256."""
        group = "" if self.group_size == 256 else f",g={self.group_size}"
        return f"quantize[{self.bits}b{group}]"

    @property
    def exact(self) -> bool:
        """False: codes are rounded at random."""
        return False

    @property
    def needs_seed(self) -> bool:
        """True: thresholds are drawn."""
        return True

    def encode(
        self, x: Tensor, seed: Tensor | None, dim_order: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`; returns codes, offsets and steps."""
        seed = required(seed, self.name)
        parts = sketching.quantize_op(x, seed, self.bits, self.group_size, list(dim_order))
        return tuple(parts)

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
        decoded: Tensor = sketching.dequantize(
            *parts, seed, list(size), dtype, self.bits, list(dim_order)
        )
        return decoded

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.nbytes`."""
        num_groups = math.prod(grid_of(shape, choose_blocks(shape, self.group_size)))
        num_bytes = math.prod(packed_size(shape, 8 // self.bits, range(len(shape))))
        return num_bytes + num_groups * 2 * compute_dtype(dtype).itemsize

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.decoding_nbytes`."""
        del shape, dtype
        return 0

    def noise(self, shape: Sequence[int]) -> float:
        """Model the noise for independent standard normal elements.

        It is ``step**2 / 12`` where the dither is subtracted, and twice that where it is not: the
        fraction f is all but uniform then, the step being small, and the mean of f (1 - f) a sixth.
        A group of n has the expected range ``2 q((n - 0.375) / (n + 0.25))`` with q the normal
        quantile (Blom). Data with heavier tails than normal have more, half-normal ones (after
        relu) about as much.
        """
        count = math.prod(choose_blocks(shape, self.group_size))
        if count < 2 or not math.prod(shape):
            return 0.0
        span = 2.0 * NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
        step = span / (2.0**self.bits - 1.0)
        return step * step / (12.0 if subtracts_dither(self.bits) else 6.0)

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """See :meth:`Codec.supports`."""
        del shape
        return floating_only(dtype)
