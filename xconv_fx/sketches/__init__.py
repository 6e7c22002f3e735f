"""Random sketches with ``E[decode(encode(x))] = x``.

``codecs`` is the face: what a tensor may be kept as, its bytes and its noise. The other modules
hold the mathematics as plain traceable functions, one family a file (design, section 4).
"""
