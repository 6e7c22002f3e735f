"""What holds for both codecs of tiles: unbiased, and the same numbers when compiled."""

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from xconv_fx.codecs import SignTile, Tile
from xconv_fx.ops import DECOMPOSITIONS, sketching

ORDERS = {"plain": [0, 1, 2, 3], "last": [0, 2, 3, 1]}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "codec",
    [
        *(Tile(2, (1,)), Tile(4, (1, 2)), Tile(8, (1, 1, 1))),
        *(SignTile(2, (2,)), SignTile(4, (2, 6)), SignTile(8, (1, 2, 5))),
    ],
)
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


@pytest.mark.parametrize("shape", [(4, 6, 16, 8), (3, 5, 9, 11), (2, 4, 8, 9, 10)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("codec", [Tile(4, (1, 2)), SignTile(4, (2, 6)), SignTile(8, (1, 2, 5))])
def test_decoding_stores_the_planes_on_its_way(codec, dtype, shape):
    seed, order = torch.tensor(5), list(range(len(shape)))
    planes = sketching.tile(torch.randn(shape).to(dtype), seed, codec.side, list(codec.kept), order)
    assert codec.decoding_nbytes(shape, dtype) == planes.nbytes


# Each takes a minute to compile: both memory orders, one with edges that the side does not divide.
@pytest.mark.parametrize(("size", "order"), [((4, 6, 16, 8), "plain"), ((3, 5, 9, 11), "last")])
@pytest.mark.parametrize("codec", [Tile(4, (1, 2)), SignTile(4, (2, 6))])
def test_compiled_equals_eager(codec, size, order):
    dims = ORDERS[order]

    def round_trip(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return codec.decode(codec.encode(x, seed, dims), seed, x.shape, x.dtype, dims)

    # Eighths, so that sums of 16 are exact in any order and no code of Tile is rounded differently.
    x = torch.randint(-8, 9, size) / 8
    x = x.contiguous(memory_format=torch.channels_last) if order == "last" else x
    seed = torch.tensor(2**61 + 9)
    lowered = make_fx(round_trip, decomposition_table=DECOMPOSITIONS)(x, seed)
    compiled = torch.compile(lowered, backend="inductor")
    # Weights of 8/3 and decoded values are rounded: a code on the edge of its threshold may move,
    # or a number whose sign is in the balance, and with it the 16 elements of a tile. All others
    # agree to rounding.
    same = torch.isclose(compiled(x, seed), round_trip(x, seed), rtol=1e-5, atol=1e-5)
    assert float(same.double().mean()) > 0.95
    assert compiled(x, seed).stride() == x.stride()
