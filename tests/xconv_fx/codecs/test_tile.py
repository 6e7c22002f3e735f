import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from xconv_fx.codecs import Quantize, Tile
from xconv_fx.errors import OptionError
from xconv_fx.ops import DECOMPOSITIONS

ORDERS = {"plain": [0, 1, 2, 3], "last": [0, 2, 3, 1]}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codec", [Tile(2, (1,)), Tile(4, (1, 2)), Tile(8, (1, 1, 1))])
def test_the_mean_over_seeds_is_the_input(codec, dtype, order):
    # 400 seeds. The sum of all elements of the mean error is a normal of known scale to good
    # accuracy: six of its standard errors fail by chance once in 5e8. Elements one by one: their
    # draws are skewed, so eight.
    x = torch.randn(2, 4, 9, 10, generator=torch.Generator().manual_seed(4)).to(dtype)
    if order == "last":
        x = x.contiguous(memory_format=torch.channels_last)
    dims = ORDERS[order]
    generator = torch.Generator().manual_seed(5)
    seeds = torch.randint(0, 2**62, (400,), generator=generator)
    draws = torch.stack(
        [codec.decode(codec.encode(x, s, dims), s, x.shape, torch.float32, dims) for s in seeds]
    ).double()
    error = draws - x.double()
    assert bool((error.mean(0).abs() < 8 * error.std(0) / math.sqrt(400)).all())
    # One linear functional, as a weight gradient is.
    weight = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    values = (error * weight).sum((1, 2, 3, 4))
    assert abs(float(values.mean())) < 6 * float(values.std()) / math.sqrt(400)


# Each takes a minute to compile: both memory orders, one with edges that the side does not divide.
@pytest.mark.parametrize(("size", "order"), [((4, 6, 16, 8), "plain"), ((3, 5, 9, 11), "last")])
def test_compiled_equals_eager(size, order):
    codec, dims = Tile(4, (1, 2)), ORDERS[order]

    def round_trip(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return codec.decode(codec.encode(x, seed, dims), seed, x.shape, x.dtype, dims)

    # Eighths, so that sums of 16 are exact in any order and no code is rounded differently.
    x = torch.randint(-8, 9, size) / 8
    x = x.contiguous(memory_format=torch.channels_last) if order == "last" else x
    seed = torch.tensor(2**61 + 9)
    lowered = make_fx(round_trip, decomposition_table=DECOMPOSITIONS)(x, seed)
    compiled = torch.compile(lowered, backend="inductor")
    # Weights of 8/3 and decoded values are rounded: a code on the edge of its threshold may move,
    # and with it the 16 elements of a tile. All others agree to rounding.
    same = torch.isclose(compiled(x, seed), round_trip(x, seed), rtol=1e-5, atol=1e-5)
    assert float(same.double().mean()) > 0.95
    assert compiled(x, seed).stride() == x.stride()


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
