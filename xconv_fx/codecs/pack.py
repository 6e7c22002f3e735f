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

    Attributes:
        bits: 1, 2 or 4; values must be in [0, 2**bits), which the caller knows.
    """

    bits: int = 1

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            OptionError: if ``bits`` is not 1, 2 or 4.
        """
        if type(self.bits) is not int or self.bits not in (1, 2, 4):
            raise OptionError("bits", self.bits, "1, 2 or 4")

    @property
    def name(self) -> str:
        """The name ``bitmask``, or one like ``pack[4b]``."""
        return "bitmask" if self.bits == 1 else f"pack[{self.bits}b]"

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
        packed: Tensor = sketching.pack(x, self.bits, list(dim_order))
        return (packed,)

    def decode(
        self,
        parts: Sequence[Tensor],
        seed: Tensor | None,  # noqa: ARG002  (nothing is random here)
        size: Size,
        dtype: torch.dtype,
        dim_order: Sequence[int],
    ) -> Tensor:
        """See :meth:`Codec.decode`; the seed may be None."""
        (packed,) = parts
        x: Tensor = sketching.unpack(packed, list(size), dtype, self.bits, list(dim_order))
        return x

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """See :meth:`Codec.nbytes`."""
        del dtype
        return math.prod(packed_size(shape, 8 // self.bits, range(len(shape))))

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
