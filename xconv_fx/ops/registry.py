"""Registration of ``xconv`` operators, one call each.

Owns the operator library of the namespace and the decomposition table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {}
"""Operators that lowering replaces by the aten calls of the given function."""

# torch leaves the methods of Library without annotations.
_library_class: Any = torch.library.Library
_LIBRARY = _library_class("xconv", "FRAGMENT")


def define(
    schema: str,
    eager: Callable[..., Any],
    fake: Callable[..., Any],
    decomposition: Callable[..., Any] | None = None,
    *,
    layout: torch.Tag = torch.Tag.needs_fixed_stride_order,
) -> OpOverload:
    """Define and register one operator.

    Args:
        schema: the schema, ``name(arguments) -> returns``.
        eager: implementation on real tensors, for all devices.
        fake: implementation on fake tensors: shapes, dtypes and strides, with SymInt sizes.
        decomposition: traceable aten equivalent for lowering, if it has one.
        layout: how an inner compiler may lay the arguments out. By default the stride order that
            the fake implementation saw is the one the real one must see.

    Returns:
        The overload.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(layout, torch.Tag.pt2_compliant_tag))
    _LIBRARY.impl(name, without_autocast(eager), "CompositeExplicitAutograd")
    torch.library.register_fake(f"xconv::{name}", fake, lib=_LIBRARY)
    overload: OpOverload = getattr(torch.ops.xconv, name).default
    if decomposition is not None:
        DECOMPOSITIONS[overload] = without_autocast(decomposition)
    return overload


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep autocast from changing the dtypes inside a function.

    Operators are dispatched to below autocast, but the aten calls within pass through it again: a
    sketch in float32 would be computed in a half type.

    Args:
        function: takes a tensor first.

    Returns:
        The function, with autocast off on the device of that tensor.
    """

    @functools.wraps(function)
    def guarded(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = first.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return function(first, *args, **kwargs)
        return function(first, *args, **kwargs)

    return guarded
