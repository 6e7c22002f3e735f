"""Sums of gradients stored where that moves fewer bytes than every reader computing them."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from passes.decompose import Inserter
from passes.stored_sums import store_sums

aten = torch.ops.aten


def stored(function, *args, mode="fake"):
    """The function as a graph, and the ops whose results it stores."""
    module = make_fx(function, tracing_mode=mode)(*args)
    store_sums(module, Inserter(), aten.alias_copy.default)
    calls = module.graph.find_nodes(op="call_function", target=aten.alias_copy.default)
    return module, [node.all_input_nodes[0].target for node in calls]


def values(count, *size):
    torch.manual_seed(0)
    return [torch.randn(size) for _ in range(count)]


def norm(g, h, w):
    """What reads the gradient behind a norm: two sums, and a value that is multiplied by w."""
    return g.sum([0]), (g * h).sum([0]), (g * 2.0 - h) @ w


def test_a_chain_of_residual_gradients_is_stored_behind_every_mask():
    def chain(a, b, c, d, h, w):
        first = torch.where(h > 0, a + b, 0.0)
        second = torch.where(h > 1, first + c, 0.0)
        third = second + d
        return *norm(first, h, w), *norm(second, h, w), third.sum([0]), third @ w

    args = [*values(5, 16, 8), *values(1, 8, 8)]
    module, found = stored(chain, *args)

    # `third` is stored in any case: a matrix product reads it.
    assert found == [aten.where.self, aten.where.self]
    for got, expected in zip(module(*args), chain(*args), strict=True):
        assert torch.equal(got, expected)


def three_readers(a, b, h, w):
    """Of a sum: the kernel of two sums over it, and two values that are multiplied by w."""
    g = a + b
    return *norm(g, h, w), (g * 3.0) @ w


def test_every_reader_reads_the_stored_value():
    module, found = stored(three_readers, *values(3, 16, 8), *values(1, 8, 8))
    assert found == [aten.add.Tensor]
    (add,) = module.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    assert [user.target for user in add.users] == [aten.alias_copy.default]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda a, _, h: (torch.sin(a * 2.0) + 1.0, h), "one value, however much is computed"),
        (lambda a, b, h: (a + b.mean(0), h), "one of the two is small"),
        (lambda a, _, h: (a[:8] * 2.0 + 1.0, h[:8]), "a part of a value twice as large"),
        (lambda a, b, h: ((a > 0).int() + (b > 0).int(), h), "integers are no gradients"),
    ],
)
def test_no_value_is_stored_that_reads_little_more_than_itself(function, why):
    def readers(a, b, h, w):
        g, h = function(a, b, h)
        return g.sum([0]), (g * 2.0 - h) @ w, (g * 3.0) @ w

    _, found = stored(readers, *values(3, 16, 8), *values(1, 8, 8))
    assert not found, why


def test_values_made_of_the_same_small_ones_are_not_stored_in_their_place():
    def decoded(codes, length, factors):
        positive = [codes.to(torch.int32) & 2**k != 0 for k in range(8)]
        signed = [torch.where(p, length, -length) for p in positive]
        return [sum(factors[j ^ k] * signed[k] for k in range(8)) for j in range(8)]

    codes = torch.randint(0, 256, (16, 8), dtype=torch.uint8)
    _, found = stored(decoded, codes, *values(1, 16, 8), *values(1, 8, 16, 1))
    assert not found


@pytest.mark.parametrize(
    ("readers", "why"),
    [
        (lambda g, _, w: (g.sum([0]), (g * 2.0) @ w), "two readers"),
        (lambda g, h, _: (g.sum([0]), (g * h).sum([0]), (g * g).sum([1])), "one kernel"),
        (lambda g, h, w: (*norm(g, h, w), (g * 3.0) @ w, g @ w), "stored for a product"),
        (lambda g, h, w: (*norm(g, h, w), (g * 3.0) @ w, g), "returned"),
    ],
)
def test_no_value_is_stored_for_few_readers_or_twice(readers, why):
    def function(a, b, h, w):
        return readers(a + b, h, w)

    _, found = stored(function, *values(3, 16, 8), *values(1, 8, 8))
    assert not found, why


@pytest.mark.parametrize(
    "function",
    [
        lambda a, _: a[:8] + a[8:] * 2.0,  # parts of one value
        lambda a, b: (a.sort(0)[0] + b.sort(0)[0])[:8],  # results of calls with several
    ],
)
def test_what_is_read_of_values_in_memory_counts(function):
    def readers(a, b, w):
        g = function(a, b)
        return g.sum([0]), (g * 2.0) @ w, (g * 3.0) @ w

    _, found = stored(readers, *values(2, 16, 8), *values(1, 8, 8))
    assert len(found) == 1


def test_symbolic_sizes_count_by_their_hints():
    _, found = stored(three_readers, *values(3, 16, 8), *values(1, 8, 8), mode="symbolic")
    assert found == [aten.add.Tensor]
