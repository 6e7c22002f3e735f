"""What computing a value again takes, in terms of a step."""

import pytest
import torch

from passes.recompute import recompute_times

aten = torch.ops.aten


def test_the_slower_of_arithmetic_and_memory_counts(toy):
    b = toy.Builder()
    x, w = b.input("primals_1", 64, 64), b.input("primals_2", 64, 64)
    product = b.call(aten.mm.default, x, w)
    total = b.call(aten.sum.dim_IntList, product, [0])
    cheap = b.call(aten.relu.default, product)
    nodes = [x, w, product, total, cheap]
    moved = {product: 3 * 64 * 64 * 4, total: (64 * 64 + 64) * 4}
    flops = 2 * 64**3
    for balance in (1.0, 1e9):
        times = recompute_times(nodes, balance)
        work = {product: max(moved[product], flops / balance), total: moved[total]}
        # Forward and backward of an op are three of its kind.
        expected = {node: each / (3 * sum(work.values())) for node, each in work.items()}
        assert times == pytest.approx(expected)


def test_grouped_and_transposed_convolutions_count_as_torch_does(toy):
    b = toy.Builder()
    x = b.input("primals_1", 2, 8, 16, 16)
    w = b.input("primals_2", 8, 1, 3, 3)
    grouped = b.call(aten.convolution.default, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 8)
    v = b.input("primals_3", 8, 4, 2, 2)
    transposed = b.call(
        aten.convolution.default, x, v, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1
    )
    times = recompute_times([grouped, transposed], 1e-9)  # arithmetic is all that counts
    per_position = {grouped: 8 * 9, transposed: 8 * 4 * 4}
    assert times[transposed] / times[grouped] == pytest.approx(
        per_position[transposed] / per_position[grouped]
    )


def test_dynamic_sizes_count_by_their_hints_and_are_not_guarded(toy):
    def shares(b, rows):
        x, w = b.input("primals_1", rows, 16), b.input("primals_2", 16, 4)
        y = b.call(aten.mm.default, x, w)
        return list(recompute_times([y, b.call(aten.sum.dim_IntList, y, [0])], 1e-3).values())

    dynamic = toy.Builder(dynamic=True)
    assert shares(dynamic, "rows") == pytest.approx(shares(toy.Builder(), 8))
    assert dynamic.shape_env.guards == []


def test_a_size_that_is_unknown_counts_for_nothing(toy):
    b = toy.Builder(dynamic=True)
    x, w = b.input("primals_1", "?", 16), b.input("primals_2", 16, 4)
    y = b.call(aten.mm.default, x, w)
    total = b.call(aten.sum.dim_IntList, b.input("primals_3", 16, 16), [0])
    times = recompute_times([y, total], 1e-3)
    # The weight's bytes are all that is known of the product.
    assert times[y] / times[total] == pytest.approx(16 * 4 / (16 * 16 + 16))


def test_nothing_costly_takes_nothing(toy):
    b = toy.Builder()
    x = b.input("primals_1", 4)
    assert recompute_times([x, b.call(aten.relu.default, x)], 10.0) == {}
