"""Buffers that are not freed when they are last read, because a later one takes their memory.

Comes in: a :class:`passes.kernels.Program`. Goes out: one in which such a buffer is read by the
kernel that takes it over. Follows what Inductor's wrapper does with the lines that allocate and
free (``AllocateLine.plan`` in ``torch/_inductor/codegen/wrapper.py``, 2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from passes.kernels import Kernel, Program


def hold_for_reuse(
    program: Program, pooled: Sequence[AbstractSet[str]], live: Sequence[Sequence[int]]
) -> Program:
    """Let freed buffers live on where a later one of the same size takes their memory.

    The one freed last is taken, if the very next kernel takes it or if holding it until then does
    not raise the peak.

    Args:
        program: kernels; left untouched.
        pooled: for each kernel the buffers that the wrapper allocates for it, and may therefore
            take from or give to others; what a call allocates itself is not among them.
        live: for each kernel what Inductor's scheduler estimates to be live, in bytes, at each of
            the nodes it was made from.

    Returns:
        The program with more reads and more memory reused.
    """
    last = {v: i for i, k in enumerate(program.kernels) for v in (*k.reads, *k.outputs)}
    pool = _Pool([list(estimates) for estimates in live])
    givers = set[str]().union(*pooled).difference(program.outputs)
    held: list[Kernel] = []
    for i, kernel in enumerate(program.kernels):
        sizes = [_nbytes(program, value) for value in _allocated(program, kernel, pooled[i])]
        taken = [source for nbytes in sizes if (source := pool.take(i, nbytes)) is not None]
        held.append(replace(kernel, reads=(*kernel.reads, *taken), reused=(*kernel.reused, *taken)))
        for value in dict.fromkeys((*kernel.reads, *kernel.outputs)):
            if value in givers and value not in kernel.reused and last[value] == i:
                pool.give(i, value, _nbytes(program, value))
    return replace(program, kernels=tuple(held))


@dataclass(frozen=True)
class _Pool:
    """Freed buffers by size, each with the kernel that read it last; and what is live when."""

    live: list[list[int]]
    free: dict[int, list[tuple[int, str]]] = field(default_factory=dict)

    def give(self, kernel: int, value: str, nbytes: int) -> None:
        self.free.setdefault(nbytes, []).append((kernel, value))

    def take(self, kernel: int, nbytes: int) -> str | None:
        if not self.free.get(nbytes):
            return None
        since, value = self.free[nbytes][-1]
        between = self.live[since + 1 : kernel]
        if any(nbytes + n > self._peak for estimates in between for n in estimates):
            return None
        self.free[nbytes].pop()
        for estimates in between:
            estimates[:] = [n + nbytes for n in estimates]
        return value

    @functools.cached_property
    def _peak(self) -> int:
        return max((n for estimates in self.live for n in estimates), default=0)


def _allocated(program: Program, kernel: Kernel, pooled: AbstractSet[str]) -> Iterator[str]:
    """The outputs that the wrapper allocates: no memory is reused for them in place."""
    in_place = [_nbytes(program, value) for value in kernel.reused]
    for value in kernel.outputs:
        nbytes = _nbytes(program, value)
        if nbytes in in_place:
            in_place.remove(nbytes)
        elif value in pooled:
            yield value


def _nbytes(program: Program, value: str) -> int:
    return program.nbytes.get(value) or 0
