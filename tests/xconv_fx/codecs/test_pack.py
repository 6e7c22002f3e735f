import pytest
import torch

from xconv_fx.codecs import Pack
from xconv_fx.errors import OptionError

PLAIN, LAST = [0, 1, 2, 3], [0, 2, 3, 1]


def test_bitmask_round_trip():
    mask = (torch.randn(2, 3, 7, 5) > 0).contiguous(memory_format=torch.channels_last)
    codec = Pack()
    parts = codec.encode(mask, None, LAST)
    assert sum(part.nbytes for part in parts) == codec.nbytes(mask.shape, torch.bool)
    # 7 is cut into 8 planes of 1: the least waste of 2, 3, 7 and 5
    assert parts[0].shape == (2, 3, 1, 5)
    back = codec.decode(parts, None, mask.shape, torch.bool, LAST)
    assert torch.equal(back, mask)
    assert back.stride() == mask.stride()
    floats = codec.decode(parts, None, mask.shape, torch.float32, LAST)
    assert torch.equal(floats, mask.float())
    assert codec.noise(mask.shape) == 0.0


def test_supports():
    shape = (2, 3, 4, 5)
    assert Pack().supports(shape, torch.bool) is None
    assert Pack(4).supports(shape, torch.int8) is None
    assert Pack().supports(shape, torch.float16) == (
        "packing holds booleans and small integers, not torch.float16"
    )


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("order", [PLAIN, LAST])
def test_small_integers_round_trip_at_every_width(bits, order):
    dtype = torch.int8 if bits < 8 else torch.uint8
    x = torch.arange(8 * 3 * 7 * 5).remainder(2**bits).to(dtype).view(8, 3, 7, 5)
    if order == LAST:
        x = x.contiguous(memory_format=torch.channels_last)
    codec = Pack(bits)
    parts = codec.encode(x, None, order)
    assert sum(codec.widths) == bits
    assert len(parts) == len(codec.widths)
    assert sum(part.nbytes for part in parts) == codec.nbytes(x.shape, dtype) == 105 * bits
    back = codec.decode(parts, None, x.shape, dtype, order)
    assert torch.equal(back, x)
    assert back.stride() == x.stride()


def test_a_pack_that_gets_what_it_cannot_hold_spoils_no_other_element():
    codec = Pack(3)
    x = torch.zeros(256, dtype=torch.int8)
    x[7] = 100
    back = codec.decode(codec.encode(x, None, [0]), None, x.shape, x.dtype, [0])
    assert back.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, True, "2", None])
def test_bits_that_are_not_allowed(bits):
    with pytest.raises(OptionError) as error:
        Pack(bits)
    assert str(error.value) == f"option 'bits' got {bits!r}; allowed: an int from 1 to 8"
