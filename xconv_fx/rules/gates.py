"""Gates: the gradient of one factor of a product of activations reads the other, linearly.

``x * sigmoid(y)``, squeeze-and-excitation, layer scale: the backward multiplies the gradient by a
value of the forward. Where that is as large as the result it may be sketched; a gate that is
repeated over positions is small, and exact.
"""

from __future__ import annotations

from typing import Any

import torch

from passes import LinearUse
from xconv_fx.rules.norms import PATH_SENSITIVITY

LINEAR_USES: dict[Any, tuple[LinearUse, ...]] = {
    torch.ops.aten.mul.Tensor: tuple(
        LinearUse(arg, on_path=None, path_sensitivity=PATH_SENSITIVITY, same_size=True)
        for arg in (0, 1)
    ),
}
