import pytest
import torch

from xconv_fx.codecs import Quantize, SignTile, Tile
from xconv_fx.errors import OptionError


def test_bytes_are_those_of_signs_means_and_lengths():
    # 3 x 2 tiles of 16 elements for each of 2 x 16 channels: a byte, a mean and a length each.
    scalars = Quantize(4).nbytes((2, 2 * 16, 3, 2), torch.float32)
    assert SignTile(4, (2, 6)).nbytes((2, 16, 10, 8), torch.float32) == 2 * 16 * 3 * 2 + scalars
    # 15 rows fill two vectors but for one number.
    scalars = Quantize(4).nbytes((2, 3 * 16, 2, 2), torch.float32)
    assert (
        SignTile(4, (3, 12)).nbytes((2, 16, 8, 8), torch.float32) == 2 * 2 * 64 * 2 // 2 + scalars
    )


def test_noise_falls_with_the_rows_kept_and_ends_at_that_of_the_signs():
    shape = (4, 16, 32, 32)
    noises = [SignTile(4, kept).noise(shape) for kept in ((1, 3), (2, 6), (3, 9), (3, 12))]
    assert noises == sorted(noises, reverse=True)
    # 15 of 16 elements at 0.476 each, less what one filled up number takes along, and rounding.
    assert noises[-1] == pytest.approx(15 / 16 * 0.476, rel=0.1)
    # Half the error of rows kept at 4 bits each, at fewer bytes.
    signs, numbers = SignTile(4, (2, 6)), Tile(4, (1, 2))
    assert signs.nbytes(shape, torch.float32) < numbers.nbytes(shape, torch.float32)
    assert signs.noise(shape) < 0.5 * numbers.noise(shape)


@pytest.mark.parametrize("shape", [(8, 16, 64), (4, 8, 16, 16, 16)])
def test_noise_model_in_one_and_three_dimensions(shape):
    # Ten draws of at least 8,192 normal elements; the observed ratio stays within 25 %.
    codec = SignTile(4, (1, 2)) if len(shape) == 3 else SignTile(4, (3, 13))
    order = list(range(len(shape)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    observed = 0.0
    for seed in torch.arange(10) * 2**40 + 17:
        y = codec.decode(codec.encode(x, seed, order), seed, x.shape, x.dtype, order)
        observed += float((y - x).square().sum() / x.square().sum()) / 10
    assert observed == pytest.approx(codec.noise(shape), rel=0.25)


def test_supports():
    codec = SignTile(4, (2, 6))
    assert codec.supports((2, 3, 4, 5), torch.float32) is None
    assert codec.supports((2, 3, 4, 5, 9), torch.float64) is None
    assert codec.supports((2, 3, 4, 5), torch.int8) == (
        "sketches hold float16, bfloat16, float32 or float64, not torch.int8"
    )
    assert codec.supports((2, 3, 3, 8), torch.float32) == (
        "3x8 positions are too few for tiles of side 4"
    )
    assert codec.supports((2, 3, 8), torch.float32) == (
        "level 1 of a tile in 1 dimensions has 1 rows, of which 2 are asked for"
    )
    assert SignTile(4, (3, 13)).supports((2, 3, 8, 8), torch.float32) == (
        "level 2 of a tile in 2 dimensions has 12 rows, of which 13 are asked for"
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"side": 3}, "option 'side' got 3; allowed: 2, 4 or 8"),
        (
            {"side": 4, "kept": (1,)},
            "option 'kept' got (1,); allowed: a tuple of 2 ints from 1 to 512 with side=4",
        ),
    ],
)
def test_options_that_are_not_allowed(given, text):
    with pytest.raises(OptionError) as error:
        SignTile(**given)
    assert str(error.value) == text
