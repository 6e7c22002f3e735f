"""Buffers that are not freed when they are last read, because a later one takes their memory.

Comes in: a :class:`passes.kernels.Program`. Goes out: one in which such a buffer is read by the
kernel that takes it over. Follows what Inductor's wrapper does with the lines that allocate and
free (``AllocateLine.plan`` in ``torch/_inductor/codegen/wrapper.py``, 2.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

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
    at_kernel = [list(estimates) for estimates in live]
    peak = max((n for estimates in at_kernel for n in estimates), default=0)
    stays = set(program.outputs)
    wrapped = set[str]().union(*pooled)
    free: dict[int, list[tuple[int, str]]] = {}
    held: list[Kernel] = []
    for i, kernel in enumerate(program.kernels):
        taken: list[str] = []
        in_place = [_nbytes(program, value) for value in kernel.reused]
        for value in kernel.outputs:
            nbytes = _nbytes(program, value)
            if nbytes in in_place:
                in_place.remove(nbytes)
            elif value in pooled[i] and free.get(nbytes):
                since, source = free[nbytes][-1]
                between = [n for estimates in at_kernel[since + 1 : i] for n in estimates]
                if not between or nbytes + max(between) <= peak:
                    free[nbytes].pop()
                    taken.append(source)
                    for estimates in at_kernel[since + 1 : i]:
                        estimates[:] = [n + nbytes for n in estimates]
        held.append(replace(kernel, reads=(*kernel.reads, *taken), reused=(*kernel.reused, *taken)))
        for value in dict.fromkeys((*kernel.reads, *kernel.outputs)):
            if value in wrapped - stays and value not in kernel.reused and last[value] == i:
                free.setdefault(_nbytes(program, value), []).append((i, value))
    return replace(program, kernels=tuple(held))


def _nbytes(program: Program, value: str) -> int:
    return program.nbytes.get(value) or 0
