"""How Inductor's C++ loads a vector of codes: from memory to register, with nothing between.

On AVX2, ``Vectorized<T>::loadu(pointer, count)`` copies bytes and int32 to the stack, piece by
piece, and loads the vector from there; the processor waits for the pieces, and this was most of
the time of a decoder. ``loadu_one_fourth`` and ``loadu(pointer)`` load the same elements at once;
on AVX-512 ``loadu`` does so by itself. Checked on 2.13.

A vector of bytes has four times the lanes that are loaded. What the others hold is read by
reductions of bytes alone: bytes are loaded directly where they are only converted, as all our codes
are, and everything else is left as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._inductor.codegen import cpp_utils
from torch._inductor.codegen.cpp import CppVecKernel
from torch._inductor.cpu_vec_isa import VecAVX2
from torch._inductor.virtualized import V

_cexpr_index: Any = cpp_utils.cexpr_index

# Elements of a float vector of AVX2: every vector of a loop has as many.
_LANES = 8
_BYTES = (torch.uint8, torch.int8)


@contextlib.contextmanager
def direct_loads() -> Iterator[None]:
    """Generate C++ that loads whole vectors of bytes and int32 directly, until the end."""
    base: Any = CppVecKernel._get_vec_load_line

    def load_line(
        kernel: Any, var: str, index: Any, dtype: torch.dtype, load_mask: Any = None
    ) -> Any:
        is_plain = load_mask is None and kernel.num_elems == _LANES
        if is_plain and isinstance(kernel.vec_isa, VecAVX2):
            place = f"{var} + {_cexpr_index(index)}" if index != 0 else var
            if dtype == torch.int32:
                return f"{kernel._get_vec_type(dtype)}::loadu({place})"
            if dtype in _BYTES and _is_only_converted():
                return f"{kernel._get_vec_type(dtype)}::loadu_one_fourth({place})"
        return base(kernel, var, index, dtype, load_mask)

    # In the base class, so that kernels of two tiled dimensions have it as well.
    with mock.patch.object(CppVecKernel, "_get_vec_load_line", load_line):
        yield


def _is_only_converted() -> bool:
    """Say whether what is being loaded is read by conversions to other dtypes alone."""
    load = getattr(V.interpreter, "current_node", None)
    return load is not None and all(user.target == "to_dtype" for user in load.users)
