"""What every codec promises: see ``passes.rules.Codec``."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from passes.rules import Codec
from xconv_fx.codecs import Pack, Probe, Quantize, SignTile, Tile
from xconv_fx.ops import DECOMPOSITIONS

PLAIN, LAST = [0, 1, 2, 3], [0, 2, 3, 1]
SEED = torch.tensor(2**61 + 271828)

RANDOM_CODECS: list[Codec] = [
    Quantize(8),
    Quantize(4),
    Quantize(2),
    Quantize(1),
    Quantize(2, group_size=64),
    Probe("independent", 8),
    Probe("independent", 8, "rademacher"),
    Probe("multichannel", 32),
    Probe("multichannel", 32, "rademacher"),
    Probe("orthogonal", 8),
    Probe("orthogonal", 33),
    Tile(2, (1,)),
    Tile(4, (1, 2)),
    Tile(8, (1, 2, 4), bits=8),
    SignTile(4, (2, 6)),
    SignTile(8, (2, 5, 9)),
]
TILES = (Tile, SignTile)
names = pytest.mark.parametrize("codec", RANDOM_CODECS, ids=lambda codec: codec.name)


def test_names():
    assert [codec.name for codec in RANDOM_CODECS] == [
        "quantize[8b]",
        "quantize[4b]",
        "quantize[2b]",
        "quantize[1b]",
        "quantize[2b,g=64]",
        "independent[r=8]",
        "independent[r=8,rademacher]",
        "multichannel[r=32]",
        "multichannel[r=32,rademacher]",
        "orthogonal[r=8]",
        "orthogonal[r=33]",
        "tile[2,1,4b]",
        "tile[4,1+2,4b]",
        "tile[8,1+2+4,8b]",
        "sign_tile[4,2+6]",
        "sign_tile[8,2+5+9]",
    ]
    assert Pack().name == "bitmask"


def test_flags():
    for codec in RANDOM_CODECS:
        assert codec.needs_seed
        assert not codec.exact
    assert Pack().exact
    assert not Pack().needs_seed


def test_codecs_are_frozen_values():
    assert Quantize(2) == Quantize()
    assert len({Quantize(2), Quantize(2), Quantize(4)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Quantize().bits = 4  # type: ignore[misc]


@names
@pytest.mark.parametrize("order", [PLAIN, LAST])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_shape_dtype_order_and_bytes(codec, order, dtype):
    x = torch.randn(2, 3, 7, 5).to(dtype)
    if order == LAST:
        x = x.contiguous(memory_format=torch.channels_last)
    parts = codec.encode(x, SEED, order)
    assert sum(part.nbytes for part in parts) == codec.nbytes(x.shape, dtype)
    y = codec.decode(parts, SEED, x.shape, dtype, order)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    again = codec.decode(codec.encode(x, SEED, order), SEED, x.shape, dtype, order)
    assert torch.equal(y, again)


@names
@pytest.mark.parametrize("shape", [(4, 8, 16, 16), (4, 8, 13, 11)])
def test_noise_model_on_gaussian_data(codec, shape):
    # Ten draws of at least 4,576 elements. Quantisation and orthogonal noise are means over many
    # elements; the others average 10 sketches x 4 samples. The observed ratio stays within 25 %.
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(shape, generator=generator)
    seeds = torch.randint(0, 2**62, (10,), generator=generator)
    observed = 0.0
    for seed in seeds:
        y = codec.decode(codec.encode(x, seed, PLAIN), seed, x.shape, x.dtype, PLAIN)
        observed += float((y - x).square().sum() / x.square().sum()) / 10
    assert observed == pytest.approx(codec.noise(shape), rel=0.25)


@names
def test_a_missing_seed_is_named(codec):
    with pytest.raises(ValueError, match=r"draws random numbers and needs a seed, got None"):
        codec.encode(torch.randn(2, 3, 7, 5), None, PLAIN)


def round_trip_of(codec):
    def round_trip(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return codec.decode(codec.encode(x, seed, LAST), seed, x.shape, x.dtype, LAST)

    return round_trip


def channels_last(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@names
def test_encode_and_decode_lower_to_aten(codec):
    round_trip = round_trip_of(codec)
    x = channels_last(4, 12, 16, 24)
    graph = make_fx(round_trip, decomposition_table=DECOMPOSITIONS, tracing_mode="fake")(x, SEED)
    targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert targets
    # What is drawn for tiles is small, and stays a call.
    ours = {target for target in targets if target.startswith("xconv")}
    assert ours <= {"xconv.draw_signs.default", "xconv.draw_octonions.default"}
    assert not [node for node in graph.graph.nodes if node.op == "get_attr"]
    assert torch.equal(graph(x, SEED), round_trip(x, SEED))


def trace_dynamic(codec, x, dims):
    """Lower a round trip with some sizes unknown; returns it, the symbols and their guards."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    kinds = [DimDynamic.DYNAMIC if d in dims else DimDynamic.STATIC for d in range(x.dim())]
    fake = mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds))
    seed = mode.from_tensor(SEED)
    with mode:
        graph = make_fx(round_trip_of(codec), decomposition_table=DECOMPOSITIONS)(fake, seed)
    symbols = {d: fake.shape[d].node.expr for d in dims}
    return graph, symbols, [guard.expr for guard in mode.shape_env.guards]


# Of 256 elements a plane at least and so of the same groups, whichever sizes are known: more
# samples than start a lattice, and odd sizes in every dimension.
OTHERS = {
    (0,): [(2, 12, 16, 24), (70, 12, 16, 24)],
    (0, 2, 3): [(70, 12, 18, 22), (3, 12, 23, 19)],
}


@names
@pytest.mark.parametrize("dims", OTHERS)
def test_sizes_unknown_at_compile_time_are_not_specialised(codec, dims):
    x = channels_last(4, 12, 16, 24)
    graph, symbols, guards = trace_dynamic(codec, x, dims)
    if not isinstance(codec, TILES) or dims == (0,):
        assert guards == []
    for shape in OTHERS[dims]:
        # Whatever torch asked about tiles (is there more than one?) holds for other sizes.
        values = {symbol: shape[d] for d, symbol in symbols.items()}
        assert all(bool(guard.subs(values)) for guard in guards)
        other = channels_last(*shape)
        again, _, _ = trace_dynamic(codec, other, dims)
        assert again.code == graph.code
        decoded = graph(other, SEED)
        if not isinstance(codec, TILES) and codec != Quantize(2, group_size=64):
            assert torch.equal(decoded, round_trip_of(codec)(other, SEED))
        # Groups are larger than where sizes are known; twice the noise at most.
        noise = float((decoded - other).square().sum() / other.square().sum())
        assert 0 < noise < 2 * codec.noise(shape)


@names
def test_a_graph_that_knows_no_size_takes_others(codec):
    x = channels_last(16, 12, 16, 24)
    graph, symbols, guards = trace_dynamic(codec, x, (0, 1, 2, 3))
    shape = (23, 13, 18, 22)
    assert all(bool(g.subs({s: shape[d] for d, s in symbols.items()})) for g in guards)
    other = channels_last(*shape)
    noise = float((graph(other, SEED) - other).square().sum() / other.square().sum())
    assert 0 < noise < 2 * codec.noise(shape)
