"""The promises of the backend on a CUDA device, where kernels are Triton's and cuDNN's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xconv_fx
from benchmarks.measure import step_memory
from xconv_fx.backend import xconv
from xconv_fx.rules import LADDER
from xconv_fx.sketches.randomness import key_schedule

pytestmark = [
    pytest.mark.gpu,
    # What the tests turn off, Inductor recommends once a process.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    # torch's own, as it makes its pool of memory for CUDA graphs.
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),
]

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _fp32_convolutions() -> Iterator[None]:
    """Turns off tf32, whose rounding of 1e-3 would hide a wrong gradient."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        yield


def smooth_net() -> nn.Module:
    """Everything that is sketched without a bias: no norm is above a convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 5),
    )


def norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(4, 16),
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 3),
    )


def volume_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.InstanceNorm3d(8),
        nn.LeakyReLU(),
        nn.Conv3d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.ConvTranspose3d(8, 4, 2, stride=2),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "smooth": (smooth_net, (4, 3, 16, 16)),
    "norms": (norm_net, (4, 3, 32, 32)),
    "volume": (volume_net, (2, 1, 12, 12, 12)),
}


def relative_errors(net: nn.Module, step: Callable[[Tensor], Tensor], x: Tensor) -> list[float]:
    """Distances of a compiled step's gradients from eager's, as shares of them."""
    parameters = list(net.parameters())
    exact = torch.autograd.grad(net(x).square().sum(), parameters)
    got = torch.autograd.grad(step(x).square().sum(), parameters)
    # In front of a norm a bias has a gradient of rounding alone.
    largest = max(float(g.norm()) for g in exact)
    pairs = [(g, e) for g, e in zip(got, exact, strict=True) if e.norm() > 1e-4 * largest]
    return [float((g - e).norm() / e.norm()) for g, e in pairs]


@pytest.mark.parametrize("inner", ["inductor", "aot_eager"])
@pytest.mark.parametrize("name", NETS)
def test_a_step_at_eight_bits_is_near_the_exact_one(name, inner, compile_xconv):
    build, shape = NETS[name]
    net, x = build().to(DEVICE), torch.randn(shape, device=DEVICE)
    step = compile_xconv(net, inner=inner, noise_price=30.0)
    errors = relative_errors(net, step, x)

    report = xconv_fx.last_report()
    assert report.exact is None
    assert report.num_sketched_convolutions >= 1
    # Sketches of 8 bits err by some 0.1 %; a wrong mask, offset or scale by tens of per cent.
    assert max(errors) < 0.02


def test_default_gradients_are_unbiased(compare, assert_to_rounding, assert_unbiased):
    net, x = smooth_net().to(DEVICE), torch.randn(4, 3, 16, 16, device=DEVICE)
    result = compare(net, x, inner="inductor", num_steps=100)

    assert result.report.exact is None
    assert_to_rounding(result.output, result.expected)
    for name, samples in result.samples.items():
        assert_unbiased(samples, result.expected_grads[name])


def test_replayed_graphs_draw_new_seeds(assert_unbiased):
    """A CUDA graph that replayed its seeds would repeat its error, which no training averages."""
    net, x = smooth_net().to(DEVICE), torch.randn(4, 3, 16, 16, device=DEVICE)
    exact = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    compiled: Any = torch.compile(net, backend=xconv, mode="reduce-overhead")
    steps = []
    for _ in range(48):
        torch.compiler.cudagraph_mark_step_begin()
        net.zero_grad(set_to_none=True)
        compiled(x).square().sum().backward()
        steps.append([p.grad.double().flatten().cpu() for p in net.parameters()])
    recorded = steps[8:]  # the first ones warm up and record

    weight = [step[2] for step in recorded]  # of a sketched convolution
    assert len({tuple(sample[:8].tolist()) for sample in weight}) == len(weight)
    for samples, expected in zip(zip(*recorded, strict=True), exact, strict=True):
        assert_unbiased(torch.stack(samples), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_sketches_and_the_gradient(dtype, compile_xconv):
    net, x = norm_net().to(DEVICE), torch.randn(8, 3, 32, 32, device=DEVICE)
    compiled = compile_xconv(net, inner="inductor", noise_price=30.0)

    def step(x: Tensor) -> Tensor:
        with torch.autocast(DEVICE, dtype):
            return compiled(x).float()

    errors = relative_errors(net, step, x)
    report = xconv_fx.last_report()
    assert report.exact is None
    assert report.num_sketched_convolutions == 2
    # bfloat16 has 8 bits of mantissa: 0.4 % an element and some more over eight layers.
    assert max(errors) < 0.1


def test_autocast_around_the_backward_alone_changes_nothing(compile_xconv):
    """It casts ``aten.convolution``, which the code of a backward calls here."""
    net, x = norm_net().to(DEVICE), torch.randn(8, 3, 32, 32, device=DEVICE)
    compiled = compile_xconv(net, inner="inductor", noise_price=30.0)
    exact = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    loss = compiled(x).square().sum()
    with torch.autocast(DEVICE, torch.float16):
        got = torch.autograd.grad(loss, list(net.parameters()))

    for g, e in zip(got, exact, strict=True):
        assert g.dtype == torch.float32
        assert float((g - e).norm()) < 0.02 * max(float(e.norm()) for e in exact)


def test_a_batch_of_any_size_compiles_once(compile_xconv):
    net = norm_net().to(DEVICE)
    step = compile_xconv(net, inner="inductor", noise_price=30.0)
    for batch_size in (4, 6):
        x = torch.randn(batch_size, 3, 32, 32, device=DEVICE)
        torch._dynamo.mark_dynamic(x, 0)  # noqa: TID251  torch has no public name for it
        with torch.compiler.set_stance("fail_on_recompile" if batch_size == 6 else "default"):
            assert max(relative_errors(net, step, x)) < 0.02
        assert xconv_fx.last_report().exact is None


def test_a_channels_last_batch_is_near_the_exact_step(compile_xconv):
    net = norm_net().to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    step = compile_xconv(net, inner="inductor", noise_price=30.0)

    assert max(relative_errors(net, step, x)) < 0.02


@pytest.mark.parametrize("name", NETS)
def test_what_is_predicted_to_be_kept_is_kept(name):
    build, shape = NETS[name]
    net, x = build().to(DEVICE), torch.randn((16 * shape[0], *shape[1:]), device=DEVICE)

    def loss_of(call: Callable[[Tensor], Tensor]) -> Tensor:
        return call(x).square().sum()

    measured = {}
    backends: dict[str, Any] = {"inductor": "inductor", "xconv": xconv}
    for way, backend in backends.items():
        compiled: Any = torch.compile(net, backend=backend)
        for _ in range(2):
            loss_of(compiled).backward()
            net.zero_grad(set_to_none=True)
        measured[way] = step_memory(lambda c=compiled: loss_of(c), device=DEVICE)
        net.zero_grad(set_to_none=True)

    report = xconv_fx.last_report()
    predicted = report.memory.live_after_forward_nbytes
    got = measured["xconv"].live_after_forward_nbytes
    # The allocator rounds each block up to 512 bytes, and the loss and its square are outside.
    outside = math.prod(loss_shape(net, x)) * 4
    assert got == pytest.approx(predicted, abs=outside + 512 * (len(report.values) + 16))
    assert got < measured["inductor"].live_after_forward_nbytes / 2
    assert measured["xconv"].peak_nbytes < measured["inductor"].peak_nbytes


def loss_shape(net: nn.Module, x: Tensor) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(net(x).shape)


@pytest.mark.parametrize("codec", LADDER, ids=lambda codec: codec.name)
def test_a_codec_gives_the_same_codes_as_on_the_cpu(codec):
    x = torch.randn(2, 32, 16, 16)
    if codec.supports(x.shape, x.dtype) is not None:
        pytest.skip("not for two dimensions")
    key = key_schedule(torch.tensor([2**61 + 12345]))[0]
    expected = codec.encode(x, key, range(4))
    got = codec.encode(x.to(DEVICE), key.to(DEVICE), range(4))

    for ours, theirs in zip(got, expected, strict=True):
        if ours.dtype.is_floating_point:
            torch.testing.assert_close(ours.cpu(), theirs)
        else:
            # A sum of another order may move a coefficient over a threshold, one in thousands.
            assert (ours.cpu() == theirs).float().mean() > 0.99
