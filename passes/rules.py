"""What the passes are told about ops and codecs: data, handed in by the caller.

``passes`` knows no sketch and no convolution. A :class:`Rules` says which argument of which
backward op enters linearly, how to make such uses visible, and which codecs may stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


class Codec(Protocol):
    """A compressed stand-in for a tensor with ``E[decode(encode(x))] = x``."""

    @property
    def name(self) -> str:
        """A short name for reports, such as ``quantize[2b]``."""

    @property
    def exact(self) -> bool:
        """Whether decode returns the very values that went in (a packed mask does)."""

    @property
    def needs_seed(self) -> bool:
        """Whether encode draws random numbers."""

    def encode(
        self, x: torch.Tensor, seed: torch.Tensor, dim_order: Sequence[int]
    ) -> tuple[torch.Tensor, ...]:
        """Compress ``x``, read with its dims in ``dim_order`` from outermost to innermost."""

    def decode(
        self,
        parts: Sequence[torch.Tensor],
        seed: torch.Tensor,
        size: Sequence[int],
        dtype: torch.dtype,
        dim_order: Sequence[int],
    ) -> torch.Tensor:
        """Rebuild a tensor of ``size`` and ``dtype`` whose memory order is ``dim_order``."""

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes of all encoded parts together."""

    def noise(self, shape: Sequence[int]) -> float:
        """Modelled ``E||x_hat - x||^2 / ||x||^2``."""

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """Return None if the codec takes such a tensor, else the reason in words."""


@dataclass(frozen=True)
class LinearUse:
    """One argument in which a backward op is linear.

    Attributes:
        arg: position of the argument.
        sensitivity: how much a unit of relative noise in the argument counts (1.0 for a
            weight gradient, where the noise stays; more where it travels upstream).
        on_path: whether the result is part of the gradient that flows on upstream, so that
            noise in the argument reaches every gradient there.
    """

    arg: int
    sensitivity: float = 1.0
    on_path: bool = False


@dataclass(frozen=True)
class Rules:
    """Everything op-specific that the passes need.

    Attributes:
        linear: backward op to its linear uses.
        exposures: decompositions that make linear uses, masks and derivatives visible
            while keeping the numbers.
        lowerings: decompositions of the inserted ops for the inner compiler.
        primitives: decompositions of the ops that exposures and lowerings are made of; what
            the inner compiler expects not to meet.
        codecs: candidate sketches of values whose uses are all leaves (weight gradients),
            most exact first; the plan picks one a value.
        path_codecs: candidate sketches of values with a use on the path of the gradient.
        expand_seeds: turns the drawn seeds, int64 ``(S,)``, into what the codecs take, one
            row a site; None if they take the seeds themselves.
        mask_codec: exact codec for booleans.
        audited: op to a short label; a linear use of these is reported even when the value
            stays exact (every convolution, say).
    """

    linear: Mapping[Any, tuple[LinearUse, ...]]
    exposures: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    lowerings: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    primitives: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    codecs: tuple[Codec, ...] = ()
    path_codecs: tuple[Codec, ...] = ()
    expand_seeds: Callable[[torch.Tensor], torch.Tensor] | None = None
    mask_codec: Codec | None = None
    audited: Mapping[Any, str] = field(default_factory=dict)
