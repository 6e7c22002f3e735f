"""The ``xconv`` operators; importing this package registers them.

Owns the schemas, eager implementations and fake implementations, and the table that takes the
operators back to aten (:data:`DECOMPOSITIONS`). The mathematics lies in ``xconv_fx.sketches``.
"""

from xconv_fx.ops import convolution, derivatives, gradients, pooling, sketching
from xconv_fx.ops.registry import DECOMPOSITIONS

__all__ = ["DECOMPOSITIONS", "convolution", "derivatives", "gradients", "pooling", "sketching"]
