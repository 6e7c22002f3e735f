import pytest
import torch

from xconv_fx.sketches.bitpack import pack, pack_planes, packed_size, plane_dim, planes_of, unpack

SHAPES = [(), (0,), (1,), (8,), (300,), (3, 5), (2, 3, 4, 5), (1, 2, 3, 4, 50), (2, 0, 3)]
LAST = (0, 2, 3, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_of_a_mask_is_exact(shape):
    mask = torch.rand(shape) > 0.5
    order = list(range(mask.dim()))
    packed = pack(mask, 1, order)
    assert packed.dtype == torch.uint8
    assert list(packed.shape) == packed_size(shape, 8, order)
    assert torch.equal(unpack(packed, mask.shape, torch.bool, 1, order), mask)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_round_trip_of_small_integers_is_exact(shape, bits):
    x = torch.randint(0, 2**bits, shape, dtype=torch.int8)
    order = list(range(x.dim()))
    packed = pack(x, bits, order)
    assert list(packed.shape) == packed_size(shape, 8 // bits, order)
    assert torch.equal(unpack(packed, x.shape, torch.int8, bits, order), x)


def test_round_trip_in_memory_order():
    mask = (torch.rand(2, 3, 4, 8) > 0.5).contiguous(memory_format=torch.channels_last)
    packed = pack(mask, 1, LAST)
    # The same dimension is cut, so the same bytes come out, whatever the memory order.
    assert torch.equal(packed, pack(mask.contiguous(), 1, (0, 1, 2, 3)))
    assert torch.equal(unpack(packed, mask.shape, torch.bool, 1, LAST), mask)


@pytest.mark.parametrize(
    ("size", "num_planes", "order", "dim"),
    [
        ((16, 8, 32, 32), 8, (0, 1, 2, 3), 0),
        ((4, 8, 32, 32), 8, (0, 1, 2, 3), 1),
        ((4, 8, 32, 32), 8, LAST, 2),
        # None is a multiple of 8: 7 becomes 8, 3 becomes 8, 2 becomes 8, 5 becomes 8
        ((2, 3, 7, 5), 8, (0, 1, 2, 3), 2),
        ((9, 17), 8, (0, 1), 1),
        ((9, 17), 1, (1, 0), 1),
        ((0, 5), 2, (0, 1), 0),
    ],
)
def test_the_cut_dimension_is_the_outermost_that_wastes_least(size, num_planes, order, dim):
    assert plane_dim(size, num_planes, order) == dim
    packed = list(size)
    packed[dim] = -(-size[dim] // num_planes)
    assert packed_size(size, num_planes, order) == packed


def test_planes_lie_in_the_bits_of_bytes():
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, [0, 5, 14, 39]] = True
    mask[1, [4, 20]] = True
    # Planes of 5 columns: 0 -> byte 0 bit 0, 5 -> byte 0 bit 1, 14 -> byte 4 bit 2,
    # 39 -> byte 4 bit 7; 4 -> byte 4 bit 0, 20 -> byte 0 bit 4.
    expected = torch.tensor([[0b11, 0, 0, 0, 0b10000100], [0b10000, 0, 0, 0, 1]])
    assert torch.equal(pack(mask, 1, (0, 1)), expected.to(torch.uint8))


def test_planes_that_stick_out_are_padded_with_zeros():
    x = torch.arange(1, 11, dtype=torch.int32).view(2, 5)
    first, second = planes_of(x, 1, 2)
    assert torch.equal(first, x[:, :3])
    assert torch.equal(second, torch.tensor([[4, 5, 0], [9, 10, 0]], dtype=torch.int32))
    packed = pack_planes([first, second], 4)
    assert torch.equal(packed.int(), first + 16 * second)
