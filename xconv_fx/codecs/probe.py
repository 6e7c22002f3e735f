"""The codec of the paper's probings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xconv_fx.codecs.checks import floating_only, is_int, required
from xconv_fx.errors import OptionError
from xconv_fx.ops import sketching
from xconv_fx.sketches.layout import Size, inverse
from xconv_fx.sketches.probing import DISTRIBUTIONS, MODES
from xconv_fx.sketches.quantize import compute_dtype

MAX_PROBES = 2**16


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
        if not is_int(self.probes) or not 1 <= self.probes <= MAX_PROBES:
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
        seed = required(seed, self.name)
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
        seed = required(seed, self.name)
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

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.decoding_nbytes`."""
        del shape, dtype
        return 0

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
        reason = floating_only(dtype)
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


def next_power_of_two(count: int) -> int:
    """Round up to a power of two.

    Args:
        count: a positive int.

    Returns:
        The smallest power of two not below it.
    """
    return 1 << max(count - 1, 0).bit_length()
