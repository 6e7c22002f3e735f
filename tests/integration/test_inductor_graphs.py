"""What codecs and derivations are made of reaches Inductor in calls that it can lower.

Most integration tests run under ``aot_eager``, which takes any call.
"""

import pytest
import torch
from torch import nn

import xconv_fx
from xconv_fx import _torch

MIDDLES = {
    "relu": lambda: [nn.BatchNorm2d(4), nn.ReLU()],
    "relu6": lambda: [nn.BatchNorm2d(4), nn.ReLU6()],
    "leaky relu": lambda: [nn.BatchNorm2d(4), nn.LeakyReLU()],
    "max-pool offsets of five bits": lambda: [nn.ReLU(), nn.MaxPool2d(5, 2)],
}


@pytest.mark.parametrize("middle", MIDDLES)
def test_a_step_compiles_and_is_near_the_exact_one(middle, compile_xconv):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), *MIDDLES[middle](), nn.Conv2d(4, 5, 3, padding=1)
    )
    x = torch.randn(4, 3, 24, 24)
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    net.zero_grad()
    compile_xconv(net, inner="inductor", noise_price=30.0)(x).square().sum().backward()

    report = xconv_fx.last_report()
    assert report.exact is None
    assert report.num_sketched_convolutions == 1
    for parameter, exact in zip(net.parameters(), expected, strict=True):
        # Sketches of 8 bits err by some 0.1 %; a wrong mask or offset by tens of per cent.
        assert float((parameter.grad - exact).norm() / exact.norm()) < 0.02


def test_what_a_norm_decodes_for_its_backward_is_not_stored(compile_xconv):
    # Offsets of the pool, the mask and the codes are undone in one expression, whose product with
    # the norm's input has more operations than Inductor (2.13) by default leaves unstored.
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 4, 3),
    )
    x = torch.randn(4, 3, 32, 32)
    compile_xconv(net, inner="inductor")(x).square().sum().backward()

    peak = xconv_fx.last_report().memory.peak
    whole = [value for value in peak.largest if value.nbytes == 4 * 4 * 16 * 32 * 32]
    # The gradient that the norm hands on, and one more; by default four.
    assert len(whole) <= 2


@pytest.mark.parametrize(("device_type", "most"), [("cpu", 3), ("cuda", 2)])
def test_off_the_cpu_a_norm_decodes_its_input_wherever_it_is_read(device_type, most, compile_xconv):
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 4, 3),
    )
    x = torch.randn(4, 3, 32, 32)
    settings = _torch.inductor_settings(device_type)
    compile_xconv(net, inner="inductor", inductor=settings)(x).square().sum().backward()

    peak = xconv_fx.last_report().memory.peak
    whole = [value for value in peak.largest if value.nbytes == 4 * 4 * 16 * 32 * 32]
    # The gradients in and out of a norm or convolution, and on the CPU what was decoded.
    assert len(whole) == most


def test_a_batch_of_any_size_compiles_once_and_is_near_the_exact_step(compile_xconv):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )
    step = compile_xconv(net, inner="inductor", noise_price=30.0)
    for batch_size in (4, 6):
        x = torch.randn(batch_size, 3, 16, 16)
        torch._dynamo.mark_dynamic(x, 0)  # noqa: TID251  torch has no public name for it
        expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
        net.zero_grad()
        with torch.compiler.set_stance("fail_on_recompile" if batch_size == 6 else "default"):
            step(x).square().sum().backward()
        assert xconv_fx.last_report().exact is None
        for parameter, exact in zip(net.parameters(), expected, strict=True):
            # Sketches of 8 bits err by some 0.1 %; a sum over other elements by tens of per cent.
            assert float((parameter.grad - exact).norm() / exact.norm()) < 0.02
