import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from xconv_fx.ops import DECOMPOSITIONS, sketching

SEED = torch.tensor(2**61 + 31337)
ORDERS = {"plain": [0, 1, 2, 3], "last": [0, 2, 3, 1]}

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
each_order = pytest.mark.parametrize("order", ORDERS)


def data(dtype: torch.dtype, order: str) -> torch.Tensor:
    x = torch.randn(2, 3, 7, 6).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if order == "last" else x


@each_order
def test_mask_operators(order):
    dims = ORDERS[order]
    mask = data(torch.float32, order) > 0
    opcheck(sketching.pack, (mask, 1, dims))
    packed = sketching.pack(mask, 1, dims)
    opcheck(sketching.unpack, (packed, list(mask.shape), torch.bool, 1, dims))


@each_dtype
@each_order
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_quantize_operators(dtype, order, bits):
    dims = ORDERS[order]
    x = data(dtype, order)
    opcheck(sketching.quantize_op, (x, SEED, bits, 16, dims))
    parts = sketching.quantize_op(x, SEED, bits, 16, dims)
    opcheck(sketching.dequantize, (*parts, SEED, list(x.shape), dtype, bits, dims))


@each_dtype
@each_order
@pytest.mark.parametrize("mode", ["independent", "multichannel", "orthogonal"])
def test_probe_operators(dtype, order, mode):
    x = data(dtype, order)
    opcheck(sketching.probe, (x, SEED, mode, 4, "gaussian"))
    sketch = sketching.probe(x, SEED, mode, 4, "gaussian")
    opcheck(sketching.reconstruct, (sketch, SEED, list(x.shape), dtype, mode, "gaussian"))


@each_dtype
@each_order
@pytest.mark.parametrize(("side", "kept"), [(2, [1]), (4, [1, 2]), (4, [3, 12])])
def test_tile_operators(dtype, order, side, kept):
    dims = ORDERS[order]
    x = data(dtype, order)
    opcheck(sketching.tile, (x, SEED, side, kept, dims))
    planes = sketching.tile(x, SEED, side, kept, dims)
    opcheck(sketching.untile, (planes, SEED, list(x.shape), dtype, side, kept, dims))


@each_dtype
@each_order
@pytest.mark.parametrize(("side", "kept"), [(4, [2, 6]), (4, [3, 12])])
def test_sign_tile_operators(dtype, order, side, kept):
    dims, x = ORDERS[order], data(dtype, order)
    opcheck(sketching.sign_tile, (x, SEED, side, kept, dims))
    signs, scalars = sketching.sign_tile(x, SEED, side, kept, dims)
    rest = (list(x.shape), dtype, side, kept, dims)
    opcheck(sketching.sign_untile, (signs, scalars, SEED, *rest))


@pytest.mark.parametrize(("side", "kept"), [(2, [1]), (4, [2, 6]), (4, [3, 40])])
@pytest.mark.parametrize("grid", [[2, 3, 5], [2, 3, 4, 5], [1, 2, 3, 4, 5]])
def test_drawing_operators(side, kept, grid):
    spatial = [*range(2, len(grid))]
    # With the batch in the middle a stack of the signs would take up strides of its parts.
    for dims in ([0, 1, *spatial], [0, *spatial, 1], [*spatial, 0, 1], [*spatial, 1, 0]):
        opcheck(sketching.draw_signs, (SEED, grid, side, kept, dims))
    opcheck(sketching.draw_octonions, (SEED, grid, 2))


def test_drawing_is_left_to_operators_when_the_rest_is_lowered():
    def round_trip(x, seed):
        options = (4, [2, 6], [0, 1, 2, 3])
        parts = DECOMPOSITIONS[sketching.sign_tile](x, seed, *options)
        return DECOMPOSITIONS[sketching.sign_untile](*parts, seed, list(x.shape), x.dtype, *options)

    x = torch.randn(2, 3, 8, 8)
    graph = make_fx(round_trip)(x, SEED).graph
    ours = [str(node.target) for node in graph.nodes if "xconv" in str(node.target)]
    drawn = ["xconv.draw_signs.default", "xconv.draw_octonions.default"]
    assert ours == [*drawn, *reversed(drawn)]


def test_every_sketching_operator_has_a_decomposition():
    assert {str(op) for op in DECOMPOSITIONS} >= {
        "xconv.pack.default",
        "xconv.unpack.default",
        "xconv.quantize.default",
        "xconv.dequantize.default",
        "xconv.probe.default",
        "xconv.reconstruct.default",
        "xconv.tile.default",
        "xconv.untile.default",
        "xconv.sign_tile.default",
        "xconv.sign_untile.default",
    }


def test_fake_implementations_refuse_what_they_cannot_mean():
    fake = torch.empty(2, 3, device="meta")
    with pytest.raises(ValueError, match=r"dim_order \[0, 0\] is no permutation of the 2 dim"):
        sketching.quantize_op(fake, torch.empty((), device="meta").long(), 2, 16, [0, 0])
    with pytest.raises(
        TypeError, match=r"xconv::pack expects booleans or integers, got torch.float"
    ):
        sketching.pack(fake, 1, [0, 1])
