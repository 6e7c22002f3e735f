import math

import pytest
import torch

from xconv_fx.sketches.quantize import (
    dequantize,
    draw_thresholds,
    fraction_bits,
    quantize,
    quantize_with_thresholds,
)

BITS = [8, 4, 2, 1]
SEED = torch.tensor(2**61 + 987654321)


def levels(bits: int, group_size: int, num_groups: int, value: float) -> tuple[torch.Tensor, ...]:
    """The same threshold everywhere, given as a share of a step."""
    threshold = int(value * 2 ** fraction_bits(bits))
    shape = (num_groups, group_size * bits // 8)
    return (torch.full(shape, threshold, dtype=torch.int32),) * (8 // bits)


def decoded(x: torch.Tensor, codes: torch.Tensor, ranges: torch.Tensor, bits: int) -> torch.Tensor:
    order = list(range(x.dim()))
    return dequantize(codes, ranges, x.shape, x.dtype, bits, order)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unbiased_over_every_rounding_outcome(bits, dtype):
    # 2**10 equally spaced thresholds are every outcome that matters when v is a multiple of
    # 2**-10: the mean over them is then E[decode(encode(x))], exactly. Values are chosen so that
    # step = 1 and nothing is rounded anywhere: the equality is exact, no tolerance.
    top = 2**bits - 1
    generator = torch.Generator().manual_seed(bits)
    x = torch.randint(0, top * 1024 + 1, (3, 16), generator=generator).to(dtype) / 1024
    x[:, 3], x[:, 12] = 0, top
    x = x - 17
    total = torch.zeros(3, 16, dtype=torch.float64)
    for k in range(1024):
        parts = quantize_with_thresholds(x, levels(bits, 16, 3, k / 1024), bits, 16, (0, 1))
        total += decoded(x, *parts, bits).double()
    assert torch.equal(total / 1024, x.double())


@pytest.mark.parametrize("bits", BITS)
def test_rounding_probability_counts_the_thresholds(bits):
    # For any x the two outcomes are the neighbouring codes. The share of the 2**F thresholds that
    # round up is the fraction of v cut to F bits: the bias is below 2**-F of a step.
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    one = 2 ** fraction_bits(bits)
    low = quantize_with_thresholds(x, levels(bits, 16, 4, 0.0), bits, 16, (0, 1))
    high = quantize_with_thresholds(x, levels(bits, 16, 4, 1 - 1 / one), bits, 16, (0, 1))
    floor, ceiling = decoded(x, *low, bits).double(), decoded(x, *high, bits).double()
    offset, step = low[1][:, :1], low[1][:, 1:]
    fixed = ((x - offset) * (one / step)).clamp(max=(2**bits - 1.0) * one).long()
    share = (fixed % one).double() / one
    mean = floor + share * (ceiling - floor)
    # Roundings of v and of the decoded value: each within 2**-23 of the largest number involved.
    scale = (offset.abs() + step * 2**bits).double()
    assert bool(((mean - x).abs() <= 4 * 2.0**-23 * scale).all())


@pytest.mark.parametrize("bits", BITS)
def test_a_value_on_a_code_never_moves(bits):
    # A sum v + u in float32 would move a code near 255 up with probability 2**-17.
    top = 2**bits - 1
    x = torch.arange(256.0).remainder(top + 1)
    for value in (0.0, 0.5, 1 - 2.0**-23):
        parts = quantize_with_thresholds(x, levels(bits, 256, 1, value), bits, 256, (0,))
        assert torch.equal(decoded(x, *parts, bits), x)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_drawn_thresholds_average_to_the_input(bits, dtype):
    # 600 seeds x 1,000 elements, standardised by the exact variance f (1 - f) step**2. Where f is
    # in [0.05, 0.95] each mean is normal to good accuracy; the largest of 1,000 exceeds 6 with
    # probability 2e-6. The sum over all elements is normal as well.
    x = torch.randn(1000, generator=torch.Generator().manual_seed(2)).to(dtype)
    generator = torch.Generator().manual_seed(3)
    seeds = torch.randint(0, 2**62, (600,), generator=generator)
    parts = [quantize(x, seed, bits, 64, (0,)) for seed in seeds]
    draws = torch.stack(
        [dequantize(*part, x.shape, torch.float32, bits, (0,)) for part in parts]
    ).double()
    offset, step = parts[0][1].double().repeat_interleave(64, 0)[:1000].unbind(1)
    fraction = ((x.double() - offset) / step).remainder(1)
    variance = fraction * (1 - fraction) * step**2 / 600
    error = draws.mean(0) - x.double()
    usual = (fraction > 0.05) & (fraction < 0.95)
    assert int(usual.sum()) > 800
    assert float((error.abs() / variance.sqrt())[usual].max()) < 6
    assert abs(float(error.sum())) < 6 * float(variance.sum().sqrt())


def test_thresholds_are_distinct_uniforms():
    for bits in BITS:
        planes = torch.stack(draw_thresholds(500, SEED, bits, 64)) / 2 ** fraction_bits(bits)
        assert planes.shape == (8 // bits, 500, 8 * bits)
        # 32,000 draws on 2**F values: 30.5 coincidences expected (61 at 8 bits), 6 deviations.
        expected = 32000**2 / 2 / 2 ** fraction_bits(bits)
        assert planes.numel() - planes.unique().numel() < expected + 6 * math.sqrt(expected)
        assert abs(float(planes.double().mean()) - 0.5) < 6 * math.sqrt(1 / 12 / 32000)
        flat = planes.double().reshape(8 // bits, -1) - 0.5
        gram = flat @ flat.t() / flat.shape[1] * 12
        off = gram - torch.diag(gram.diag())
        # Neighbouring windows of one hash correlate by 2**-8, on purpose.
        assert float(off.abs().max()) < 2**-8 + 6 / math.sqrt(flat.shape[1])


@pytest.mark.parametrize("bits", BITS)
def test_planar_packing(bits):
    per_group, width = 16, 16 * bits // 8
    codes = torch.arange(32).remainder(2**bits).view(2, per_group)
    codes[:, 0], codes[:, -1] = 0, 2**bits - 1
    parts = quantize_with_thresholds(
        codes.float(), levels(bits, 16, 2, 0.5), bits, per_group, (0, 1)
    )
    assert parts[0].shape == (2, width)
    assert parts[0].dtype == torch.uint8
    for plane in range(8 // bits):
        stored = (parts[0] >> (bits * plane)) & (2**bits - 1)
        assert torch.equal(stored.long(), codes[:, plane * width : (plane + 1) * width])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_constant_groups_come_back_exactly(bits, dtype):
    x = torch.tensor([0.1, -7.3, 0.0]).to(dtype).repeat_interleave(16)
    assert torch.equal(decoded(x, *quantize(x, SEED, bits, 16, (0,)), bits), x)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_non_finite_groups_come_back_non_finite_and_spare_the_others(bits, bad, dtype):
    x = torch.randn(48).to(dtype)
    x[20] = bad
    y = decoded(x, *quantize(x, SEED, bits, 16, (0,)), bits)
    assert not bool(y[16:32].isfinite().any())
    assert bool(y[:16].isfinite().all())
    assert bool(y[32:].isfinite().all())
    every = torch.full((16,), bad, dtype=dtype)
    assert not bool(decoded(every, *quantize(every, SEED, bits, 16, (0,)), bits).isfinite().any())


@pytest.mark.parametrize("bits", BITS)
def test_extreme_magnitudes(bits):
    tiny = torch.linspace(1, 2, 16) * 2.0**-130
    y = decoded(tiny, *quantize(tiny, SEED, bits, 16, (0,)), bits)
    assert bool((y >= tiny.min()).all())
    assert bool((y <= tiny.max() * 1.01).all())
    wide = torch.tensor([-3e38, 3e38] * 8)
    assert not bool(decoded(wide, *quantize(wide, SEED, bits, 16, (0,)), bits).isfinite().any())
    half = torch.tensor([-6e4, 6e4] * 8).half()
    assert torch.equal(decoded(half, *quantize(half, SEED, bits, 16, (0,)), bits), half)


@pytest.mark.parametrize("numel", [0, 1, 15, 16, 17, 33])
def test_padding_is_invisible(numel):
    x = torch.rand(numel) + 5
    codes, ranges = quantize(x, SEED, 8, 16, (0,))
    assert codes.shape == (-(-numel // 16), 16)
    y = decoded(x, codes, ranges, 8)
    assert y.shape == x.shape
    assert torch.allclose(y, x, atol=1 / 255)
    for group in range(codes.shape[0]):
        assert float(ranges[group, 0]) == float(x[group * 16 : (group + 1) * 16].min())


def test_memory_order_decides_the_groups_and_the_result_keeps_it():
    x = torch.randn(2, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    order = (0, 2, 3, 1)
    codes, ranges = quantize(x, SEED, 4, 16, order)
    flat = x.as_strided((x.numel(),), (1,))
    again = quantize(flat, SEED, 4, 16, (0,))
    assert torch.equal(codes, again[0])
    assert torch.equal(ranges, again[1])
    y = dequantize(codes, ranges, x.shape, x.dtype, 4, order)
    assert y.stride() == x.stride()
    assert float((y - x).abs().max()) <= float(ranges[:, 1].max()) * 1.0001


def test_scalars_and_float64():
    x = torch.tensor(0.3, dtype=torch.float64)
    codes, ranges = quantize(x, SEED, 2, 16, ())
    assert ranges.dtype == torch.float64
    assert torch.equal(dequantize(codes, ranges, (), torch.float64, 2, ()), x)
