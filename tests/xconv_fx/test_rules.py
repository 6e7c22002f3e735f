"""Which codecs for which options, and that every exposure keeps aten's numbers."""

import itertools
import math
import operator

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

import passes
import xconv_fx.rules
from xconv_fx.codecs import Pack, Probe, Quantize, Tile
from xconv_fx.options import Options
from xconv_fx.rules import (
    EXPOSURES,
    LADDER,
    LINEAR_USES,
    PATH_LADDER,
    candidate_codecs,
    exact_decompositions,
    make_rules,
    max_pool,
    tracing_decompositions,
)

aten = torch.ops.aten
xconv = torch.ops.xconv


@pytest.mark.parametrize(
    ("given", "codecs"),
    [
        ({}, LADDER),
        ({"bits": 4}, (Quantize(4),)),
        ({"sketch": "quantize"}, (Quantize(2),)),
        ({"sketch": "quantize", "bits": 1}, (Quantize(1),)),
        ({"sketch": "tile"}, (Tile(4, (1, 2), 4),)),
        ({"sketch": "tile", "side": 8, "bits": 8}, (Tile(8, (1, 2, 4), 8),)),
        ({"sketch": "tile", "side": 2, "kept": [2]}, (Tile(2, (2,), 4),)),
        ({"sketch": "independent"}, (Probe("independent", 16, "gaussian"),)),
        (
            {"sketch": "multichannel", "probes": 3, "distribution": "rademacher"},
            (Probe("multichannel", 3, "rademacher"),),
        ),
        ({"sketch": "orthogonal", "probes": 8}, (Probe("orthogonal", 8),)),
    ],
)
def test_codecs_of_weight_gradients_follow_the_options(given, codecs):
    options = Options(**given)
    assert candidate_codecs(options) == codecs
    assert make_rules(options).codecs == codecs


def test_codecs_on_the_path_of_the_gradient_are_quantisers_whatever_the_options():
    assert (Quantize(8), Quantize(4), Quantize(2), Quantize(1)) == PATH_LADDER
    for given in ({}, {"bits": 1}, {"sketch": "independent"}, {"sketch": "tile"}):
        assert make_rules(Options(**given)).path_codecs == PATH_LADDER


@pytest.mark.parametrize("shape", [(16, 32, 32, 32), (16, 32, 16, 16, 16)])
def test_the_ladder_goes_down_to_a_quarter_of_a_bit(shape):
    fitting = [codec for codec in LADDER if codec.supports(shape, torch.float32) is None]
    rates = [8 * codec.nbytes(shape, torch.float32) / math.prod(shape) for codec in fitting]
    noises = [codec.noise(shape) for codec in fitting]
    assert rates == sorted(rates, reverse=True)
    assert noises == sorted(noises)
    assert rates[0] > 8
    assert rates[-1] < 0.27


@pytest.mark.parametrize("shape", [(8, 16, 64), (8, 16, 32, 32), (8, 16, 16, 16, 16), (4, 8, 7, 9)])
@pytest.mark.parametrize(("price", "bits"), [(Options().noise_price, 4), (0.03, 2)])
def test_what_a_price_buys(shape, price, bits):
    size = 4 * math.prod(shape)
    fitting = [codec for codec in LADDER if codec.supports(shape, torch.float32) is None]
    best = min(
        fitting, key=lambda c: c.nbytes(shape, torch.float32) + price * c.noise(shape) * size
    )
    assert best == Quantize(bits)


def test_a_codec_chosen_by_name_pays_no_price_for_its_noise():
    priced = make_rules(Options()).linear
    assert {use.sensitivity for use in priced[xconv.conv_weight_grad.default]} == {1.0}
    for given in ({"bits": 2}, {"sketch": "quantize"}, {"sketch": "independent"}):
        fixed = make_rules(Options(**given)).linear
        assert fixed.keys() == priced.keys()
        for op, uses in priced.items():
            for use, with_name in zip(uses, fixed[op], strict=True):
                expected = use.sensitivity if use.on_path else 0.0
                assert (with_name.arg, with_name.on_path) == (use.arg, use.on_path)
                assert with_name.sensitivity == expected


def test_noise_on_the_path_of_the_gradient_is_dearer():
    by_place = {
        place: {op for op, uses in LINEAR_USES.items() if {use.on_path for use in uses} == {place}}
        for place in (True, False, None)
    }
    assert by_place == {
        True: {xconv.norm_input_grad.default, xconv.scale_grad.default},
        False: {xconv.conv_weight_grad.default, xconv.norm_weight_grad.default},
        None: {aten.mm.default, aten.mul.Tensor},
    }
    dear = {use.sensitivity for op in by_place[True] for use in LINEAR_USES[op]}
    cheap = {use.sensitivity for op in by_place[False] for use in LINEAR_USES[op]}
    assert min(dear) > max(cheap)


def test_a_codec_chosen_by_name_does_not_make_noise_on_the_path_free():
    graph = fx.Graph()
    x, weight, grad = map(graph.placeholder, ("primals_1", "primals_2", "tangents_1"))
    hidden = graph.call_function(aten.mm.default, (x, weight))
    first = graph.call_function(aten.mm.default, (grad, hidden))
    further = graph.call_function(aten.neg.default, (first,))
    graph.output([hidden, None, further])
    with FakeTensorMode():
        for made in (x, weight, grad, hidden, first, further):
            made.meta["val"] = torch.empty(64, 64)
    joint = passes.JointGraph(fx.GraphModule({}, graph), 1, (0, 1))
    options = Options(bits=2)
    costs = passes.estimate_costs(joint, make_rules(options))
    plan = passes.make_plan(costs, options.noise_price)
    (kept,) = (d for d in plan.decisions if d.codec is not None)
    assert kept.codec.bits > 1


def test_convolutions_are_what_is_audited():
    assert make_rules(Options()).audited == {xconv.conv_weight_grad.default}


def test_exposed_ops_are_traced_whole_and_decomposed_only_in_an_exact_graph():
    tracing, exact = tracing_decompositions(), exact_decompositions()
    assert not tracing.keys() & EXPOSURES.keys()
    assert exact.keys() <= EXPOSURES.keys()
    assert aten.native_batch_norm_backward.default in exact
    everything = make_rules(Options()).primitives
    assert tracing.keys() | exact.keys() == everything.keys()


def node(target, *args, val, **kwargs):
    """A node of a small graph with a value of its own."""
    graph = fx.Graph()
    made = graph.call_function(target, tuple(args), kwargs)
    made.meta["val"] = val
    return made


def test_booleans_take_a_bit_and_other_values_are_not_packed():
    packing = make_rules(Options()).packing
    assert packing(node(aten.relu.default, val=torch.empty(400, dtype=torch.bool))) == Pack(1)
    for dtype in (torch.float32, torch.int8, torch.int64):
        assert packing(node(aten.relu.default, val=torch.empty(400, dtype=dtype))) is None


def test_what_packing_would_not_make_smaller_is_not_packed():
    packing = make_rules(Options()).packing
    for numel, codec in ((1, None), (2, Pack(1))):
        mask = node(aten.relu.default, val=torch.empty(numel, dtype=torch.bool))
        assert packing(mask) == codec


@pytest.mark.parametrize(
    ("window", "codec"),
    [
        ([1, 1], Pack(1)),
        ([2, 1], Pack(1)),
        ([2, 2], Pack(2)),
        ([3, 3], Pack(4)),
        ([4, 4], Pack(4)),
        ([2, 2, 2], Pack(3)),
        ([5, 5], Pack(5)),
        ([3, 3, 3], Pack(5)),
        ([7, 7], Pack(6)),
        ([11, 11], Pack(7)),
        ([15, 15], None),
        ([17, 17], None),
    ],
)
def test_offsets_of_a_max_pool_take_what_its_window_needs(window, codec):
    packing = make_rules(Options()).packing
    val = torch.empty(4096, dtype=torch.int8)
    graph = fx.Graph()
    pool = graph.call_function(
        torch.ops.prims._low_memory_max_pool_with_offsets.default, (None, window)
    )
    results = [graph.call_function(operator.getitem, (pool, i)) for i in range(2)]
    results[0].meta["val"] = torch.empty(4096)
    results[1].meta["val"] = val
    assert [packing(result) for result in results] == [None, codec]


# Numbers kept: each exposure against aten, in float64, where the two ways of summing differ by
# less than 1e-11 of the largest element.
def assert_same(got, expected, rtol=1e-9):
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-11)


def randn(*size):
    return torch.randn(size, dtype=torch.float64)


MASKS = list(itertools.product([False, True], repeat=3))

# name: input, weight, stride, padding, dilation, transposed, output_padding, groups
CONVOLUTIONS = {
    "2d": ((2, 4, 7, 6), (6, 4, 3, 3), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    "1d": ((2, 4, 9), (6, 4, 3), [2], [1], [1], False, [0], 1),
    "3d": ((1, 2, 5, 4, 4), (3, 2, 3, 1, 2), [1, 2, 1], [1, 0, 1], [1] * 3, False, [0] * 3, 1),
    "grouped": ((2, 4, 7, 6), (6, 2, 3, 3), [2, 1], [0, 1], [1, 2], False, [0, 0], 2),
    "depthwise": ((2, 4, 7, 6), (4, 1, 3, 3), [2, 2], [1, 1], [1, 1], False, [0, 0], 4),
    "transposed": ((2, 4, 5, 4), (4, 3, 3, 3), [2, 2], [1, 1], [1, 1], True, [1, 0], 1),
    "transposed grouped": ((2, 4, 5, 4), (4, 3, 3, 3), [2, 1], [1, 0], [1, 2], True, [0, 0], 2),
    "one int": ((2, 4, 7, 6), (6, 4, 3, 3), [1], [0], [1], False, [0], 1),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "".join("nY"[wanted] for wanted in mask))
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolutions_backward_keeps_its_numbers(name, mask, channels_last):
    size, weight_size, *geometry = CONVOLUTIONS[name]
    x, weight = randn(*size), randn(*weight_size)
    out = aten.convolution.default(x, weight, None, *geometry)
    args = (randn(*out.shape), x, weight, [out.shape[1]], *geometry, list(mask))
    exposure = make_rules(Options(), channels_last=channels_last).exposures[
        aten.convolution_backward.default
    ]
    expected = aten.convolution_backward.default(*args)
    wanted = [grad if want else None for grad, want in zip(expected, mask, strict=True)]
    assert_same(exposure(*args), wanted)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "".join("nY"[wanted] for wanted in mask))
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm", ["batch", "batch in eval mode", "group", "layer"])
def test_a_norms_backward_keeps_its_numbers(norm, affine, mask):
    x, grad = randn(3, 4, 5), randn(3, 4, 5)
    channels = 5 if norm == "layer" else 4
    weight = randn(channels) if affine else None
    mask = [wanted and (affine or i == 0) for i, wanted in enumerate(mask)]
    if norm.startswith("batch"):
        train = norm == "batch"
        running = (randn(4), randn(4).exp())
        _, *saved = aten.native_batch_norm.default(x, weight, None, *running, train, 0.1, 1e-5)
        op = aten.native_batch_norm_backward.default
        args = (grad, x, weight, *running, *saved, train, 1e-5, mask)
    elif norm == "group":
        _, *saved = aten.native_group_norm.default(x, weight, None, 3, 4, 5, 2, 1e-5)
        op = aten.native_group_norm_backward.default
        args = (grad, x, *saved, weight, 3, 4, 5, 2, mask)
    else:
        bias = randn(5) if affine else None
        _, *saved = aten.native_layer_norm.default(x, [5], weight, bias, 1e-5)
        op = aten.native_layer_norm_backward.default
        args = (grad, x, [5], *saved, weight, bias, mask)
    expected = [g if want else None for g, want in zip(op(*args), mask, strict=True)]
    assert_same(EXPOSURES[op](*args), expected)


# op: what follows the gradient in its arguments, SAVED being what the forward saved
SAVED = object()
POINTWISE = {
    aten.threshold_backward.default: (SAVED, 0.0),
    aten.leaky_relu_backward.default: (SAVED, 0.1, False),
    aten.hardtanh_backward.default: (SAVED, -0.5, 0.5),
    aten.gelu_backward.default: (SAVED,),
    aten.silu_backward.default: (SAVED,),
    aten.sigmoid_backward.default: (SAVED,),
    aten.tanh_backward.default: (SAVED,),
    aten.elu_backward.default: (1.5, 1.0, 2.0, False, SAVED),
    aten.hardswish_backward.default: (SAVED,),
    aten.hardsigmoid_backward.default: (SAVED,),
    aten.mish_backward.default: (SAVED,),
    aten.softplus_backward.default: (SAVED, 1.0, 20.0),
}


@pytest.mark.parametrize("op", POINTWISE, ids=str)
def test_a_pointwise_backward_keeps_its_numbers(op):
    saved = randn(4, 50).tanh()
    args = [randn(4, 50), *(saved if arg is SAVED else arg for arg in POINTWISE[op])]
    # aten multiplies by a float32 1/6
    rtol = 1e-7 if op is aten.hardsigmoid_backward.default else 1e-9
    assert_same([EXPOSURES[op](*args)], [op(*args)], rtol)


def test_a_dropouts_backward_keeps_its_numbers():
    op = aten.native_dropout_backward.default
    args = (randn(4, 5), torch.rand(4, 5) > 0.5, 2.0)
    assert_same([EXPOSURES[op](*args)], [op(*args)])


def test_a_prelus_backward_keeps_its_numbers():
    op = aten._prelu_kernel_backward.default
    args = (randn(2, 3, 4), randn(2, 3, 4), randn(1, 3, 1))
    assert_same(EXPOSURES[op](*args), op(*args))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_glus_backward_keeps_its_numbers(dim):
    op = aten.glu_backward.default
    x = randn(2, 6, 4)
    args = (randn(*aten.glu.default(x, dim).shape), x, dim)
    assert_same([EXPOSURES[op](*args)], [op(*args)])


def test_a_log_sigmoids_backward_keeps_its_numbers():
    op = aten.log_sigmoid_backward.default
    x = randn(4, 50)
    args = (randn(4, 50), x, aten.log_sigmoid_forward.default(x)[1])
    assert_same([EXPOSURES[op](*args)], [op(*args)])


@pytest.mark.parametrize(
    ("op", "size", "args"),
    [
        (aten.avg_pool2d_backward.default, (2, 3, 6, 6), ([2, 2], [2, 2], [1, 0], False, True)),
        (
            aten.avg_pool3d_backward.default,
            (1, 2, 4, 4, 4),
            ([2] * 3, [2] * 3, [0] * 3, True, True),
        ),
        (aten._adaptive_avg_pool2d_backward.default, (2, 3, 6, 7), ([4, 3],)),
        (aten._adaptive_avg_pool3d_backward.default, (2, 3, 4, 5, 6), ([2, 3, 4],)),
        (aten.replication_pad1d_backward.default, (2, 3, 4), ([1, 2],)),
        (aten.replication_pad2d_backward.default, (2, 3, 4, 4), ([1, 2, 0, 1],)),
        (aten.replication_pad3d_backward.default, (2, 3, 4, 4, 4), ([1, 2, 0, 1, 1, 1],)),
    ],
    ids=str,
)
def test_a_backward_that_reads_a_shape_keeps_its_numbers_without_the_values(op, size, args):
    forward = getattr(aten, op.overloadpacket.__name__.removesuffix("_backward")).default
    x = randn(*size)
    grad = randn(*forward(x, *args).shape)
    if "adaptive" in str(op):
        args = ()
    elif "avg_pool" in str(op):
        args = (*args, None)
    expected = op(grad, x, *args)
    assert_same([EXPOSURES[op](grad, x * float("nan"), *args)], [expected])


def test_every_exposure_is_checked_here():
    checked = {
        *POINTWISE,
        aten.convolution_backward.default,
        aten.native_batch_norm_backward.default,
        aten.native_group_norm_backward.default,
        aten.native_layer_norm_backward.default,
        aten.native_dropout_backward.default,
        aten._prelu_kernel_backward.default,
        aten.glu_backward.default,
        aten.log_sigmoid_backward.default,
        aten.avg_pool2d_backward.default,
        aten.avg_pool3d_backward.default,
        aten._adaptive_avg_pool2d_backward.default,
        aten._adaptive_avg_pool3d_backward.default,
        aten.replication_pad1d_backward.default,
        aten.replication_pad2d_backward.default,
        aten.replication_pad3d_backward.default,
    }
    pools = set(max_pool.EXPOSURES)  # in rules/test_max_pool.py
    # where there is cuDNN or a reserve: the batch norm above behind other arguments
    elsewhere = {aten.batch_norm_backward.default, aten.cudnn_batch_norm_backward.default}
    assert set(xconv_fx.rules.EXPOSURES) == checked | pools | elsewhere


@pytest.mark.parametrize(
    ("op", "size", "rest"),
    [
        (xconv.conv_weight_grad.default, (2, 4, 7, 6), CONVOLUTIONS["2d"][1:]),
        (xconv.norm_weight_grad.default, (3, 4, 5), ([0, 2],)),
        (xconv.scale_grad.default, (3, 4), ()),
        (aten.mm.default, (4, 4), ()),
    ],
    ids=str,
)
def test_linear_uses_are_linear(op, size, rest):
    assert 1 in {use.arg for use in LINEAR_USES[op]}
    grad_size = size
    if op is xconv.conv_weight_grad.default:
        grad_size, rest = (2, 6, 7, 6), (randn(*rest[0]), *rest[1:])
    grad, x, y = randn(*grad_size), randn(*size), randn(*size)
    whole = op(grad, 2 * x - 3 * y, *rest)
    parts = 2 * op(grad, x, *rest) - 3 * op(grad, y, *rest)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-11)
