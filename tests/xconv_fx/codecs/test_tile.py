import pytest
import torch

from xconv_fx.codecs import Quantize, Tile
from xconv_fx.errors import OptionError


def test_bytes_are_those_of_the_kept_numbers():
    # 3 x 2 tiles of 16 elements for each of 2 x 16 channels, 4 numbers of 4 bits each.
    assert Tile(4, (1, 2)).nbytes((2, 16, 10, 8), torch.float32) == Quantize(4).nbytes(
        (4, 2, 16, 3, 2), torch.float32
    )
    # A level has no more rows than it has: 3 of the coarser, 1 of the finer.
    assert Tile(4, (9, 1)).nbytes((2, 16, 8, 8), torch.float32) == Quantize(4).nbytes(
        (5, 2, 16, 2, 2), torch.float32
    )


def test_noise_falls_with_the_rows_kept_and_ends_at_that_of_the_quantiser():
    shape = (4, 16, 32, 32)
    noises = [Tile(4, kept).noise(shape) for kept in ((1, 1), (1, 2), (1, 4), (3, 11), (3, 12))]
    assert noises == sorted(noises, reverse=True)
    assert noises[-1] == pytest.approx(Quantize(4).noise((16, 4, 16, 8, 8)))


@pytest.mark.parametrize("shape", [(8, 16, 64), (4, 8, 16, 16, 16)])
def test_noise_model_in_one_and_three_dimensions(shape):
    # Ten draws of at least 8,192 normal elements; the observed ratio stays within 25 %.
    codec = Tile(4, (1, 1))
    order = list(range(len(shape)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    observed = 0.0
    for seed in torch.arange(10) * 2**40 + 17:
        y = codec.decode(codec.encode(x, seed, order), seed, x.shape, x.dtype, order)
        observed += float((y - x).square().sum() / x.square().sum()) / 10
    assert observed == pytest.approx(codec.noise(shape), rel=0.25)


def test_supports():
    codec = Tile(4, (1, 2))
    assert codec.supports((2, 3, 4), torch.float16) is None
    assert codec.supports((2, 3, 4, 5), torch.float32) is None
    assert codec.supports((2, 3, 4, 5, 9), torch.float64) is None
    assert codec.supports((2, 3, 4, 5), torch.int8) == (
        "sketches hold float16, bfloat16, float32 or float64, not torch.int8"
    )
    for shape in ((2, 3), (1, 2, 4, 4, 4, 4)):
        assert codec.supports(shape, torch.float32) == (
            "tiles need (batch, channels, ...) with 1, 2 or 3 spatial dimensions "
            f"and got {len(shape)} dimensions"
        )
    assert codec.supports((2, 3, 3, 8), torch.float32) == (
        "3x8 positions are too few for tiles of side 4"
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"side": 3}, "option 'side' got 3; allowed: 2, 4 or 8"),
        ({"side": True}, "option 'side' got True; allowed: 2, 4 or 8"),
        (
            {"kept": (1,)},
            "option 'kept' got (1,); allowed: a tuple of 2 ints from 1 to 512 with side=4",
        ),
        (
            {"kept": [1, 2]},
            "option 'kept' got [1, 2]; allowed: a tuple of 2 ints from 1 to 512 with side=4",
        ),
        (
            {"side": 2, "kept": (0,)},
            "option 'kept' got (0,); allowed: a tuple of 1 ints from 1 to 512 with side=2",
        ),
        ({"bits": 3}, "option 'bits' got 3; allowed: 8, 4, 2 or 1"),
    ],
)
def test_options_that_are_not_allowed(given, text):
    with pytest.raises(OptionError) as error:
        Tile(**given)
    assert str(error.value) == text
