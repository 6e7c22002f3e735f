"""How vectors are loaded: read off the C++ that Inductor generates, and run."""

import pytest
import torch
from torch._inductor import config  # noqa: TID251
from torch._inductor.codegen.cpp import CppVecKernel  # noqa: TID251
from torch._inductor.cpu_vec_isa import VecAVX2, pick_vec_isa  # noqa: TID251
from torch._inductor.utils import run_and_get_cpp_code  # noqa: TID251

from xconv_fx._vector_loads import direct_loads

AVX2 = isinstance(pick_vec_isa(), VecAVX2)


def decoded(codes, scale):
    return (codes.to(torch.int32) & 15) * scale


def compiled(function, *args):
    """The result and the C++ of a function, compiled anew."""
    torch.compiler.reset()
    with config.patch(fx_graph_cache=False):
        return run_and_get_cpp_code(torch.compile(function), *args)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
# 64 columns are whole vectors alone, 61 have a rest that must not be loaded whole: it ends at the
# end of the storage.
@pytest.mark.parametrize("columns", [64, 61])
def test_direct_loads_change_no_number(dtype, columns):
    torch.manual_seed(0)
    codes = torch.randint(0, 127, (8, columns), dtype=torch.int64).to(dtype)
    scale = torch.randn(columns)
    with direct_loads():
        result, _ = compiled(decoded, codes, scale)
    assert torch.equal(result, decoded(codes, scale))


def test_bytes_that_are_not_converted_are_loaded_as_before():
    codes = torch.ones(8, 64, dtype=torch.uint8)
    with direct_loads():
        _, code = compiled(lambda x: x.amin(1), codes)
    assert "loadu_one_fourth" not in code


def test_tiles_that_are_transposed_in_registers_are_right():
    torch.manual_seed(0)
    codes = torch.randint(0, 127, (64, 24), dtype=torch.uint8)

    def transposed(codes):
        wide = codes.to(torch.int32)
        return (wide & 15).t().contiguous(), wide.sum(0)

    with direct_loads():
        result, _ = compiled(transposed, codes)
    assert all(map(torch.equal, result, transposed(codes)))


@pytest.mark.skipif(not AVX2, reason="on other processors loads are direct already")
def test_whole_vectors_of_codes_are_loaded_directly_on_avx2_and_only_until_the_end():
    codes, scale = torch.ones(8, 64, dtype=torch.uint8), torch.ones(64)
    with direct_loads():
        _, code = compiled(decoded, codes, scale)
    assert "loadu_one_fourth(in_ptr0" in code
    assert "Vectorized<uint8_t>::loadu(in_ptr0" not in code
    _, code = compiled(decoded, codes, scale)
    assert "Vectorized<uint8_t>::loadu(in_ptr0" in code


def test_loads_are_those_of_before_afterwards_even_behind_an_error():
    before = CppVecKernel._get_vec_load_line

    def fail():
        with direct_loads():
            assert CppVecKernel._get_vec_load_line is not before
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert CppVecKernel._get_vec_load_line is before
