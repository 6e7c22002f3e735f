import math

import pytest
import torch
from torch import Tensor

from benchmarks.codec_errors import (
    PROBINGS,
    codec_error,
    draw_seeds,
    measure_ladder,
    measure_probings,
    probes_at,
    probes_measured,
    probing_error,
    probing_of,
)
from benchmarks.convolution_sites import ConvolutionSite
from xconv_fx.ops.gradients import weight_grad
from xconv_fx.rules import LADDER

SCALE = 0.5


class AddNoise:
    """Adds signs of size 0.5, drawn from the seed: a codec of known variance."""

    name = "noise"
    exact = False
    needs_seed = True

    def encode(self, x: Tensor, seed: Tensor, dim_order) -> tuple[Tensor, ...]:
        assert list(dim_order) == [0, 2, 3, 1]
        generator = torch.Generator().manual_seed(int(seed))
        return (x + SCALE * (2 * torch.randint(2, x.shape, generator=generator) - 1),)

    def decode(self, parts, seed, size, dtype, dim_order) -> Tensor:  # noqa: ARG002
        return parts[0]

    def nbytes(self, shape, dtype) -> int:
        return math.prod(shape) * dtype.itemsize

    def noise(self, shape) -> float:  # noqa: ARG002
        return SCALE**2

    def supports(self, shape, dtype) -> str | None:  # noqa: ARG002
        return "no narrow images" if shape[-1] < 4 else None


@pytest.fixture
def make_site():
    def make(shape=(4, 6, 8, 8), num_out=5) -> ConvolutionSite:
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        grad_output = torch.randn(shape[0], num_out, *shape[2:])
        weight = torch.empty(num_out, shape[1], 1, 1)
        geometry = ((1, 1), (0, 0), (1, 1), False, (0, 0), 1)
        exact = weight_grad(grad_output, x, weight, *geometry)
        return ConvolutionSite("conv", x, grad_output, weight, geometry, exact)

    return make


def seeds(count: int) -> tuple[Tensor, ...]:
    return draw_seeds(count, torch.Generator().manual_seed(0))


def test_the_error_of_a_codec_of_known_variance_is_found(make_site) -> None:
    site = make_site()
    # dW[o, c] = sum over samples and positions of dY X: each of the 6 channels gets the variance
    # 0.25 ||dY||^2, all uncorrelated.
    expected = math.sqrt(6 * SCALE**2) * float(site.grad_output.norm() / site.exact.norm())

    # 400 seeds, of 30 errors in 5 independent lots of 6: the mean square deviates by some
    # sqrt(2 / 30 / 400) = 1.3 %, its root by half of that; 4 % are six standard deviations.
    assert codec_error(site, AddNoise(), seeds(400)) == pytest.approx(expected, rel=0.04)


def test_a_codec_is_left_out_where_it_does_not_fit(make_site) -> None:
    fits, narrow = make_site(), make_site((4, 6, 2, 2))
    (result,) = measure_ladder([fits, narrow], [AddNoise()], seeds(2))

    assert result.name == result.rung == "noise"
    assert result.layers[0].nbytes == fits.nbytes
    assert result.layers[1] is None


def test_more_bits_have_less_error(make_site) -> None:
    results = measure_ladder([make_site()], LADDER, seeds(2))
    measured = [r.layers[0] for r in results if r.layers[0] is not None]
    by_bytes = sorted((layer.nbytes, -layer.error) for layer in measured)

    assert len(results) == len(LADDER)
    assert len(measured) > 3
    assert by_bytes[0][1] < by_bytes[-1][1]


@pytest.mark.parametrize("mode", PROBINGS)
@pytest.mark.parametrize("nbytes", [1, 700, 4000, 5000])
def test_no_other_number_of_probes_is_nearer_in_bytes(mode: str, nbytes: int) -> None:
    shape = (4, 6, 16, 16)
    chosen = probes_at(mode, nbytes, shape, torch.float32)

    def distance(probes: int) -> int:
        return abs(probing_of(mode, probes).nbytes(shape, torch.float32) - nbytes)

    assert distance(chosen) == min(map(distance, range(1, 400)))


def test_more_probes_than_make_sense_are_none() -> None:
    # 4 x 6 x 4 bytes a probe, and only 4 positions.
    assert probes_at("independent", 96 * 5, (4, 6, 2, 2), torch.float32) is None
    assert probes_at("multichannel", 16 * 70_000, (4, 100_000, 2, 2), torch.float32) is None


@pytest.mark.parametrize("mode", ["independent", "multichannel"])
def test_the_squared_error_of_independent_probes_falls_as_one_over_their_number(
    make_site, mode: str
) -> None:
    site = make_site()
    few, many = (codec_error(site, probing_of(mode, r), seeds(300)) for r in (4, 16))

    # 300 seeds and heavy tails at 4 probes: errors of the mean square stay well below 10 %.
    assert few / many == pytest.approx(2.0, rel=0.1)


def test_large_probings_are_measured_with_fewer_vectors(make_site, monkeypatch) -> None:
    from benchmarks import codec_errors

    monkeypatch.setattr(codec_errors, "_MAX_PROBE_ENTRIES", 64 * 4)
    site = make_site()
    scaled = probing_error(site, "independent", 16, seeds(3))

    assert probes_measured("independent", 16, (4, 6, 8, 8)) == 4
    assert probes_measured("independent", 3, (4, 6, 8, 8)) == 3
    assert probes_measured("multichannel", 16, (4, 6, 8, 8)) == 1
    assert probes_measured("orthogonal", 64, (4, 6, 8, 8)) == 64
    drawn = codec_error(site, probing_of("independent", 4), seeds(3))
    assert scaled.error == pytest.approx(drawn / 2)
    assert scaled.codec == "independent[r=16]"
    assert scaled.nbytes == 4 * 6 * 16 * 4


def test_the_probings_get_the_bytes_of_the_rung(make_site) -> None:
    sites = [make_site((4, 6, 16, 16)), make_site((4, 6, 2, 2))]
    rungs = measure_ladder(sites, [AddNoise()], seeds(1))
    probings = measure_probings(sites, rungs, seeds(1))

    assert [(p.name, p.rung) for p in probings] == [(mode, "noise") for mode in PROBINGS]
    for probing in probings:
        assert probing.layers[0].nbytes == rungs[0].layers[0].nbytes
        # The rung does not fit the second.
        assert probing.layers[1] is None
