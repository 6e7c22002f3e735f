import pytest
import torch
from torch.library import opcheck

import xconv_fx.ops  # noqa: F401  registers torch.ops.xconv
from xconv_fx.ops.derivatives import norm_input_grad, norm_weight_grad, scale_grad

aten = torch.ops.aten
xconv = torch.ops.xconv


def randn(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    grad, normalized = randn(2, 4, 3, 5, dtype=dtype), randn(2, 4, 3, 5, dtype=dtype)
    rstd = torch.rand(2, 2, 1) + 0.5
    opcheck(xconv.norm_input_grad.default, (grad, normalized, rstd, [2, 2, 30], [2]))
    opcheck(xconv.norm_weight_grad.default, (grad, normalized, [0, 2, 3]))
    opcheck(xconv.norm_weight_grad.default, (grad, normalized, []))
    opcheck(xconv.scale_grad.default, (grad, normalized))


def test_the_input_gradient_is_that_of_a_layer_norm():
    x, weight, grad = randn(6, 7), randn(7), randn(6, 7) * 2
    _, mean, rstd = aten.native_layer_norm(x, [7], weight, None, 1e-5)
    exact, exact_weight, _ = aten.native_layer_norm_backward(
        grad, x, [7], mean, rstd, weight, None, [True, True, False]
    )
    normalized = (x - mean) * rstd
    got = norm_input_grad(grad * weight, normalized, rstd, [6, 7], [1])
    # float64, sums of at most 7 terms of order 10
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)
    got_weight = norm_weight_grad(grad, normalized, [0])
    torch.testing.assert_close(got_weight, exact_weight, rtol=1e-12, atol=1e-12)


def test_a_weight_with_all_dims_is_not_summed_over_any():
    grad, normalized = randn(8), randn(8) + 1
    assert torch.equal(norm_weight_grad(grad, normalized, []), grad * normalized)


def test_the_bias_of_a_noisy_normalised_input_is_the_stated_term():
    # h_hat = h + e with e = +-d independently: averaged over all 2**4 sign patterns the input
    # gradient exceeds the exact one by -rstd * g * d**2 / n, and by nothing else.
    g, h = randn(1, 4), randn(1, 4) + 0.5
    rstd, d, n = torch.full((1, 1), 1.7, dtype=torch.float64), 0.3, 4
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * n)
    mean = torch.stack([norm_input_grad(g, h + d * e, rstd, [1, n], [1]) for e in signs]).mean(0)
    exact = norm_input_grad(g, h, rstd, [1, n], [1])
    # float64, 16 terms of order 1
    torch.testing.assert_close(mean - exact, -rstd * g * d**2 / n, rtol=1e-10, atol=1e-13)


def test_half_types_multiply_in_float32():
    grad, derivative = randn(100, dtype=torch.bfloat16), randn(101, dtype=torch.float32)[:100]
    got = scale_grad(grad, derivative)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, (grad.float() * derivative).bfloat16())
