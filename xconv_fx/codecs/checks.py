"""Checks that the codecs share."""

from __future__ import annotations

import torch
from torch import Tensor


def is_int(value: object) -> bool:
    """Say whether an option is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def required(seed: Tensor | None, name: str) -> Tensor:
    """Return the seed that a random codec was given.

    Args:
        seed: the seed, or None.
        name: the codec's name, for the error.

    Raises:
        ValueError: if there is none.
    """
    if seed is None:
        raise ValueError(f"{name} draws random numbers and needs a seed, got None")
    return seed


def floating_only(dtype: torch.dtype) -> str | None:
    """Return None for a dtype that sketches hold, else the reason in words."""
    allowed = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if dtype in allowed:
        return None
    return f"sketches hold float16, bfloat16, float32 or float64, not {dtype}"
