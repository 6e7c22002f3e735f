"""Measures the error of the weight gradient: of codecs, and of the paper's at equal bytes.

In: the convolutions of a step (`benchmarks.convolution_sites`) and codecs. Out: bytes and errors
(`benchmarks.codec_results`). A codec is known by the protocol of `passes.rules` alone, so that a
new rung of the ladder needs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.codec_results import CodecResult, LayerError
from benchmarks.convolution_sites import ConvolutionSite
from benchmarks.gradient_statistics import relative_rms_error
from passes.joint import memory_order
from passes.rules import Codec
from xconv_fx.options import Options
from xconv_fx.rules import candidate_codecs

PROBINGS = ("independent", "multichannel", "orthogonal")
"""The paper's three, by its names."""

_SEED_BOUND = 2**62
_MAX_PROBES = 2**16
# Entries of a probing matrix that is drawn; 2**20 take some 0.3 s to draw twice.
_MAX_PROBE_ENTRIES = 2**20


def draw_seeds(count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw seeds for codecs, 0-dim int64 tensors in [0, 2**62)."""
    drawn = torch.randint(_SEED_BOUND, (count,), generator=generator)
    return tuple(drawn.unbind())


def codec_error(site: ConvolutionSite, codec: Codec, seeds: Sequence[Tensor]) -> float:
    """Measure the relative rms error of the weight gradient with a decoded input.

    Args:
        site: the convolution.
        codec: encodes and decodes its input, in the input's memory order.
        seeds: one or more, see :func:`draw_seeds`.

    Returns:
        ``sqrt(mean ||dW_hat - dW||^2) / ||dW||`` over the seeds.
    """
    x, order = site.x, memory_order(site.x)

    def estimate(seed: Tensor) -> Tensor:
        parts = codec.encode(x, seed, order)
        return site.weight_gradient(codec.decode(parts, seed, x.shape, x.dtype, order))

    return relative_rms_error(map(estimate, seeds), site.exact)


def probing_of(mode: str, probes: int) -> Codec:
    """Return the paper's probing with normal entries; ``mode`` is one of :data:`PROBINGS`."""
    (codec,) = candidate_codecs(Options(sketch=mode, probes=probes))
    return codec


def probes_at(mode: str, nbytes: int, shape: Sequence[int], dtype: torch.dtype) -> int | None:
    """Choose the number of probing vectors whose bytes are nearest to the given ones.

    Bytes are proportional to the number r of vectors. At least one is taken, which may be more
    than the given bytes.

    Args:
        mode: one of :data:`PROBINGS`.
        nbytes: bytes of the codec to compare with.
        shape: of the tensor.
        dtype: of the tensor.

    Returns:
        r >= 1, or None where the probing does not support the tensor with so many.
    """
    probes = max(1, round(nbytes / probing_of(mode, 1).nbytes(shape, dtype)))
    if probes > _MAX_PROBES or probing_of(mode, probes).supports(shape, dtype) is not None:
        return None
    return probes


def probes_measured(mode: str, probes: int, shape: Sequence[int]) -> int:
    """Choose how many probing vectors to measure with, at most as many as asked for.

    ``Z Z^T`` with independent columns is a mean of r independent terms, so the squared error of
    the weight gradient, linear in it, is exactly 1/r times that of one. A large r need not be
    drawn then. ``orthogonal`` has dependent columns, and few rows.

    Args:
        mode: one of :data:`PROBINGS`.
        probes: r.
        shape: of the tensor ``(B, C, *spatial)``.

    Returns:
        A number from 1 to r.
    """
    if mode == "orthogonal":
        return probes
    rows = math.prod(shape[1:] if mode == "multichannel" else shape[2:])
    return min(probes, max(1, _MAX_PROBE_ENTRIES // rows))


def probing_error(
    site: ConvolutionSite, mode: str, probes: int, seeds: Sequence[Tensor]
) -> LayerError:
    """Measure a probing, with fewer vectors where that tells the same (`probes_measured`)."""
    asked, shape = probing_of(mode, probes), tuple(site.x.shape)
    measured = probes_measured(mode, probes, shape)
    error = codec_error(site, probing_of(mode, measured), seeds) * math.sqrt(measured / probes)
    return LayerError(asked.name, asked.nbytes(shape, site.x.dtype), error)


def measure_ladder(
    sites: Sequence[ConvolutionSite], ladder: Sequence[Codec], seeds: Sequence[Tensor]
) -> tuple[CodecResult, ...]:
    """Measure every rung on every convolution that it supports."""

    def on_layer(site: ConvolutionSite, codec: Codec) -> LayerError | None:
        shape, dtype = tuple(site.x.shape), site.x.dtype
        if codec.supports(shape, dtype) is not None:
            return None
        error = codec_error(site, codec, seeds)
        return LayerError(codec.name, codec.nbytes(shape, dtype), error)

    return tuple(
        CodecResult(codec.name, codec.name, tuple(on_layer(site, codec) for site in sites))
        for codec in ladder
    )


def measure_probings(
    sites: Sequence[ConvolutionSite], rungs: Sequence[CodecResult], seeds: Sequence[Tensor]
) -> tuple[CodecResult, ...]:
    """Measure the paper's probings at the bytes that each rung has on each convolution."""

    def on_layer(site: ConvolutionSite, rung: LayerError | None, mode: str) -> LayerError | None:
        if rung is None:
            return None
        probes = probes_at(mode, rung.nbytes, tuple(site.x.shape), site.x.dtype)
        return None if probes is None else probing_error(site, mode, probes, seeds)

    return tuple(
        CodecResult(
            mode,
            rung.name,
            tuple(
                on_layer(site, layer, mode) for site, layer in zip(sites, rung.layers, strict=True)
            ),
        )
        for rung in rungs
        for mode in PROBINGS
    )
