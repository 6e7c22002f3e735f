"""Codecs: the ways to keep a tensor, with their bytes and their noise.

In: options, shapes and dtypes. Out: graphs of ``xconv`` operators, and the figures that the cost
model weighs. The mathematics is in the sibling modules, the operators in ``xconv_fx.ops``; which
codec a tensor gets is for the plan to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from xconv_fx.errors import OptionError
from xconv_fx.ops import sketching
from xconv_fx.sketches.bitpack import GROUP_SIZE
from xconv_fx.sketches.layout import Size, inverse
from xconv_fx.sketches.probing import DISTRIBUTIONS, MODES
from xconv_fx.sketches.quantize import compute_dtype

ALLOWED_BITS = (8, 4, 2, 1)
MAX_GROUP_SIZE = 2**16
MAX_PROBES = 2**16


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
        if not _is_int(self.bits) or self.bits not in ALLOWED_BITS:
            raise OptionError("bits", self.bits, "8, 4, 2 or 1")
        size = self.group_size
        if not _is_int(size) or size % 8 or not 8 <= size <= MAX_GROUP_SIZE:
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
        seed = _required(seed, self.name)
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
        return _floating_only(dtype)


@dataclass(frozen=True)
class Probe:
    """The paper's probing (see ``sketches.probing``).

    Attributes:
        mode: ``independent``, ``multichannel`` or ``orthogonal``.
        probes: number of probing vectors r.
        distribution: ``gaussian`` or ``rademacher``; ``orthogonal`` ignores it.
    """

    mode: str
    probes: int
    distribution: str = "gaussian"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: if the mode, the number of probes or the distribution is not allowed.
        """
        if self.mode not in MODES:
            raise OptionError("mode", self.mode, ", ".join(MODES))
        if not _is_int(self.probes) or not 1 <= self.probes <= MAX_PROBES:
            raise OptionError("probes", self.probes, f"an int from 1 to {MAX_PROBES}")
        if self.distribution not in DISTRIBUTIONS:
            raise OptionError("distribution", self.distribution, ", ".join(DISTRIBUTIONS))

    @property
    def name(self) -> str:
        """Name with options; the distribution appears when it is rademacher."""
        signs = self.mode != "orthogonal" and self.distribution == "rademacher"
        return f"{self.mode}[r={self.probes}{',rademacher' if signs else ''}]"

    @property
    def exact(self) -> bool:
        """False, though ``orthogonal`` with as many probes as (padded) positions is exact."""
        return False

    @property
    def needs_seed(self) -> bool:
        """True: probes are drawn, twice alike."""
        return True

    def encode(
        self, x: Tensor, seed: Tensor | None, dim_order: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`; the strides of ``x`` tell its order already."""
        del dim_order
        seed = _required(seed, self.name)
        sketch: Tensor = sketching.probe(x, seed, self.mode, self.probes, self.distribution)
        return (sketch,)

    def decode(
        self,
        parts: Sequence[Tensor],
        seed: Tensor | None,
        size: Size,
        dtype: torch.dtype,
        dim_order: Sequence[int],
    ) -> Tensor:
        """See :meth:`Codec.decode`."""
        (sketch,) = parts
        seed = _required(seed, self.name)
        decoded: Tensor = sketching.reconstruct(
            sketch, seed, list(size), dtype, self.mode, self.distribution
        )
        if list(dim_order) == sorted(dim_order):
            return decoded
        return decoded.permute(list(dim_order)).contiguous().permute(inverse(dim_order))

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.nbytes`."""
        rows = 1 if self.mode == "multichannel" else shape[1]
        return shape[0] * rows * self.probes * compute_dtype(dtype).itemsize

    def noise(self, shape: Sequence[int]) -> float:
        """Model the noise; it holds for every x but for ``orthogonal``.

        With independent entries ``E||(Z Z^T - I) x||^2 = ||x||^2 (n + k) / r``, where n is the
        number of rows of Z, k = 1 for normal and -1 for Rademacher entries. Orthogonal columns: by
        Parseval a row of ``Z Z^T - I`` of the padded size N' has the squared norm ``N' / r - 1``
        off the diagonal, of which the share ``(N - 1) / (N' - 1)`` falls on positions that
        exist; exact in the mean over positions if energy is spread evenly.
        """
        if self.mode == "orthogonal":
            rows = math.prod(shape[2:])
            padded = next_power_of_two(rows)
            if padded == 1:
                return 0.0
            return max(padded / self.probes - 1.0, 0.0) * (rows - 1) / (padded - 1)
        rows = math.prod(shape[1:] if self.mode == "multichannel" else shape[2:])
        return (rows + (1 if self.distribution == "gaussian" else -1)) / self.probes

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """See :meth:`Codec.supports`; a batch and a channel dimension are needed."""
        reason = _floating_only(dtype)
        if reason is not None:
            return reason
        if len(shape) < 2:
            return f"probing needs (batch, channels, ...) and got {len(shape)} dimensions"
        if self.mode == "multichannel":
            limit, what = math.prod(shape[1:]), "elements a sample"
        elif self.mode == "orthogonal":
            limit, what = next_power_of_two(math.prod(shape[2:])), "(padded) positions"
        else:
            limit, what = math.prod(shape[2:]), "positions"
        if self.probes > limit:
            return (
                f"a probing count larger than makes sense: r={self.probes} needs at least "
                f"{self.probes} {what}, the tensor has {limit}"
            )
        return None


@dataclass(frozen=True)
class Pack:
    """Booleans or small integers at ``bits`` bits an element, exactly (``sketches.bitpack``).

    A width that is no power of two is kept as several parts whose widths are: 5 bits as the lowest
    4 and the next one.

    Attributes:
        bits: 1 to 8; values must be in [0, 2**bits), which the caller knows.
    """

    bits: int = 1

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            OptionError: if ``bits`` is not in 1 to 8.
        """
        if type(self.bits) is not int or not 1 <= self.bits <= 8:
            raise OptionError("bits", self.bits, "an int from 1 to 8")

    @property
    def name(self) -> str:
        """The name ``bitmask``, or one like ``pack[4b]``."""
        return "bitmask" if self.bits == 1 else f"pack[{self.bits}b]"

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits an element of each part, the lowest bits first: what ``sketches.bitpack`` takes."""
        widths: list[int] = []
        while (missing := self.bits - sum(widths)) > 0:
            widths.append(next(width for width in (4, 2, 1) if width <= missing))
        return tuple(widths)

    @property
    def exact(self) -> bool:
        """True."""
        return True

    @property
    def needs_seed(self) -> bool:
        """False."""
        return False

    def encode(
        self, x: Tensor, seed: Tensor | None, dim_order: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`; the seed may be None."""
        del seed
        parts = []
        shift = 0
        for width in self.widths:
            part = x if width == self.bits else (x >> shift) & (2**width - 1)
            parts.append(sketching.pack(part, width, list(dim_order)))
            shift += width
        return tuple(parts)

    def decode(
        self,
        parts: Sequence[Tensor],
        seed: Tensor | None,  # noqa: ARG002  (nothing is random here)
        size: Size,
        dtype: torch.dtype,
        dim_order: Sequence[int],
    ) -> Tensor:
        """See :meth:`Codec.decode`; the seed may be None."""
        x: Tensor | None = None
        shift = 0
        for packed, width in zip(parts, self.widths, strict=True):
            part: Tensor = sketching.unpack(packed, list(size), dtype, width, list(dim_order))
            x = part if x is None else x | (part << shift)
            shift += width
        assert x is not None, "there is at least one part"
        return x

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.nbytes`."""
        del dtype
        return -(-math.prod(shape) // GROUP_SIZE) * (GROUP_SIZE * self.bits // 8)

    def noise(self, shape: Sequence[int]) -> float:
        """Return 0: exact."""
        del shape
        return 0.0

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """See :meth:`Codec.supports`."""
        del shape
        if dtype.is_floating_point or dtype.is_complex:
            return f"packing holds booleans and small integers, not {dtype}"
        return None


def next_power_of_two(count: int) -> int:
    """Round up to a power of two.

    Args:
        count: a positive int.

    Returns:
        The smallest power of two not below it.
    """
    return 1 << max(count - 1, 0).bit_length()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _required(seed: Tensor | None, name: str) -> Tensor:
    if seed is None:
        raise ValueError(f"{name} draws random numbers and needs a seed, got None")
    return seed


def _floating_only(dtype: torch.dtype) -> str | None:
    allowed = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if dtype in allowed:
        return None
    return f"sketches hold float16, bfloat16, float32 or float64, not {dtype}"
