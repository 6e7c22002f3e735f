"""Pools before a convolution, through the whole compiled path: what is kept, and its exactness.

A max pool keeps offsets in its windows at ceil(log2(window)) bits; the others keep nothing. Output
gradient and weights are whole numbers, so that every sum is exact in whatever order it is taken:
the gradient that passes the pool must equal eager's to the bit.
"""

import math

import pytest
import torch
from torch import nn

import xconv_fx
from xconv_fx.codecs import Pack

CHANNELS_AFTER = {"pixel shuffle": 1, "pixel unshuffle": 16}
SIZES = {1: (4, 4, 67), 2: (3, 4, 26, 29), 3: (3, 4, 11, 12, 13)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def step(pool, dims, compile_xconv, *, channels=4, channels_last=False, **options):
    """One step eager and one compiled; returns both input gradients and the report's rows."""
    model = nn.Sequential(pool, CONVOLUTIONS[dims](channels, 5, 1))
    x = torch.randn(SIZES[dims])
    if channels_last:
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        x = x.contiguous(memory_format=formats[dims])
    x.requires_grad_()
    with torch.no_grad():
        model[1].weight.copy_(torch.randint(-5, 6, model[1].weight.shape))
    compiled = compile_xconv(model, **options)
    grad_output = torch.randint(-5, 6, model(x).shape).float()
    grads = []
    for call in (model, compiled):
        x.grad = None
        call(x).backward(grad_output)
        grads.append(x.grad)
    report = xconv_fx.last_report()
    assert report.exact is None
    assert report.num_sketched_convolutions == 1
    return grads, report.values


def offsets_of(rows):
    """The one kept value beside the sketch of the convolution's input."""
    others = [row for row in rows if row.decision != "sketch"]
    assert len(others) == 1, others
    return others[0]


# pool, dims, bits an offset
MAX_POOLS = {
    "1d": (nn.MaxPool1d(2), 1, 1),
    "1d overlapping": (nn.MaxPool1d(3, 2, 1, ceil_mode=True), 1, 2),
    "1d dilated": (nn.MaxPool1d(5, 1, 2, dilation=3), 1, 3),
    "1d adaptive": (nn.AdaptiveMaxPool1d(48), 1, 2),
    "1d adaptive even": (nn.AdaptiveMaxPool1d(67), 1, 1),
    "2d": (nn.MaxPool2d(2), 2, 2),
    "2d overlapping": (nn.MaxPool2d(3, 2, 1), 2, 4),
    "2d ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), 2, 4),
    "2d oblong": (nn.MaxPool2d((1, 3), (2, 1), (0, 1)), 2, 2),
    "2d 5x5": (nn.MaxPool2d(5, 2, 2), 2, 5),
    "2d 7x7": (nn.MaxPool2d(7, 2, 3), 2, 6),
    "2d 7x7 dilated": (nn.MaxPool2d(7, 1, 3, dilation=2), 2, 6),
    "2d adaptive": (nn.AdaptiveMaxPool2d((10, 9)), 2, 5),
    "2d adaptive even": (nn.AdaptiveMaxPool2d((13, 29)), 2, 1),
    "3d": (nn.MaxPool3d(2), 3, 3),
    "3d overlapping": (nn.MaxPool3d(3, 2, 1), 3, 5),
    "3d ceil": (nn.MaxPool3d((2, 3, 2), 2, ceil_mode=True), 3, 4),
    "3d dilated": (nn.MaxPool3d(2, 1, 1, dilation=2), 3, 3),
    "3d adaptive": (nn.AdaptiveMaxPool3d((5, 5, 5)), 3, 6),
}


@pytest.mark.parametrize("name", MAX_POOLS)
def test_a_max_pool_keeps_packed_offsets_and_exact_gradients(name, compile_xconv):
    pool, dims, bits = MAX_POOLS[name]
    (expected, got), rows = step(pool, dims, compile_xconv)
    kept = offsets_of(rows)
    assert (kept.decision, kept.codec) == ("pack", f"pack[{bits}b]" if bits > 1 else "bitmask")
    assert kept.kept_nbytes == Pack(bits).nbytes(kept.shape, kept.dtype)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("pool", "dims", "dtype"),
    [
        (nn.AdaptiveMaxPool2d(1), 2, torch.int16),
        (nn.AdaptiveMaxPool2d((1, 9)), 2, torch.uint8),
        (nn.AdaptiveMaxPool3d((2, 2, 1)), 3, torch.int16),
        (nn.MaxPool2d((13, 20), 3), 2, torch.int16),
        (nn.FractionalMaxPool2d(2, output_ratio=0.6), 2, torch.int16),
        (nn.FractionalMaxPool3d(2, output_ratio=0.6), 3, torch.int16),
    ],
    ids=repr,
)
def test_offsets_of_large_windows_are_kept_in_the_smallest_dtype(pool, dims, dtype, compile_xconv):
    if isinstance(pool, (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)):
        num_samples = (*SIZES[dims][:2], dims)
        pool._random_samples = torch.rand(num_samples)
    (expected, got), rows = step(pool, dims, compile_xconv)
    assert [row.dtype for row in rows if not row.dtype.is_floating_point] == [dtype]
    for row in rows:
        if row.decision == "keep":
            assert row.kept_nbytes <= math.prod(row.shape) * 4
            assert math.prod(row.shape) < math.prod(SIZES[dims])
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [("2d 5x5", False), ("2d adaptive", True), ("3d overlapping", False), ("3d adaptive", True)],
)
def test_max_pools_under_inductor(name, channels_last, compile_xconv):
    pool, dims, bits = MAX_POOLS[name]
    (expected, got), rows = step(
        pool, dims, compile_xconv, channels_last=channels_last, inner="inductor"
    )
    assert offsets_of(rows).codec == f"pack[{bits}b]"
    assert torch.equal(got, expected)


def test_indices_that_are_returned_too(compile_xconv):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool3d(3, 2, return_indices=True)
            self.conv = nn.Conv3d(4, 5, 1)

        def forward(self, x):
            values, indices = self.pool(x)
            return self.conv(values), indices

    model = Net()
    x = torch.randn(SIZES[3], requires_grad=True)
    _, expected = model(x)
    _, got = compile_xconv(model)(x)
    assert torch.equal(got, expected)


UPSAMPLES = {
    "nearest-1d": (nn.Upsample(scale_factor=2), 1),
    "nearest-2d": (nn.Upsample(scale_factor=2), 2),
    "nearest-2d-size": (nn.Upsample(size=(31, 47)), 2),
    "nearest-exact": (nn.Upsample(scale_factor=1.5, mode="nearest-exact"), 2),
    "nearest-3d": (nn.Upsample(scale_factor=2), 3),
    "linear": (nn.Upsample(scale_factor=2, mode="linear"), 1),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), 2),
    "bilinear-size": (nn.Upsample(size=(31, 47), mode="bilinear", align_corners=True), 2),
    "bicubic": (nn.Upsample(scale_factor=1.7, mode="bicubic"), 2),
    "bicubic-size": (nn.Upsample(size=(31, 47), mode="bicubic", align_corners=True), 2),
    "trilinear": (nn.Upsample(scale_factor=2, mode="trilinear"), 3),
    "trilinear-size": (nn.Upsample(size=(7, 15, 9), mode="trilinear", align_corners=True), 3),
}
REARRANGEMENTS = {
    "pixel shuffle": (nn.Sequential(nn.PixelShuffle(2), nn.ZeroPad2d(1)), 2),
    "pixel unshuffle": (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 0)), nn.PixelUnshuffle(2)), 2),
    "channel shuffle": (nn.ChannelShuffle(2), 2),
    "zero pad": (nn.ZeroPad2d(2), 2),
    "reflection pad": (nn.ReflectionPad2d(2), 2),
    "replication pad": (nn.ReplicationPad2d(2), 2),
    "circular pad": (nn.CircularPad2d(2), 2),
}
AVERAGE_POOLS = {
    "average-1d": (nn.AvgPool1d(3, 2, 1), 1),
    "average-2d": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), 2),
    "average-2d-ceil": (nn.AvgPool2d((2, 3), ceil_mode=True, divisor_override=5), 2),
    "average-3d": (nn.AvgPool3d(2), 3),
    "adaptive-average-1d": (nn.AdaptiveAvgPool1d(5), 1),
    "adaptive-average-2d": (nn.AdaptiveAvgPool2d((7, 5)), 2),
    "adaptive-average-2d-even": (nn.AdaptiveAvgPool2d((13, 29)), 2),
    "adaptive-average-3d": (nn.AdaptiveAvgPool3d((4, 5, 3)), 3),
}
KEEPERS_OF_NOTHING = {**UPSAMPLES, **REARRANGEMENTS, **AVERAGE_POOLS}


@pytest.mark.parametrize("name", KEEPERS_OF_NOTHING)
def test_a_linear_layer_without_weights_keeps_nothing(name, compile_xconv, assert_to_rounding):
    layer, dims = KEEPERS_OF_NOTHING[name]
    channels = CHANNELS_AFTER.get(name, 4)
    (expected, got), rows = step(layer, dims, compile_xconv, channels=channels)
    # The input of the convolution, and nothing else.
    assert {row.decision for row in rows} <= {"sketch", "derive"}
    assert_to_rounding(got, expected)


@pytest.mark.parametrize("name", ["bicubic", "adaptive-average-2d"])
def test_such_a_layer_under_inductor(name, compile_xconv, assert_to_rounding):
    layer, dims = KEEPERS_OF_NOTHING[name]
    (expected, got), rows = step(layer, dims, compile_xconv, inner="inductor")
    assert {row.decision for row in rows} <= {"sketch", "derive"}
    assert_to_rounding(got, expected)
