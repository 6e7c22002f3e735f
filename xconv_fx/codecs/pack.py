"""The exact codec of booleans and small integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xconv_fx.errors import OptionError
from xconv_fx.ops import sketching
from xconv_fx.sketches.bitpack import packed_size
from xconv_fx.sketches.layout import Size


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
            # In int32: Inductor's vectorised shift of bytes goes through memory (torch 2.13, CPU).
            part = x if width == self.bits else (x.to(torch.int32) >> shift) & (2**width - 1)
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
        if len(self.widths) == 1:
            whole: Tensor = sketching.unpack(
                parts[0], list(size), dtype, self.bits, list(dim_order)
            )
            return whole
        total: Tensor | None = None
        shift = 0
        for packed, width in zip(parts, self.widths, strict=True):
            part = sketching.unpack(packed, list(size), torch.int32, width, list(dim_order))
            total = part if total is None else total | (part << shift)
            shift += width
        assert total is not None, "there is at least one part"
        return total.to(dtype)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.nbytes`."""
        del dtype
        order = range(len(shape))
        return sum(math.prod(packed_size(shape, 8 // width, order)) for width in self.widths)

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.decoding_nbytes`."""
        del shape, dtype
        return 0

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
