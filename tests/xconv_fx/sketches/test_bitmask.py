import pytest
import torch

from xconv_fx.sketches.bitmask import pack, unpack


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (8,), (9,), (3, 5), (2, 3, 4, 5), (1, 2, 3, 4, 5)]
)
def test_round_trip_is_exact(shape):
    mask = torch.rand(shape) > 0.5
    order = list(range(mask.dim()))
    packed = pack(mask, order)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-mask.numel() // 8),)
    assert torch.equal(unpack(packed, mask.shape, order), mask)


def test_round_trip_in_memory_order():
    mask = (torch.rand(2, 3, 4, 5) > 0.5).contiguous(memory_format=torch.channels_last)
    order = (0, 2, 3, 1)
    packed = pack(mask, order)
    assert torch.equal(packed, pack(mask.as_strided((120,), (1,)), (0,)))
    back = unpack(packed, mask.shape, order)
    assert torch.equal(back, mask)
    assert back.stride() == mask.stride()


def test_planes_are_eighths_of_the_padded_array():
    mask = torch.zeros(20, dtype=torch.bool)
    mask[[0, 3, 7, 19]] = True
    # 24 elements, planes of 3: 0 -> byte 0 bit 0, 3 -> byte 0 bit 1, 7 -> byte 1 bit 2,
    # 19 -> byte 1 bit 6.
    assert pack(mask, (0,)).tolist() == [0b11, 0b1000100, 0]
