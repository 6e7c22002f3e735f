"""How Inductor runs those of our operators that are not lowered to aten.

*store* has a value stored, in the memory order that it is given. The others are Python functions,
called through the dispatcher: with their questions about layouts that takes the host about as long
as the call of a convolution in one, and a GPU may wait for the host. So off the CPU the gradients
of a convolution become calls of aten where ours would do nothing else, and *wait* a kernel that
Inductor generates and puts behind what it waits for. On the CPU a call is short beside its work,
and it ends the function that holds the loops before it, which is what *wait* is for. Checked on
2.11 and 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._inductor import ir
from torch._inductor.lowering import (
    add_needs_realized_inputs,
    clone,
    fallback_handler,
    register_lowering,
)
from torch._inductor.virtualized import V

from xconv_fx.ops.gradients import (
    computing_format,
    conv_input_grad,
    conv_weight_grad,
    missing_padding,
)
from xconv_fx.ops.sketching import store, wait

aten = torch.ops.aten


def is_called_directly(node: fx.Node) -> bool:
    """Say whether a gradient of a convolution is formed by one call of aten.

    Args:
        node: a call of ``conv_input_grad`` or ``conv_weight_grad``, with fake tensors.

    Returns:
        True off the CPU, for static sizes, if every activation has the memory format in which the
        gradient is formed; but for the input gradient of a transposed convolution, which may have
        to be cut to size.
    """
    tensors = [arg.meta["val"] for arg in node.args if isinstance(arg, fx.Node)]
    sizes = [n for x in (node.meta["val"], *tensors) for n in x.shape]
    if _is_on_host(node) or not all(isinstance(n, int) and n > 0 for n in sizes):
        return False
    *activations, weight = tensors
    transposed = node.args[-3]
    if node.target is conv_input_grad and transposed:
        return False
    input_size = activations[1].shape if len(activations) > 1 else node.meta["val"].shape
    layout = computing_format(weight, activations[0], input_size)
    return all(x.is_contiguous(memory_format=layout) for x in activations)


def _is_on_host(node: fx.Node) -> bool:
    return bool(node.meta["val"].device.type == "cpu")


def _fallback(op: Any) -> Callable[..., Any]:
    handler: Any = fallback_handler
    called: Callable[..., Any] = handler(op, add_to_fallback_set=False)
    return called


def _register(op: Any, lowering: Callable[..., Any], *, is_call: bool) -> None:
    register: Any = register_lowering
    register(op, type_promotion_kind=None)(lowering)
    if is_call:
        realize_arguments: Any = add_needs_realized_inputs
        realize_arguments(op)


_call_convolution = _fallback(aten.convolution.default)
_call_convolution_backward = _fallback(aten.convolution_backward.default)
_call_input_grad = _fallback(conv_input_grad)
_call_weight_grad = _fallback(conv_weight_grad)
_call_wait = _fallback(wait)


def _lower_input_grad(grad_output: Any, weight: Any, *geometry: Any) -> Any:
    if not is_called_directly(V.graph.current_node):
        return _call_input_grad(grad_output, weight, *geometry)
    input_size, stride, padding, dilation, _, _, groups = geometry
    kernel = V.graph.current_node.all_input_nodes[1].meta["val"].shape[2:]
    missing = missing_padding(input_size, kernel, stride, padding, dilation)
    return _call_convolution(
        grad_output, weight, None, stride, padding, dilation, True, missing, groups
    )


def _lower_weight_grad(grad_output: Any, x: Any, weight: Any, *geometry: Any) -> Any:
    if not is_called_directly(V.graph.current_node):
        return _call_weight_grad(grad_output, x, weight, *geometry)
    mask = [False, True, False]
    _, grad, _ = _call_convolution_backward(grad_output, x, weight, None, *geometry, mask)
    return grad


def _lower_wait(kept: Any, other: Any) -> Any:
    node = V.graph.current_node
    if _is_on_host(node):
        return _call_wait(kept, other)
    copied = clone(kept)
    copied.realize()
    # Laid out as what it is a copy of, and by default plainly.
    strides = node.meta["val"].stride()
    order = ir.get_stride_order(strides, V.graph.sizevars.shape_env)
    copied.freeze_layout_with_stride_order(order)
    other.realize()
    V.graph.additional_star_deps[copied.get_operation_name()].add(other.get_name())
    return copied


def _lower_store(x: Any, dim_order: Sequence[int] | None = None) -> Any:
    x.realize()
    if dim_order is not None and ir.is_storage_and_layout(x):
        _, layout = ir.as_storage_and_layout(x, freeze=False)
        if isinstance(layout, ir.FlexibleLayout):
            ranks = {dim: rank for rank, dim in enumerate(reversed(dim_order))}
            x.freeze_layout_with_stride_order([ranks[dim] for dim in range(len(ranks))])
    return x


_register(conv_input_grad, _lower_input_grad, is_call=True)
_register(conv_weight_grad, _lower_weight_grad, is_call=True)
_register(wait, _lower_wait, is_call=True)
_register(store, _lower_store, is_call=False)
