"""Sums over all but the channels, in two stages."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from passes.decompose import Inserter
from passes.staged_sums import stage_sums

aten = torch.ops.aten


def staged(function, *args, mode="fake"):
    """The function as a graph whose sums are staged, and the dims of its sums in order."""
    module = make_fx(function, tracing_mode=mode)(*args)
    stage_sums(module, Inserter())
    sums = module.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)
    return module, [node.args[1] for node in sums]


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", [[0, 2, 3], [3, 0, 2], [0, -2, -1]])
@pytest.mark.parametrize(
    ("size", "first"),
    [((2, 3, 5, 16), [3]), ((2, 3, 5, 15), [2, 3]), ((2, 3, 1, 40), [3]), ((2, 3, 4, 4), [2, 3])],
)
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_rows_or_images_come_first_and_the_result_is_the_same(name, size, first, dims, keepdim):
    torch.manual_seed(0)
    x = torch.randn(size, dtype=torch.float64)

    def reduce(x):
        return getattr(x, name)(dims, keepdim=keepdim)

    module, stages = staged(reduce, x)
    assert stages == [first, [0, 2, 3]]
    assert module(x).shape == reduce(x).shape
    # float64 sums of 480 normals differ by some 1e-14 with the order.
    torch.testing.assert_close(module(x), reduce(x), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "size", "dtype"),
    [
        (lambda x: x.sum([2, 3]), (2, 3, 8, 16), torch.float32),
        (lambda x: x.sum([1, 2, 3]), (2, 3, 8, 16), torch.float32),
        (lambda x: x.sum([0, 2]), (2, 3, 64), torch.float32),
        (lambda x: x.sum([0, 2, 3, 4]), (2, 3, 4, 8, 16), torch.float32),
        (lambda x: x.sum([0, 2, 3]), (2, 3, 3, 5), torch.float32),
        (lambda x: x.sum([0, 2, 3]), (2, 1, 8, 16), torch.float32),
        (lambda x: x.sum([0, 2, 3]), (2, 3, 8, 16), torch.bfloat16),
        (lambda x: x.sum([0, 2, 3]), (2, 3, 8, 16), torch.int32),
        (lambda x: x.sum([0, 2, 3], dtype=torch.float64), (2, 3, 8, 16), torch.float32),
    ],
)
def test_other_sums_are_left_alone(function, size, dtype):
    _, stages = staged(function, torch.ones(size).to(dtype))
    assert len(stages) == 1


def test_sizes_unknown_at_compile_time_are_left_alone():
    _, stages = staged(lambda x: x.sum([0, 2, 3]), torch.ones(2, 3, 8, 16), mode="symbolic")
    assert len(stages) == 1


def test_sums_on_other_devices_are_left_alone():
    _, stages = staged(lambda x: x.sum([0, 2, 3]), torch.ones(2, 3, 8, 16, device="meta"))
    assert len(stages) == 1
