"""The paper's probings: ``S = X Z`` and ``X_hat = S Z^T`` with ``E[Z Z^T] = I``.

In: a floating tensor and a probing matrix (or a seed). Out: the sketch, and back the unbiased
reconstruction. Source: arXiv 2106.06998, section 3 (trace estimation by probing), with the
normalisation chosen so that each mode is unbiased (design, sections 1 and 4).

Shape legend: B batch, C channels, N positions (product of the spatial sizes, 1 without any),
r probes.

- ``independent``: Z is ``(N, r)`` with independent entries of mean 0 and variance 1 / r, shared
  by all samples and channels; the sketch is ``(B, C, r)``.
- ``multichannel``: Z is ``(C * N, r)``, entries alike; the sketch is ``(B, r)``.
- ``orthogonal``: Z is ``(N, r)``, randomly signed Walsh-Hadamard columns; sketch ``(B, C, r)``.

Entries of mean 0, variance 1 / r and no correlation give
``E[(Z Z^T)_ij] = sum_k E[Z_ik Z_jk] = delta_ij``. Half types are sketched in float32. Sketches
read channels-last tensors where they lie: only (C, N) swap places in the strides of the product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xconv_fx.sketches.layout import Size, known, numel_of
from xconv_fx.sketches.quantize import compute_dtype
from xconv_fx.sketches.randomness import gaussian, rademacher, random_bits

MODES = ("independent", "multichannel", "orthogonal")
DISTRIBUTIONS = ("gaussian", "rademacher")

_BASE_STREAM = 7


def num_rows(size: Size, mode: str) -> int:
    """Count the rows of the probing matrix.

    Args:
        size: shape ``(B, C, *spatial)``; the ints may be SymInts.
        mode: one of :data:`MODES`.

    Returns:
        N, or C * N for ``multichannel``.
    """
    return numel_of(size[1:] if mode == "multichannel" else size[2:])


def draw_probes(
    rows: int, probes: int, seed: Tensor, mode: str, distribution: str, dtype: torch.dtype
) -> Tensor:
    """Draw the probing matrix Z.

    Args:
        rows: number of rows, may be a SymInt.
        probes: number of columns r.
        seed: 0-dim int64 tensor in [0, 2**62).
        mode: one of :data:`MODES`.
        distribution: one of :data:`DISTRIBUTIONS`; ``orthogonal`` ignores it.
        dtype: dtype of the result.

    Returns:
        Tensor ``(rows, probes)`` with ``E[Z Z^T] = I``.
    """
    row = torch.arange(rows, device=seed.device).unsqueeze(1)
    row_bits = 16 if known(rows <= 2**16) else 48
    if mode == "orthogonal":
        zero = torch.zeros((), dtype=torch.int32, device=seed.device)
        high, low = random_bits(zero, zero, seed, stream=_BASE_STREAM, row_bits=16, column_bits=16)
        base = high.to(torch.int64) * 2**16 + low
        signs = rademacher(row, zero, seed, row_bits=row_bits, column_bits=16)
        return hadamard_probes(signs.to(dtype), base, probes)
    column = torch.arange(probes, dtype=torch.int32, device=seed.device).unsqueeze(0)
    draw = gaussian if distribution == "gaussian" else rademacher
    column_bits = 16 if probes <= 2**16 else 32
    entries = draw(row, column, seed, row_bits=row_bits, column_bits=column_bits)
    return entries.to(dtype) * (1.0 / math.sqrt(probes))


def hadamard_probes(signs: Tensor, base: Tensor, probes: int) -> Tensor:
    """Form randomly signed columns of a Walsh-Hadamard matrix.

    ``Z[i, k] = sign_i * (-1)**popcount(i & (base ^ k)) / sqrt(r)``.

    Unbiased for every r: the diagonal of ``Z Z^T`` is ``r / r = 1`` surely, and off it
    ``E[sign_i sign_j] = 0`` multiplies a factor that does not depend on the signs. (The base
    alone would do too: for i != j the mean of ``(-1)**popcount((i ^ j) & base)`` over all bases is
    0; it also spreads the sketch over the frequencies when r is small.)

    Exact for r = N' with N' the next power of two: ``base ^ k`` then runs through every column once
    and ``sum_k (-1)**popcount((i ^ j) & k) = N' delta_ij``.

    Neither the scale nor the columns mention N': bits of ``base ^ k`` above those of i do not
    reach the popcount, so a random base needs no mask and a dynamic N is never specialised. For
    r > N' columns repeat: still unbiased, but wasteful. Codecs refuse it where sizes are known.

    Args:
        signs: tensor ``(N, 1)`` of -1 and +1.
        base: 0-dim int64 tensor in [0, 2**32).
        probes: r.

    Returns:
        Tensor ``(N, r)`` of the dtype of ``signs``.
    """
    row = torch.arange(signs.shape[0], device=signs.device).unsqueeze(1)
    column = torch.arange(probes, dtype=torch.int32, device=signs.device).unsqueeze(0)
    # popcount(i & (base ^ k)) and popcount(i & base) + popcount(i & k) have one parity, and k
    # reaches the low bits of i only: wide arithmetic stays on (N, 1).
    base_parity = _parity(row & base, 32).to(torch.int32)
    low_row = (row & 0x3FFFFFFF).to(torch.int32)
    column_parity = _parity(low_row & column, 16 if probes <= 2**16 else 32)
    walsh = 1 - 2 * (base_parity ^ column_parity)
    return walsh.to(signs.dtype) * (signs * (1.0 / math.sqrt(probes)))


def probe_with(x: Tensor, z: Tensor, mode: str) -> Tensor:
    """Sketch with a given probing matrix: ``S = X Z``.

    Args:
        x: floating tensor ``(B, C, *spatial)``.
        z: tensor ``(N, r)``, or ``(C * N, r)`` for ``multichannel``.
        mode: one of :data:`MODES`.

    Returns:
        Sketch ``(B, C, r)``, or ``(B, r)`` for ``multichannel``, in the dtype of ``z``.
    """
    batch, channels = x.shape[0], x.shape[1]
    if mode == "multichannel":
        return x.to(z.dtype).reshape(batch, z.shape[0]) @ z
    return x.to(z.dtype).reshape(batch, channels, z.shape[0]) @ z


def reconstruct_with(sketch: Tensor, z: Tensor, size: Size, dtype: torch.dtype) -> Tensor:
    """Rebuild from a given probing matrix: ``X_hat = S Z^T``.

    Args:
        sketch: tensor ``(B, C, r)`` or ``(B, r)``.
        z: tensor ``(N, r)``, or ``(C * N, r)`` for ``multichannel``.
        size: shape ``(B, C, *spatial)`` of the result.
        dtype: dtype of the result.

    Returns:
        Contiguous tensor of shape ``size``.
    """
    return (sketch @ z.t()).to(dtype).view(list(size))


def probe(x: Tensor, seed: Tensor, mode: str, probes: int, distribution: str) -> Tensor:
    """Sketch with probes drawn from a seed.

    Args:
        x: floating tensor ``(B, C, *spatial)``.
        seed: 0-dim int64 tensor in [0, 2**62).
        mode: one of :data:`MODES`.
        probes: r.
        distribution: one of :data:`DISTRIBUTIONS`.

    Returns:
        Sketch ``(B, C, r)``, or ``(B, r)`` for ``multichannel``; float64 for float64 input, else
        float32.
    """
    dtype = compute_dtype(x.dtype)
    z = draw_probes(num_rows(x.shape, mode), probes, seed, mode, distribution, dtype)
    return probe_with(x, z, mode)


def reconstruct(
    sketch: Tensor, seed: Tensor, size: Size, dtype: torch.dtype, mode: str, distribution: str
) -> Tensor:
    """Rebuild the tensor whose expectation is the sketched one.

    Args:
        sketch: tensor ``(B, C, r)`` or ``(B, r)``.
        seed: the seed that :func:`probe` was given.
        size: shape ``(B, C, *spatial)`` of the result.
        dtype: dtype of the result.
        mode: one of :data:`MODES`.
        distribution: one of :data:`DISTRIBUTIONS`.

    Returns:
        Contiguous tensor of shape ``size``.
    """
    probes = sketch.shape[-1]
    z = draw_probes(num_rows(size, mode), probes, seed, mode, distribution, sketch.dtype)
    return reconstruct_with(sketch, z, size, dtype)


def _parity(word: Tensor, bits: int) -> Tensor:
    """Fold a non-negative integer below ``2**bits`` to the parity of its bits."""
    for shift in (16, 8, 4, 2, 1):
        if shift < bits:
            word = word ^ torch.bitwise_right_shift(word, shift)
    return word & 1
