"""What the passes are told about ops and codecs: data, handed in by the caller.

``passes`` knows no sketch and no convolution. A :class:`Rules` says which argument of which
backward op enters linearly, how to make such uses visible, and which codecs may stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx


class Codec(Protocol):
    """One way to keep a tensor: encode it to small tensors, decode them to an unbiased copy."""

    @property
    def name(self) -> str:
        """Name with options, such as ``quantize[2b]``."""
        ...

    @property
    def exact(self) -> bool:
        """Whether decoding returns the encoded tensor itself."""
        ...

    @property
    def needs_seed(self) -> bool:
        """Whether encoding or decoding draws random numbers."""
        ...

    def encode(
        self, x: torch.Tensor, seed: torch.Tensor | None, dim_order: Sequence[int]
    ) -> tuple[torch.Tensor, ...]:
        """Encode a tensor.

        Args:
            x: the tensor.
            seed: 0-dim int64 tensor in [0, 2**62) on the device of ``x``; None where
                ``needs_seed`` is False.
            dim_order: dimensions of ``x`` from outermost to innermost in memory.

        Returns:
            The parts to keep.
        """
        ...

    def decode(
        self,
        parts: Sequence[torch.Tensor],
        seed: torch.Tensor | None,
        size: Sequence[int],
        dtype: torch.dtype,
        dim_order: Sequence[int],
    ) -> torch.Tensor:
        """Decode the parts that :meth:`encode` returned.

        Args:
            parts: what ``encode`` returned.
            seed: the seed that ``encode`` was given.
            size: shape of the encoded tensor.
            dtype: dtype of the encoded tensor.
            dim_order: dimensions from outermost to innermost in the memory of the result.

        Returns:
            torch.Tensor of that shape and memory order whose expectation is the encoded tensor.
        """
        ...

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Count the bytes of the encoded parts.

        Args:
            shape: shape of the tensor, plain ints.
            dtype: dtype of the tensor.

        Returns:
            Exact number of bytes of all parts, the seed not included.
        """
        ...

    def decoding_nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Count the bytes that decoding stores on its way, where kernels are merged.

        Args:
            shape: shape of the tensor, plain ints.
            dtype: dtype of the tensor.

        Returns:
            Bytes of what is made of all parts and has to be there before the result is; 0 where
            each element of the result is made of the parts at once.
        """
        ...

    def noise(self, shape: Sequence[int]) -> float:
        """Model the relative noise ``E||x_hat - x||^2 / ||x||^2``.

        Args:
            shape: shape of the tensor, plain ints.

        Returns:
            The modelled ratio, 0 for an exact codec.
        """
        ...

    def supports(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """Say whether a tensor can be kept so.

        Args:
            shape: shape of the tensor, plain ints.
            dtype: dtype of the tensor.

        Returns:
            None if it can, else the reason why not, in words.
        """
        ...


@dataclass(frozen=True)
class LinearUse:
    """One argument in which a backward op is linear.

    Attributes:
        arg: position of the argument.
        sensitivity: how much a unit of relative noise in the argument counts (1.0 for a
            weight gradient, where the noise stays; more where it travels upstream).
        on_path: whether the result is part of the gradient that flows on upstream, so that
            noise in the argument reaches every gradient there. None where the op alone does
            not tell: then it is on the path unless its result only becomes an output.
        path_sensitivity: the sensitivity where ``on_path`` is None and turns out true.
        same_size: whether the use counts only where the argument is as large as the result: a
            small factor that is repeated over it (a gate, a statistic) stays exact.
    """

    arg: int
    sensitivity: float = 1.0
    on_path: bool | None = False
    path_sensitivity: float = 1.0
    same_size: bool = False


@dataclass(frozen=True)
class Wait:
    """Holds the decoding for a reader back until another argument of the reader is there.

    An inner compiler that runs loops together (Inductor's C++ does, of all between two calls)
    would else hold what it decodes beside all that the other argument is made of.

    Attributes:
        call: of a kept tensor and the other argument: the former, opaque to the inner compiler.
        arguments: reader op to the position of the argument to wait for.
    """

    call: torch._ops.OpOverload
    arguments: Mapping[Any, int]


@dataclass(frozen=True)
class Rules:
    """Everything op-specific that the passes need.

    Attributes:
        linear: backward op to its linear uses.
        exposures: decompositions that make linear uses, masks and derivatives visible
            while keeping the numbers.
        slices: functions that form a slice of an op's result on its own, see
            :mod:`passes.slices`.
        lowerings: decompositions of the inserted ops for the inner compiler.
        primitives: decompositions of the ops that exposures, lowerings, codecs and derivations
            are made of; what the inner compiler expects not to meet.
        codecs: candidate sketches of values whose uses are all leaves (weight gradients),
            most exact first; the plan picks one a value.
        path_codecs: candidate sketches of values with a use on the path of the gradient.
        expand_seeds: turns the drawn seeds, int64 ``(S,)``, into what the codecs take, one
            row a site; None if they take the seeds themselves.
        wait: holds decoding back; None for inner compilers that need no such thing.
        store: the identity, by which the inner compiler stores a value (:mod:`passes.stored_sums`),
            in the memory order that may follow it (:mod:`passes.lower`); None for inner compilers
            that store every value.
        packing: for a forward value (a node), the exact codec that keeps it in fewer bits: of
            a boolean, or of an integer known to be small; None where there is none.
        channels_last: whether the inner compiler lays 4-D values out channels-last, whatever
            their strides in the graph say.
        machine_balance: floating-point operations that the machine does while it moves a byte: what
            computing a value again takes is weighed by it.
        audited: ops whose linear use is reported even when the value stays exact (every
            convolution, say).
        keep_exact: for a backward node, why its linear uses must read exact values all the same
            (the user asked for it), in words; None where they need not.
    """

    linear: Mapping[Any, tuple[LinearUse, ...]]
    exposures: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    slices: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    lowerings: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    primitives: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    codecs: tuple[Codec, ...] = ()
    path_codecs: tuple[Codec, ...] = ()
    expand_seeds: Callable[[torch.Tensor], torch.Tensor] | None = None
    wait: Wait | None = None
    store: torch._ops.OpOverload | None = None
    packing: Callable[[fx.Node], Codec | None] | None = None
    channels_last: bool = False
    machine_balance: float = 10.0
    audited: frozenset[Any] = frozenset()
    keep_exact: Callable[[fx.Node], str | None] | None = None

    def asked_exact(self, user: fx.Node) -> str | None:
        """Return why a backward node must read exact values, or None if stand-ins will do."""
        return None if self.keep_exact is None else self.keep_exact(user)
