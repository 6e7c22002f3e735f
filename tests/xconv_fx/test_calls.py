"""Which gradients of convolutions Inductor has aten form, off the CPU."""

import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from xconv_fx import _calls
from xconv_fx.ops.gradients import conv_input_grad, conv_weight_grad

GEOMETRY = ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)
TRANSPOSED = ([2, 2], [1, 1], [1, 1], True, [1, 1], 1)


def call(op, *tensors, geometry=GEOMETRY):
    """A node that calls one of the gradients on a device that may not be there."""
    graph = fx.Graph()
    nodes = []
    for i, tensor in enumerate(tensors):
        nodes.append(graph.placeholder(f"x{i}"))
        nodes[-1].meta["val"] = tensor
    if op is conv_input_grad:
        size = [2, 4, 8, 8]
        node = graph.call_function(op, (*nodes, size, *geometry))
        node.meta["val"] = tensors[0].new_empty(size)
    else:
        node = graph.call_function(op, (*nodes, *geometry))
        node.meta["val"] = torch.empty_like(tensors[-1])
    return node


@pytest.mark.parametrize("op", [conv_input_grad, conv_weight_grad])
def test_aten_is_called_where_nothing_is_copied_around_it(op):
    def tensors(device="cuda", grad_format=torch.channels_last, size=8):
        grad = torch.empty(2, 6, 4, 4, device=device).to(memory_format=grad_format)
        x = torch.empty(2, 4, size, 8, device=device).to(memory_format=torch.channels_last)
        weight = torch.empty(6, 4, 3, 3, device=device)
        return (grad, weight) if op is conv_input_grad else (grad, x, weight)

    with FakeTensorMode():
        assert _calls.is_called_directly(call(op, *tensors()))
        assert not _calls.is_called_directly(call(op, *tensors("cpu")))
        plain = call(op, *tensors(grad_format=torch.contiguous_format))
        # A plain gradient beside a plain input goes as it is; beside another the input is copied.
        assert _calls.is_called_directly(plain) == (op is conv_input_grad)
        transposed = call(op, *tensors(), geometry=TRANSPOSED)
        assert _calls.is_called_directly(transposed) == (op is conv_weight_grad)
        if op is conv_weight_grad:
            assert not _calls.is_called_directly(call(op, *tensors(size=0)))


def test_dynamic_sizes_are_left_to_the_operator():
    mode = FakeTensorMode(shape_env=ShapeEnv())
    batch = mode.from_tensor(torch.empty(2, 3)).shape[0]
    with mode:
        grad = torch.empty(batch, 6, 4, 4, device="cuda")
        weight = torch.empty(6, 4, 3, 3, device="cuda")
        assert not _calls.is_called_directly(call(conv_input_grad, grad, weight))
