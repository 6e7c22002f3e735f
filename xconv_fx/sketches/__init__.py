"""Random sketches with ``E[decode(encode(x))] = x``.

The mathematics as plain traceable functions, one family a file (design, section 4).
``xconv_fx.codecs`` is the face: what a tensor may be kept as, its bytes and its noise.
"""
