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
from xconv_fx.sketches.layout import Size
from xconv_fx.sketches.quantize import compute_dtype

ALLOWED_BITS = (8, 4, 2, 1)
MAX_GROUP_SIZE = 2**16


@dataclass(frozen=True)
class Quantize:
    """Stochastic quantisation in groups (see ``sketches.quantize``).

    Attributes:
        bits: 8, 4, 2 or 1 bits a code.
        group_size: consecutive elements that share a range; a multiple of 8 up to 2**16.
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
        """See :meth:`Codec.encode`; returns codes ``(G, W)`` and ranges ``(G, 2)``."""
        seed = required(seed, self.name)
        codes, ranges = sketching.quantize_op(x, seed, self.bits, self.group_size, list(dim_order))
        return codes, ranges

    def decode(
        self,
        parts: Sequence[Tensor],
        seed: Tensor | None,  # noqa: ARG002  (the thresholds are not needed again)
        size: Size,
        dtype: torch.dtype,
        dim_order: Sequence[int],
    ) -> Tensor:
        """See :meth:`Codec.decode`; the seed may be None."""
        codes, ranges = parts
        decoded: Tensor = sketching.dequantize(
            codes, ranges, list(size), dtype, self.bits, list(dim_order)
        )
        return decoded

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.nbytes`."""
        num_groups = -(-math.prod(shape) // self.group_size)
        return num_groups * (self.group_size * self.bits // 8 + 2 * compute_dtype(dtype).itemsize)

    def noise(self, shape: Sequence[int]) -> float:
        """Model the noise for independent standard normal elements.

        A group of n then has the expected range ``R = 2 q((n - 0.375) / (n + 0.25))`` with q the
        normal quantile (Blom), and ``step = R / L``, ``L = 2**bits - 1``. Rounding v with fraction
        f has variance ``f (1 - f)``, whose Fourier series ``1/6 - sum_m cos(2 pi m f) / (pi m)^2``
        has under the normal law the mean
        ``1/6 - sum_m (-1)^m exp(-2 (pi m / step)^2) / (pi m)^2`` (L is odd, so the centre of the
        range lies half-way between codes). The noise is ``step^2`` times that. Data with a mean
        or with heavier tails than normal have less or more.
        """
        count = min(self.group_size, math.prod(shape))
        if count < 2:
            return 0.0
        span = 2.0 * NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
        step = span / (2.0**self.bits - 1.0)
        mean_variance = 1.0 / 6.0
        for m in range(1, 20):
            term = math.exp(-2.0 * (math.pi * m / step) ** 2) / (math.pi * m) ** 2
            mean_variance -= term if m % 2 == 0 else -term
        return max(step * step * mean_variance, 0.0)

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """See :meth:`Codec.supports`."""
        del shape
        return floating_only(dtype)
