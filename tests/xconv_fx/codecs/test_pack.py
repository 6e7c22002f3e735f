import pytest
import torch

from xconv_fx.codecs import Pack
from xconv_fx.errors import OptionError

LAST = [0, 2, 3, 1]


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


@pytest.mark.parametrize("bits", [3, 8, True])
def test_bits_that_are_not_allowed(bits):
    with pytest.raises(OptionError) as error:
        Pack(bits)
    assert str(error.value) == f"option 'bits' got {bits!r}; allowed: 1, 2 or 4"
