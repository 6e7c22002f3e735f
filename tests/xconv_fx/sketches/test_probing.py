import itertools
import math

import pytest
import torch

from xconv_fx.sketches.probing import (
    DISTRIBUTIONS,
    MODES,
    draw_probes,
    hadamard_probes,
    probe,
    probe_with,
    reconstruct,
    reconstruct_with,
)


def sign_patterns(count: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=count)), dtype=torch.float64)


def round_trip(x: torch.Tensor, z: torch.Tensor, mode: str) -> torch.Tensor:
    return reconstruct_with(probe_with(x, z, mode), z, x.shape, x.dtype)


@pytest.mark.parametrize("probes", [1, 2])
def test_independent_is_unbiased_over_every_sign_pattern(probes):
    x = torch.randint(-8, 9, (2, 3, 2, 2)).double()
    patterns = sign_patterns(4 * probes)
    total = torch.zeros_like(x)
    for pattern in patterns:
        total += round_trip(x, pattern.view(4, probes) / math.sqrt(probes), "independent")
    # Rounding of 1/sqrt(2) only.
    assert torch.allclose(total / len(patterns), x, rtol=1e-12, atol=1e-12)


def test_multichannel_is_unbiased_over_every_sign_pattern():
    x = torch.randint(-8, 9, (2, 3, 1, 2)).double()
    patterns = sign_patterns(6 * 2)
    total = torch.zeros_like(x)
    for pattern in patterns:
        total += round_trip(x, pattern.view(6, 2) / math.sqrt(2), "multichannel")
    assert torch.allclose(total / len(patterns), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probes", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("positions", [5, 8])
def test_orthogonal_is_unbiased_over_every_sign_pattern_for_each_base(positions, probes):
    x = torch.randint(-8, 9, (1, 2, positions)).double()
    patterns = sign_patterns(positions)
    for base in (0, 5, 2**31 + 3):
        total = torch.zeros_like(x)
        for pattern in patterns:
            z = hadamard_probes(pattern.unsqueeze(1), torch.tensor(base), probes)
            total += round_trip(x, z, "orthogonal")
        assert torch.allclose(total / len(patterns), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probes", [1, 3, 4])
def test_orthogonal_is_unbiased_over_every_base_for_fixed_signs(probes):
    x = torch.randint(-8, 9, (1, 2, 7)).double()
    signs = sign_patterns(7)[77].unsqueeze(1)
    total = torch.zeros_like(x)
    for base in range(8):
        z = hadamard_probes(signs, torch.tensor(base), probes)
        total += round_trip(x, z, "orthogonal")
    assert torch.allclose(total / 8, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 7, 9), (2, 3, 5), (4, 3)])
def test_orthogonal_with_all_columns_is_exact(shape):
    x = torch.randn(shape, dtype=torch.float64)
    positions = math.prod(shape[2:])
    probes = 1 << (positions - 1).bit_length()
    seed = torch.tensor(2**60 + 5)
    y = reconstruct(
        probe(x, seed, "orthogonal", probes, "gaussian"),
        seed,
        x.shape,
        x.dtype,
        "orthogonal",
        "gaussian",
    )
    assert torch.allclose(y, x, rtol=1e-12, atol=1e-12)


def test_hadamard_entries_follow_the_definition():
    signs = sign_patterns(12)[1234].unsqueeze(1)
    base = 0b1011_0110
    z = hadamard_probes(signs, torch.tensor(base), 6)
    for i, k in itertools.product(range(12), range(6)):
        walsh = (-1) ** bin(i & (base ^ k)).count("1")
        assert float(z[i, k]) == pytest.approx(float(signs[i]) * walsh / math.sqrt(6))


def test_hadamard_parity_reaches_wide_rows():
    # Rows beyond 2**16 meet the high bits of the base.
    signs = torch.ones(2**17 + 8, 1, dtype=torch.float64)
    base = 2**31 + 2**17 + 2**16 + 2
    z = hadamard_probes(signs, torch.tensor(base), 2)
    for i in (1, 2**16, 2**16 + 2, 2**17 + 3):
        for k in range(2):
            walsh = (-1) ** bin(i & (base ^ k)).count("1")
            assert float(z[i, k]) == pytest.approx(walsh / math.sqrt(2))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_drawn_probes_have_the_identity_as_second_moment(mode, distribution):
    # 3,000 seeds, N = 6, r = 3: entries of the mean of Z Z^T have standard errors of at most
    # sqrt(2 / r / 3000) = 0.015; 6 of them.
    generator = torch.Generator().manual_seed(4)
    seeds = torch.randint(0, 2**62, (3000,), generator=generator)
    total = torch.zeros(6, 6, dtype=torch.float64)
    for seed in seeds:
        z = draw_probes(6, 3, seed, mode, distribution, torch.float64)
        total += z @ z.t()
    assert float((total / 3000 - torch.eye(6)).abs().max()) < 6 * math.sqrt(2 / 3 / 3000)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 4), (2, 3, 3, 2, 4)])
def test_shapes_and_dtypes(mode, dtype, shape):
    x = torch.randn(shape).to(dtype)
    seed = torch.tensor(17)
    sketch = probe(x, seed, mode, 4, "gaussian")
    assert sketch.shape == ((2, 4) if mode == "multichannel" else (2, 3, 4))
    assert sketch.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    y = reconstruct(sketch, seed, x.shape, x.dtype, mode, "gaussian")
    assert y.shape == x.shape
    assert y.dtype == dtype


@pytest.mark.parametrize("mode", MODES)
def test_memory_format_does_not_change_the_sketch(mode):
    x = torch.randn(2, 3, 5, 4)
    seed = torch.tensor(2**50)
    plain = probe(x, seed, mode, 4, "rademacher")
    last = probe(x.contiguous(memory_format=torch.channels_last), seed, mode, 4, "rademacher")
    # Only the order of summation differs.
    assert torch.allclose(plain, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_zero_batch(mode):
    x = torch.randn(0, 3, 5, 4)
    seed = torch.tensor(1)
    sketch = probe(x, seed, mode, 4, "gaussian")
    assert reconstruct(sketch, seed, x.shape, x.dtype, mode, "gaussian").shape == x.shape
