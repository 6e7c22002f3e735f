"""Codecs: the ways to keep a tensor, with their bytes and their noise, one family a file.

In: options, shapes and dtypes. Out: graphs of ``xconv`` operators, and the figures that the cost
model weighs. The mathematics is in ``xconv_fx.sketches``, the operators in ``xconv_fx.ops``; which
codec a tensor gets is for the plan to say.
"""

from xconv_fx.codecs.pack import Pack
from xconv_fx.codecs.probe import MAX_PROBES, Probe
from xconv_fx.codecs.quantize import ALLOWED_BITS, Quantize
from xconv_fx.codecs.sign_tile import SignTile
from xconv_fx.codecs.tile import Tile

__all__ = ["ALLOWED_BITS", "MAX_PROBES", "Pack", "Probe", "Quantize", "SignTile", "Tile"]
