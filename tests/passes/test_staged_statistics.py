"""Statistics of a norm taken by the groups of an encoder."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from passes.decompose import Inserter
from passes.staged_statistics import stage_statistics

aten = torch.ops.aten


def ranges(x, order, pairs):
    """The smallest and largest element of each group, as an encoder takes them."""
    grouped = x.permute(order).reshape(pairs)
    return grouped.amin([1, 3, 5, 7]), grouped.amax([1, 3, 5, 7])


def staged(function, x, mode="fake"):
    """The function as a graph, and over how many values each of its variances goes."""
    module = make_fx(function, tracing_mode=mode)(x)
    stage_statistics(module, Inserter())
    variances = module.graph.find_nodes(op="call_function", target=aten.var_mean.correction)
    return module, [tuple(node.args[0].meta["val"].shape) for node in variances]


def norm_in(order, pairs, dims=(0, 2, 3), **options):
    settings = {"correction": 0, "keepdim": True, **options}

    def norm(x):
        var, mean = torch.var_mean(x, list(dims), **settings)
        return var, mean, *ranges(x, order, pairs)

    return norm


def value(*size):
    torch.manual_seed(0)
    return torch.randn(size, dtype=torch.float64) + 3.0


@pytest.mark.parametrize(
    ("order", "pairs"),
    [
        ([0, 2, 3, 1], [4, 1, 3, 2, 1, 8, 5, 1]),  # channels-last, two rows a group
        ([0, 1, 2, 3], [2, 2, 5, 1, 1, 6, 1, 8]),  # two samples of a channel a group
    ],
)
def test_variance_and_mean_go_over_the_groups_first(order, pairs):
    x, norm = value(4, 5, 6, 8), norm_in(order, pairs)
    module, variances = staged(norm, x)

    grid = tuple(pairs[::2])
    assert variances == [tuple(pairs), grid]
    for got, expected in zip(module(x), norm(x), strict=True):
        assert got.shape == expected.shape
        # float64 means of 192 values of magnitude 4.
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-13)


LAST = [0, 2, 3, 1]
GROUPS = [4, 1, 3, 2, 1, 8, 5, 1]


@pytest.mark.parametrize(
    "norm",
    [
        norm_in(LAST, GROUPS, dims=(2, 3)),  # of instances
        norm_in(LAST, GROUPS, correction=1),
        norm_in(LAST, GROUPS, keepdim=False),
        norm_in(LAST, [4, 1, 3, 2, 1, 8, 1, 5]),  # groups of several channels
        lambda x: (*torch.var_mean(x, [0, 2, 3], correction=0, keepdim=True), x.amin([0])),
        lambda x: norm_in(LAST, GROUPS)(x.half()),  # would be rounded between the stages
    ],
)
def test_other_statistics_stay(norm):
    _, variances = staged(norm, value(4, 5, 6, 8))
    assert variances == [(4, 5, 6, 8)]
