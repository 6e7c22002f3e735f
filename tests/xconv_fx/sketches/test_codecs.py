import dataclasses
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from passes.rules import Codec
from xconv_fx.errors import OptionError
from xconv_fx.ops import DECOMPOSITIONS
from xconv_fx.sketches.codecs import Pack, Probe, Quantize, next_power_of_two

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
]
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
    ]
    assert Pack().name == "bitmask"
    assert Pack(3).name == "pack[3b]"


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


def test_bitmask_round_trip():
    mask = (torch.randn(2, 3, 7, 5) > 0).contiguous(memory_format=torch.channels_last)
    codec = Pack()
    parts = codec.encode(mask, None, LAST)
    assert sum(part.nbytes for part in parts) == codec.nbytes(mask.shape, torch.bool) == 32
    back = codec.decode(parts, None, mask.shape, torch.bool, LAST)
    assert torch.equal(back, mask)
    assert back.stride() == mask.stride()
    floats = codec.decode(parts, None, mask.shape, torch.float32, LAST)
    assert torch.equal(floats, mask.float())
    assert codec.noise(mask.shape) == 0.0


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("order", [PLAIN, LAST])
def test_small_integers_round_trip_at_every_width(bits, order):
    dtype = torch.int8 if bits < 8 else torch.uint8
    x = torch.arange(4 * 3 * 7 * 5).remainder(2**bits).to(dtype).view(4, 3, 7, 5)
    if order == LAST:
        x = x.contiguous(memory_format=torch.channels_last)
    codec = Pack(bits)
    parts = codec.encode(x, None, order)
    assert sum(codec.widths) == bits
    assert len(parts) == len(codec.widths)
    # 420 elements fill two groups of 256.
    assert sum(part.nbytes for part in parts) == codec.nbytes(x.shape, dtype) == 64 * bits
    back = codec.decode(parts, None, x.shape, dtype, order)
    assert torch.equal(back, x)
    assert back.stride() == x.stride()


def test_a_pack_that_gets_what_it_cannot_hold_spoils_no_other_element():
    codec = Pack(3)
    x = torch.zeros(256, dtype=torch.int8)
    x[7] = 100
    back = codec.decode(codec.encode(x, None, [0]), None, x.shape, x.dtype, [0])
    assert back.nonzero().tolist() == [[7]]


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


def test_noise_of_small_and_empty_tensors():
    assert Quantize(2).noise((1,)) == 0.0
    assert Quantize(2).noise((0,)) == 0.0
    assert Probe("orthogonal", 1).noise((2, 3)) == 0.0
    assert Probe("orthogonal", 64).noise((2, 3, 8, 8)) == 0.0


def test_supports():
    shape = (2, 3, 4, 5)
    for codec in (Quantize(), Probe("independent", 20), Probe("multichannel", 60)):
        assert codec.supports(shape, torch.float16) is None
        assert codec.supports(shape, torch.int64) == (
            "sketches hold float16, bfloat16, float32 or float64, not torch.int64"
        )
    assert Probe("orthogonal", 32).supports(shape, torch.float32) is None
    assert Probe("independent", 64).supports(shape, torch.float32) == (
        "a probing count larger than makes sense: r=64 needs at least 64 positions, "
        "the tensor has 20"
    )
    assert Probe("multichannel", 64).supports(shape, torch.float32) == (
        "a probing count larger than makes sense: r=64 needs at least 64 elements a sample, "
        "the tensor has 60"
    )
    assert Probe("orthogonal", 33).supports(shape, torch.float32) == (
        "a probing count larger than makes sense: r=33 needs at least 33 (padded) positions, "
        "the tensor has 32"
    )
    assert Probe("independent", 1).supports((7,), torch.float32) == (
        "probing needs (batch, channels, ...) and got 1 dimensions"
    )
    assert Pack().supports(shape, torch.bool) is None
    assert Pack(4).supports(shape, torch.int8) is None
    assert Pack().supports(shape, torch.float16) == (
        "packing holds booleans and small integers, not torch.float16"
    )


@pytest.mark.parametrize("bits", [3, 0, 16, 2.0, True, "2", None])
def test_bits_that_are_not_allowed(bits):
    with pytest.raises(OptionError) as error:
        Quantize(bits)
    assert str(error.value) == f"option 'bits' got {bits!r}; allowed: 8, 4, 2 or 1"


@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, True, "2", None])
def test_widths_of_a_pack_that_are_not_allowed(bits):
    with pytest.raises(OptionError) as error:
        Pack(bits)
    assert str(error.value) == f"option 'bits' got {bits!r}; allowed: an int from 1 to 8"


@pytest.mark.parametrize("group_size", [0, 4, 100, 2**17, 256.0, True])
def test_group_sizes_that_are_not_allowed(group_size):
    with pytest.raises(OptionError) as error:
        Quantize(2, group_size)
    assert str(error.value) == (
        f"option 'group_size' got {group_size!r}; allowed: a multiple of 8 from 8 to 65536"
    )


@pytest.mark.parametrize("probes", [0, -1, 2**16 + 1, 4.0, False, "8"])
def test_probes_that_are_not_allowed(probes):
    with pytest.raises(OptionError) as error:
        Probe("independent", probes)
    assert str(error.value) == f"option 'probes' got {probes!r}; allowed: an int from 1 to 65536"


def test_modes_and_distributions_that_are_not_allowed():
    with pytest.raises(OptionError) as error:
        Probe("orthogonl", 4)
    assert str(error.value) == (
        "option 'mode' got 'orthogonl'; allowed: independent, multichannel, orthogonal"
    )
    with pytest.raises(OptionError) as error:
        Probe("independent", 4, "uniform")
    assert str(error.value) == "option 'distribution' got 'uniform'; allowed: gaussian, rademacher"


@names
def test_a_missing_seed_is_named(codec):
    with pytest.raises(ValueError, match=r"draws random numbers and needs a seed, got None"):
        codec.encode(torch.randn(2, 3, 7, 5), None, PLAIN)


@names
@pytest.mark.parametrize("tracing_mode", ["fake", "symbolic"])
def test_encode_and_decode_lower_to_aten(codec, tracing_mode):
    def round_trip(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return codec.decode(codec.encode(x, seed, LAST), seed, x.shape, x.dtype, LAST)

    x = torch.randn(4, 3, 8, 6).contiguous(memory_format=torch.channels_last)
    graph = make_fx(round_trip, decomposition_table=DECOMPOSITIONS, tracing_mode=tracing_mode)(
        x, SEED
    )
    targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert targets
    assert not [target for target in targets if target.startswith("xconv")]
    assert not [node for node in graph.graph.nodes if node.op == "get_attr"]
    assert torch.equal(graph(x, SEED), round_trip(x, SEED))
    if tracing_mode == "symbolic":
        # One graph for other sizes too: nothing was specialised.
        other = torch.randn(5, 4, 9, 7).contiguous(memory_format=torch.channels_last)
        assert torch.equal(graph(other, SEED), round_trip(other, SEED))


def test_operators_stay_whole_without_the_table():
    codec = Quantize(2)
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.randn(4, 3, 8, 6))
        seed = mode.from_tensor(SEED)
        graph = make_fx(lambda x, seed: codec.encode(x, seed, PLAIN))(x, seed)
    targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert targets[0] == "xconv.quantize.default"


def test_compiled_equals_eager():
    codec = Quantize(2)

    def round_trip(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return codec.decode(codec.encode(x, seed, PLAIN), seed, x.shape, x.dtype, PLAIN)

    x = torch.randn(4, 3, 8, 6)
    lowered = make_fx(round_trip, decomposition_table=DECOMPOSITIONS)(x, SEED)
    compiled = torch.compile(lowered, backend="inductor")
    # Codes are equal; the decoded values differ by one fused multiply-add.
    assert torch.allclose(compiled(x, SEED), round_trip(x, SEED), rtol=1e-6, atol=1e-6)


def test_next_power_of_two():
    assert [next_power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 1025)] == [1, 1, 2, 4, 4, 8, 2048]
    assert math.log2(next_power_of_two(2**40 + 1)) == 41
