"""How fast a machine computes beside how fast it moves bytes: its balance.

What computing a value again takes is weighed by it (:mod:`passes.recompute`). It enters plans,
which have to be the same on every rank and in every run, so it is never measured behind the user's
back: it is a constant by default, or what the user hands over.
"""

from __future__ import annotations

import torch
from torch.utils.benchmark import Timer

DEFAULT_BALANCE = 10.0
_BALANCES = {"cpu": DEFAULT_BALANCE, "cuda": 50.0}
_SIDE = 1024
_MOVED_NUMEL = 2**25
_SECONDS = 0.5


def default_balance(device_type: str) -> float:
    """Return the balance assumed of a kind of device, of the order of common ones (fp32).

    Args:
        device_type: as in ``torch.device.type``.
    """
    return _BALANCES.get(device_type, DEFAULT_BALANCE)


def measure_machine_balance(device: torch.device | str = "cpu") -> float:
    """Measure the floating-point operations that a device does while it moves one byte.

    For ``options={"machine_balance": ...}``. Takes about a second: a matrix product of 1024x1024
    fp32 and a copy of 128 MiB, with the threads and the precision that torch is set to.

    Args:
        device: where to measure.

    Returns:
        Operations a second over bytes a second, a byte read or written counting as one.
    """
    a = torch.ones(_SIDE, _SIDE, device=device)
    x = torch.ones(_MOVED_NUMEL, device=device)
    product_s = _median_s("torch.mm(a, a)", {"torch": torch, "a": a})
    copy_s = _median_s("y.copy_(x)", {"x": x, "y": torch.empty_like(x)})
    flops, nbytes = 2 * _SIDE**3, 2 * x.nbytes
    return (flops / product_s) / (nbytes / copy_s)


def _median_s(statement: str, names: dict[str, object]) -> float:
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=_SECONDS).median)
