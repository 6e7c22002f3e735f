import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from xconv_fx.codecs import Quantize
from xconv_fx.errors import OptionError
from xconv_fx.ops import DECOMPOSITIONS

PLAIN = [0, 1, 2, 3]
SEED = torch.tensor(2**61 + 271828)


def test_noise_of_small_and_empty_tensors():
    assert Quantize(2).noise((1,)) == 0.0
    assert Quantize(2).noise((0,)) == 0.0


def test_supports():
    assert Quantize().supports((2, 3, 4, 5), torch.float16) is None
    assert Quantize().supports((2, 3, 4, 5), torch.int64) == (
        "sketches hold float16, bfloat16, float32 or float64, not torch.int64"
    )


@pytest.mark.parametrize("bits", [3, 0, 16, 2.0, True, "2", None])
def test_bits_that_are_not_allowed(bits):
    with pytest.raises(OptionError) as error:
        Quantize(bits)
    assert str(error.value) == f"option 'bits' got {bits!r}; allowed: 8, 4, 2 or 1"


@pytest.mark.parametrize("group_size", [0, 4, 100, 2**17, 256.0, True])
def test_group_sizes_that_are_not_allowed(group_size):
    with pytest.raises(OptionError) as error:
        Quantize(2, group_size)
    assert str(error.value) == (
        f"option 'group_size' got {group_size!r}; allowed: a multiple of 8 from 8 to 65536"
    )


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
