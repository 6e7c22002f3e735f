"""Linear layers: in a backward, ``mm(grad, x)`` is the weight gradient, linear in the input.

The same op forms the input gradient, ``mm(grad, weight)``: then the other operand is a parameter,
which is free to keep and never sketched. Batched matrix products (attention) stay exact.
"""

from __future__ import annotations

from typing import Any

import torch

from passes import LinearUse
from xconv_fx.rules.norms import PATH_SENSITIVITY

LINEAR_USES: dict[Any, tuple[LinearUse, ...]] = {
    torch.ops.aten.mm.default: tuple(
        LinearUse(arg, on_path=None, path_sensitivity=PATH_SENSITIVITY) for arg in (0, 1)
    ),
}
