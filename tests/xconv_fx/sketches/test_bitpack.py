import pytest
import torch

from xconv_fx.sketches.bitpack import pack, unpack

SHAPES = [(), (0,), (1,), (8,), (300,), (3, 5), (2, 3, 4, 5), (1, 2, 3, 4, 50)]


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_of_a_mask_is_exact(shape):
    mask = torch.rand(shape) > 0.5
    order = list(range(mask.dim()))
    packed = pack(mask, 1, order)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-mask.numel() // 256), 32)
    assert torch.equal(unpack(packed, mask.shape, torch.bool, 1, order), mask)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_round_trip_of_small_integers_is_exact(shape, bits):
    x = torch.randint(0, 2**bits, shape, dtype=torch.int8)
    order = list(range(x.dim()))
    packed = pack(x, bits, order)
    assert packed.shape == (-(-x.numel() // 256), 32 * bits)
    assert torch.equal(unpack(packed, x.shape, torch.int8, bits, order), x)


def test_round_trip_in_memory_order():
    mask = (torch.rand(2, 3, 4, 5) > 0.5).contiguous(memory_format=torch.channels_last)
    order = (0, 2, 3, 1)
    packed = pack(mask, 1, order)
    assert torch.equal(packed, pack(mask.as_strided((120,), (1,)), 1, (0,)))
    back = unpack(packed, mask.shape, torch.bool, 1, order)
    assert torch.equal(back, mask)
    assert back.stride() == mask.stride()


def test_planes_are_eighths_of_a_group():
    mask = torch.zeros(300, dtype=torch.bool)
    mask[[0, 32, 71, 255, 256]] = True
    # Planes of 32 elements: 0 -> byte 0 bit 0, 32 -> byte 0 bit 1, 71 -> byte 7 bit 2,
    # 255 -> byte 31 bit 7; the second group starts at 256.
    packed = pack(mask, 1, (0,))
    expected = torch.zeros(2, 32, dtype=torch.uint8)
    expected[0, 0], expected[0, 7], expected[0, 31], expected[1, 0] = 0b11, 0b100, 0b10000000, 1
    assert torch.equal(packed, expected)
