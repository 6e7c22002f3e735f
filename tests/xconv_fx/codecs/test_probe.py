import math

import pytest
import torch

from xconv_fx.codecs import Probe
from xconv_fx.codecs.probe import next_power_of_two
from xconv_fx.errors import OptionError


def test_noise_of_few_positions():
    assert Probe("orthogonal", 1).noise((2, 3)) == 0.0
    assert Probe("orthogonal", 64).noise((2, 3, 8, 8)) == 0.0


def test_supports():
    shape = (2, 3, 4, 5)
    for codec in (Probe("independent", 20), Probe("multichannel", 60)):
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


def test_next_power_of_two():
    assert [next_power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 1025)] == [1, 1, 2, 4, 4, 8, 2048]
    assert math.log2(next_power_of_two(2**40 + 1)) == 41
