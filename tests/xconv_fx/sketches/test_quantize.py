import math

import pytest
import torch

from xconv_fx.sketches.bitpack import packed_size, plane_dim, planes_of
from xconv_fx.sketches.blocks import choose_blocks, spread
from xconv_fx.sketches.quantize import (
    dequantize,
    dequantize_with_thresholds,
    fraction_bits,
    quantize,
    quantize_with_thresholds,
    subtracts_dither,
)

BITS = [8, 4, 2, 1]
SEED = torch.tensor(2**61 + 987654321)


def round_trip(x: torch.Tensor, seed: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    order = tuple(range(x.dim()))
    parts = quantize(x, seed, bits, group, order)
    return dequantize(*parts, seed, x.shape, x.dtype, bits, order)


def with_thresholds(
    x: torch.Tensor, thresholds: torch.Tensor, bits: int, group: int
) -> torch.Tensor:
    """Round trip with the threshold of each element given."""
    order = tuple(range(x.dim()))
    dim = plane_dim(x.shape, 8 // bits, order) if x.dim() else 0
    planes = planes_of(thresholds, dim, 8 // bits) if x.dim() else [thresholds]
    parts = quantize_with_thresholds(x, planes, bits, group, order)
    subtracted = thresholds if subtracts_dither(bits) else None
    return dequantize_with_thresholds(parts, subtracted, x.shape, x.dtype, bits, order)


def levels(x: torch.Tensor, threshold: int) -> torch.Tensor:
    return torch.full(x.shape, threshold, dtype=torch.int32)


@pytest.mark.parametrize("bits", BITS)
def test_which_widths_subtract_their_dither(bits):
    assert subtracts_dither(bits) == (bits <= 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unbiased_over_every_rounding_outcome(dtype):
    # 2**10 equally spaced thresholds are every outcome that matters when v is a multiple of
    # 2**-10: the mean over them is then E[decode(encode(x))], exactly. Values are chosen so that
    # step = 1 and nothing is rounded anywhere: the equality is exact, no tolerance.
    bits, top = 8, 255
    generator = torch.Generator().manual_seed(bits)
    x = torch.randint(0, top * 1024 + 1, (3, 16), generator=generator).to(dtype) / 1024
    x[:, 3], x[:, 12] = 0, top
    x = x - 17
    total = torch.zeros(3, 16, dtype=torch.float64)
    for k in range(1024):
        total += with_thresholds(x, levels(x, k * 2 ** fraction_bits(bits) // 1024), bits, 16)
    assert torch.equal(total / 1024, x.double())


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_unbiased_over_every_threshold_where_the_dither_is_subtracted(bits):
    # All 2**F thresholds T count, since T itself is subtracted. For one element the mean over T
    # of code - T / 2**F + (1 - 2**-F) / 2 is v, for every v that is a multiple of 2**-F. Codes
    # are enumerated in chunks; sums of integers below 2**53 are exact in float64, and so is the
    # mean; every decoded value is exact in float64 (29 bits at most), as is its comparison.
    depth = fraction_bits(bits)
    top = 2**bits - 1
    fractions = (0, 1, 2**depth // 3, 2**depth - 1)
    x = torch.tensor([[0.0, top, n % top + f / 2**depth] for n, f in enumerate(fractions)]).double()
    chunk = 2**20
    total = torch.zeros(len(fractions), dtype=torch.float64)
    extremes = x[:, :1], x[:, 1:2]
    for start in range(0, 2**depth, chunk):
        every = torch.arange(start, start + chunk, dtype=torch.int32)
        wide = torch.cat(
            [x[:, 2:].expand(-1, chunk), *extremes, *extremes, *extremes, *extremes], 1
        )
        thresholds = torch.nn.functional.pad(every, (0, 8)).expand(wide.shape)
        y = with_thresholds(wide, thresholds, bits, wide.shape[1])
        total += y[:, :chunk].sum(1)
        error = y[:, :chunk] - x[:, 2:]
        assert float(error.abs().max()) <= 0.5
    # Sums of 2**24 multiples of 2**-25 below 16: less than 2**53 units, none is rounded.
    assert torch.equal(total / 2**depth, x[:, 2])


@pytest.mark.parametrize("bits", BITS)
def test_rounding_probability_counts_the_thresholds(bits):
    # For any x the two codes are neighbours. The share of the 2**F thresholds that round up is the
    # fraction of v cut to F bits: the bias is below 2**-F of a step. Codes are read off decodes
    # without subtraction.
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    one = 2 ** fraction_bits(bits)
    dim = plane_dim(x.shape, 8 // bits, (0, 1))

    def undithered(threshold: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        planes = planes_of(levels(x, threshold), dim, 8 // bits)
        parts = quantize_with_thresholds(x, planes, bits, 16, (0, 1))
        y = dequantize_with_thresholds(parts, None, x.shape, x.dtype, bits, (0, 1))
        return y.double(), parts[1], parts[2]

    floor, offset, step = undithered(0)
    ceiling, _, _ = undithered(one - 1)
    fixed = ((x - offset) * (one / step)).clamp(max=(2**bits - 1.0) * one).long()
    share = (fixed % one).double() / one
    mean = floor + share * (ceiling - floor)
    # Roundings of v and of the decoded value: each within 2**-23 of the largest number involved.
    scale = (offset.abs() + step * 2**bits).double()
    assert bool(((mean - x).abs() <= 4 * 2.0**-23 * scale).all())


@pytest.mark.parametrize("bits", BITS)
def test_a_value_on_a_code_moves_by_no_more_than_its_dither(bits):
    # A sum v + u in float32 would move a code near 255 up with probability 2**-17.
    top = 2**bits - 1
    x = torch.arange(256.0).remainder(top + 1)
    one = 2 ** fraction_bits(bits)
    for threshold in (0, one // 2, one - 1):
        y = with_thresholds(x, levels(x, threshold), bits, 256)
        dither = (0.5 - 0.5 / one) - threshold / one if subtracts_dither(bits) else 0.0
        # In float32 a value below 4 plus the dither is rounded at 2**-22.
        assert torch.allclose(y, x + dither, rtol=0, atol=2.0**-22 if dither else 0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_drawn_thresholds_average_to_the_input(bits, dtype):
    # 600 seeds x 1,024 elements, standardised by the exact variance: f (1 - f) step**2, or
    # step**2 / 12 where the dither is subtracted. Where f is in [0.05, 0.95] each mean is normal
    # to good accuracy; the largest of 1,024 exceeds 6 with probability 2e-6.
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    generator = torch.Generator().manual_seed(3)
    seeds = torch.randint(0, 2**62, (600,), generator=generator)
    parts = [quantize(x, seed, bits, 64, (0, 1)) for seed in seeds]
    draws = torch.stack(
        [
            dequantize(*part, seed, x.shape, torch.float32, bits, (0, 1))
            for part, seed in zip(parts, seeds, strict=True)
        ]
    ).double()
    offset, step = (part.double() for part in parts[0][1:])
    fraction = ((x.double() - offset) / step).remainder(1)
    squared = fraction * (1 - fraction) if bits > 2 else torch.full_like(fraction, 1 / 12)
    deviation = (squared * step**2 / 600).sqrt()
    usual = (fraction > 0.05) & (fraction < 0.95)
    assert int(usual.sum()) > 800
    assert float(((draws.mean(0) - x.double()).abs() / deviation)[usual].max()) < 6
    # The observed variance is the one stated: 600 draws, within 6 standard errors. The fourth
    # central moment of a two-point or uniform variable is below its squared variance times
    # 1 / (f (1 - f)) < 22.
    ratio = (draws.var(0) / (squared * step**2))[usual]
    assert float((ratio.mean() - 1).abs()) < 6 * math.sqrt(22 / 600)


@pytest.mark.parametrize("bits", BITS)
def test_planes_of_codes(bits):
    num_planes = 8 // bits
    codes = torch.arange(2 * 16).remainder(2**bits).view(2, 16)
    codes[:, 0], codes[:, -1] = 0, 2**bits - 1
    dim = plane_dim(codes.shape, num_planes, (0, 1))
    zeros = planes_of(levels(codes, 0), dim, num_planes)
    parts = quantize_with_thresholds(codes.float(), zeros, bits, 16, (0, 1))
    assert list(parts[0].shape) == packed_size(codes.shape, num_planes, (0, 1))
    assert parts[0].dtype == torch.uint8
    for plane, expected in enumerate(planes_of(codes, dim, num_planes)):
        stored = (parts[0] >> (bits * plane)) & (2**bits - 1)
        assert torch.equal(stored.long(), expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_constant_groups_come_back_exactly(bits, dtype):
    x = torch.tensor([0.1, -7.3, 0.0]).to(dtype).repeat_interleave(16)
    assert torch.equal(round_trip(x, SEED, bits, 16), x)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_non_finite_groups_come_back_non_finite_and_spare_the_others(bits, bad, dtype):
    x = torch.randn(48).to(dtype)
    x[20] = bad
    y = round_trip(x, SEED, bits, 16)
    assert not bool(y[16:32].isfinite().any())
    assert bool(y[:16].isfinite().all())
    assert bool(y[32:].isfinite().all())
    every = torch.full((16,), bad, dtype=dtype)
    assert not bool(round_trip(every, SEED, bits, 16).isfinite().any())


@pytest.mark.parametrize("bits", BITS)
def test_extreme_magnitudes(bits):
    tiny = torch.linspace(1, 2, 16) * 2.0**-130
    y = round_trip(tiny, SEED, bits, 16)
    # The range is too small to be divided by: its dither at most, half a step, goes beyond it.
    slack = 0.5 * float(tiny.max() - tiny.min()) / (2**bits - 1) if subtracts_dither(bits) else 0.0
    assert float(y.min()) >= float(tiny.min()) - 1.01 * slack
    assert float(y.max()) <= (float(tiny.max()) + slack) * 1.01
    wide = torch.tensor([-3e38, 3e38] * 8)
    assert not bool(round_trip(wide, SEED, bits, 16).isfinite().any())
    half = torch.tensor([-3e4, 3e4] * 8).half()
    y = round_trip(half, SEED, bits, 16).double()
    slack = 3e4 / (2**bits - 1) if subtracts_dither(bits) else 0.0
    # One rounding to float16 at the end.
    assert float((y - half.double()).abs().max()) <= slack + 32


@pytest.mark.parametrize("shape", [(0,), (1,), (15,), (16,), (17,), (33,), (3, 0, 5), (2, 3, 7, 5)])
@pytest.mark.parametrize("bits", BITS)
def test_odd_and_empty_sizes(shape, bits):
    x = torch.rand(shape) + 5
    order = tuple(range(x.dim()))
    codes, offset, step = quantize(x, SEED, bits, 16, order)
    assert list(codes.shape) == packed_size(shape, 8 // bits, order)
    y = dequantize(codes, offset, step, SEED, x.shape, x.dtype, bits, order)
    assert y.shape == x.shape
    # Off by a step at most, of a range below 1, and by two roundings of numbers below 8.
    assert torch.allclose(y, x, rtol=0, atol=1 / (2**bits - 1) + 2.0**-20)
    assert offset.shape == step.shape
    wide = spread(offset, x.shape)
    assert bool((wide <= x).all())
    assert bool((wide + spread(step, x.shape) * (2**bits - 1) >= x - 2.0**-20).all())


@pytest.mark.parametrize("bits", BITS)
def test_the_numbers_do_not_depend_on_the_memory_order(bits):
    x = torch.randn(2, 3, 8, 4)
    plain, last = (0, 1, 2, 3), (0, 2, 3, 1)
    parts = quantize(x, SEED, bits, 16, plain)
    y = dequantize(*parts, SEED, x.shape, x.dtype, bits, plain)
    other = x.contiguous(memory_format=torch.channels_last)
    again = quantize(other, SEED, bits, 16, last)
    z = dequantize(*again, SEED, x.shape, x.dtype, bits, last)
    assert torch.equal(y, z)
    for ours, theirs in zip(parts[1:], again[1:], strict=True):
        assert torch.equal(ours, theirs)
    assert choose_blocks(x.shape, 16) == (1, 1, 4, 4)
    assert float((y - x).abs().max()) <= float(parts[2].max()) * 1.0001


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_scalar_comes_back_exactly(bits, dtype):
    x = torch.tensor(0.3, dtype=dtype)
    codes, offset, step = quantize(x, SEED, bits, 16, ())
    assert offset.dtype == step.dtype == (dtype if dtype == torch.float64 else torch.float32)
    y = dequantize(codes, offset, step, SEED, (), dtype, bits, ())
    assert y.dtype == dtype
    assert torch.equal(y, x)
