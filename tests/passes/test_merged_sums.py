"""Sums of one value over the same dimensions, taken once."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from passes.decompose import Inserter
from passes.merged_sums import merge_sums

aten = torch.ops.aten
DIMS = [0, 2, 3]


def merged(function, *args, mode="fake"):
    """The function as a graph whose sums are merged, and how many of them are left."""
    module = make_fx(function, tracing_mode=mode)(*args)
    merge_sums(module, Inserter())
    sums = [n for n in module.graph.nodes if n.target in (aten.sum.dim_IntList, aten.mean.dim)]
    return module, len(sums)


def values(*size):
    torch.manual_seed(0)
    return torch.randn(size, dtype=torch.float64), torch.randn(size, dtype=torch.float64)


def test_what_a_norm_needs_of_a_gradient_takes_two_sums():
    def norm(g, h):
        flat = g.reshape(2, 3, 4, 5)  # a view of the same shape
        inner = flat - flat.mean(DIMS, keepdim=True) - h * (flat * h).mean(DIMS, keepdim=True)
        return inner, (h * g).sum(DIMS), g.sum([3, 0, 2])

    g, h = values(2, 3, 4, 5)
    module, count = merged(norm, g, h)

    assert count == 2
    for got, expected in zip(module(g, h), norm(g, h), strict=True):
        assert got.shape == expected.shape
        # float64 sums of 40 normals.
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda x, _y: (x.sum([0]), x.sum([1])), 2),  # other dimensions
        (lambda x, y: (x.sum([0]), y.sum([0])), 2),  # other values
        (lambda x, y: ((x * y).sum([0]), (x * x).sum([0])), 2),  # another factor
        (lambda x, _y: ((x * 2.0).sum([0]), (x * 3.0).sum([0])), 2),  # another constant
        (lambda x, _y: (x.sum([0]), x.view(3, 8).sum([0])), 2),  # another shape
        (lambda x, _y: (x.sum([0]), x.sum([0], dtype=torch.float32)), 2),  # another dtype
        (lambda x, _y: (x.sum([0]), x.mean([-2])), 1),
        (lambda x, y: ((x * y).sum([0]), (y * x).sum([0], keepdim=True)), 1),
    ],
)
def test_sums_of_other_values_or_dimensions_stay(function, count):
    x, y = values(4, 6)
    module, left = merged(function, x, y)

    assert left == count
    for got, expected in zip(module(x, y), function(x, y), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32])
def test_half_types_and_integers_are_left_alone(dtype):
    _, count = merged(lambda x: (x.sum([0]), x.sum([0], keepdim=True)), torch.ones(4, 6).to(dtype))
    assert count == 2


def test_unknown_sizes_are_not_guarded():
    def function(x):
        return x.mean(DIMS), x.sum(DIMS, keepdim=True), x.view(-1, 20).sum([0])

    x, _ = values(2, 3, 4, 5)
    module, count = merged(function, x, mode="symbolic")

    assert count == 2
    larger, _ = values(7, 3, 4, 5)
    torch.testing.assert_close(module(larger)[0], larger.mean(DIMS), rtol=0.0, atol=1e-13)
