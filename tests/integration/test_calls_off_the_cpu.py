"""Our operators as Inductor runs them off the CPU, on a CPU that is taken for something else."""

import torch
from torch import nn
from torch._inductor import config  # noqa: TID251
from torch._inductor.utils import run_and_get_code  # noqa: TID251

from xconv_fx import _calls


def net():
    """Strides, groups, a transposed convolution and norms, whose inputs wait for a gradient."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
    )


def gradients_and_code(compile_xconv):
    torch.manual_seed(0)
    model = net().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32)
    compiled = compile_xconv(model, inner="inductor")

    def step():
        torch.manual_seed(1)  # of the sketches
        return torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))

    with config.patch(fx_graph_cache=False):
        gradients, code = run_and_get_code(step)
    return gradients, "\n".join(code)


def test_what_runs_off_the_cpu_gives_the_same_numbers(compile_xconv, monkeypatch):
    expected, on_cpu = gradients_and_code(compile_xconv)
    torch.compiler.reset()
    monkeypatch.setattr(_calls, "_is_on_host", lambda _: False)
    got, elsewhere = gradients_and_code(compile_xconv)

    for call in ("conv_input_grad", "conv_weight_grad", "wait"):
        assert f"= torch.ops.xconv.{call}.default(" in on_cpu
    # Of the transposed convolution, which may have to be cut, and of the last layer's.
    assert elsewhere.count("= torch.ops.xconv.conv_input_grad.default(") == 1
    assert "= torch.ops.xconv.wait.default(" not in elsewhere
    assert "= torch.ops.aten.convolution_backward.default(" in elsewhere
    for a, b in zip(got, expected, strict=True):
        # The same calls on the same values: what differs is the order of sums.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
