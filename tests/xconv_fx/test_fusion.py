"""Which kernels are merged: read off Inductor's schedule of graphs that tell the rules apart."""

import pytest
import sympy
import torch
from torch._inductor import config, tiling_utils  # noqa: TID251
from torch._inductor.compile_fx import compile_fx_inner  # noqa: TID251
from torch.fx.experimental.proxy_tensor import make_fx

from xconv_fx import _fusion, _torch


class Read(Exception):  # noqa: N818  it ends a compilation, and is no error
    """Ends a compilation once its kernels are known."""


def kernels(compile_graph, function, *args):
    """The operations of each kernel, by the number of values that they make."""
    found = []

    def read(nodes):
        found.extend(sorted(len(node.get_nodes()) for node in nodes))
        raise Read

    table = _torch.inductor_decompositions()
    module = make_fx(function, decomposition_table=table, tracing_mode="fake")(*args)
    inputs = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    settings = {**_torch.inductor_settings(), "fx_graph_cache": False}
    with (
        config.patch({**settings, "_post_fusion_custom_pass": read}),
        pytest.raises(Exception, match="Read"),
    ):
        compile_graph(module, inputs)
    return found


def sums(x):
    return x.sum(0), (x * x).sum(0)


def decoded(packed, scale, other):
    return (packed & 15) * scale, (packed >> 4) * other


X = torch.ones(256, 64)
PACKED = torch.ones(256, 64, dtype=torch.uint8)


def test_sums_of_one_value_take_one_pass():
    assert kernels(_fusion.compile_inner, sums, X) == [2]


def test_statistics_of_a_norm_take_one_pass():
    def statistics(x):
        return torch.var_mean(x, 0, correction=0)

    (num_values,) = kernels(_fusion.compile_inner, statistics, X)
    assert num_values > 2  # what is made of the sums as well


def test_encoders_of_one_value_are_merged():
    def encoded(x):
        return (x > 0).to(torch.uint8), x.round().to(torch.uint8)

    assert kernels(_fusion.compile_inner, encoded, X) == [2]


def test_an_encoder_joins_the_kernel_of_a_whole_activation():
    def applied(x):
        return x * 2.0, (x > 0).to(torch.uint8)

    assert kernels(_fusion.compile_inner, applied, X) == [2]


def test_what_is_read_again_joins_no_kernel_of_a_whole_activation():
    def applied(x, w):
        mask = (x > 0).to(torch.uint8)
        return x * 2.0, mask.float() @ w, mask

    # The product itself, what it reads, the mask and the activation.
    assert kernels(compile_fx_inner, applied, X, X.T) == [1, 3]
    assert kernels(_fusion.compile_inner, applied, X, X.T) == [1, 1, 2]


def test_decoders_of_one_packed_value_stay_apart_where_inductor_would_merge_them():
    scales = torch.ones(64), torch.ones(64)
    assert kernels(compile_fx_inner, decoded, PACKED, *scales) == [2]
    assert kernels(_fusion.compile_inner, decoded, PACKED, *scales) == [1, 1]


class Unevaluated(sympy.Function):
    """A function of a number that sympy does not work out."""


def test_loops_are_tiled_by_integers_alone(monkeypatch):
    index = sympy.Symbol("index", integer=True)
    unevaluated = 2 * Unevaluated(1)
    assert unevaluated.is_number
    with pytest.raises(TypeError):
        int(unevaluated)
    monkeypatch.setattr(tiling_utils, "solve_for_tiling", lambda expr: expr)
    with _fusion.integer_tilings():
        assert tiling_utils.solve_for_tiling(sympy.Integer(8)) == 8
        assert tiling_utils.solve_for_tiling(unevaluated) is None
        assert tiling_utils.solve_for_tiling(index) is None
        assert tiling_utils.solve_for_tiling(None) is None
    assert tiling_utils.solve_for_tiling(index) is index


def test_the_rule_ends_with_the_compilation():
    scales = torch.ones(64), torch.ones(64)
    kernels(_fusion.compile_inner, decoded, PACKED, *scales)
    assert kernels(compile_fx_inner, decoded, PACKED, *scales) == [2]


def test_generated_code_is_cached_apart_from_that_of_inductor(monkeypatch):
    tags = []

    def compile_graph():
        tags.append(torch.compiler.config.cache_key_tag)

    monkeypatch.setattr(_fusion, "compile_fx_inner", compile_graph)
    before = torch.compiler.config.cache_key_tag
    _fusion.compile_inner()
    assert tags != [before]
    assert torch.compiler.config.cache_key_tag == before
