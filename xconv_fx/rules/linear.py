"""Linear layers: in a backward, ``mm(grad, x)`` is the weight gradient, linear in the input.

The same op forms the input gradient, ``mm(grad, weight)``: then the other operand is a parameter,
which is free to keep and never sketched. Batched matrix products (attention) stay exact.
"""

from __future__ import annotations

from typing import Any

import torch

from passes import LinearUse

LINEAR_USES: dict[Any, tuple[LinearUse, ...]] = {
    torch.ops.aten.mm.default: (LinearUse(0, on_path=None), LinearUse(1, on_path=None)),
}
