"""What the passes are told is plain, frozen data."""

import dataclasses

import pytest
import torch
from torch import fx

from passes import LinearUse, Rules


def test_a_linear_use_is_a_leaf_of_sensitivity_one_unless_told():
    use = LinearUse(arg=1)
    assert (use.arg, use.sensitivity, use.on_path) == (1, 1.0, False)


def test_rules_need_linear_uses_alone():
    rules = Rules(linear={})
    assert (rules.exposures, rules.lowerings, rules.primitives, rules.audited) == (
        {},
        {},
        {},
        frozenset(),
    )
    assert (rules.codecs, rules.path_codecs) == ((), ())
    assert (rules.packing, rules.expand_seeds, rules.channels_last) == (None, None, False)
    assert rules.asked_exact(fx.Graph().placeholder("x")) is None


@pytest.mark.parametrize("value", [LinearUse(0), Rules(linear={})])
def test_rules_are_frozen(value):
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


@pytest.mark.parametrize("name", ["Coin", "Half", "Signed", "Pairs"])
def test_the_toy_codecs_keep_what_a_codec_promises(toy, name):
    """Bytes as announced, and the tensor as the mean over the seed's lowest bit."""
    codec = getattr(toy, name)()
    dtype = torch.bool if name == "Pairs" else torch.float32
    x = torch.tensor([[1.0, 2.0, -4.0, 0.5], [0.0, 8.0, 0.0, 1.0]]).to(dtype)
    assert codec.supports(x.shape, x.dtype) is None
    decoded = []
    for seed in (0, 1):
        seed = torch.tensor(seed) if codec.needs_seed else None
        parts = codec.encode(x, seed, (0, 1))
        assert sum(part.nbytes for part in parts) == codec.nbytes(x.shape, x.dtype)
        decoded.append(codec.decode(parts, seed, x.shape, x.dtype, (0, 1)))
    assert torch.equal((decoded[0].double() + decoded[1].double()) / 2, x.double())
    assert torch.equal(decoded[0], x) == (name != "Coin")
