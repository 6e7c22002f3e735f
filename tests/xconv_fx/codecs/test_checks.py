import pytest
import torch

from xconv_fx.codecs.checks import floating_only, is_int, required


def test_a_bool_is_no_int():
    assert is_int(3)
    assert not is_int(True)
    assert not is_int(3.0)


def test_a_missing_seed_is_named():
    seed = torch.tensor(1)
    assert required(seed, "a codec") is seed
    with pytest.raises(ValueError, match="^a codec draws random numbers and needs a seed, got No"):
        required(None, "a codec")


def test_only_floating_dtypes_are_sketched():
    assert floating_only(torch.bfloat16) is None
    assert floating_only(torch.bool) == (
        "sketches hold float16, bfloat16, float32 or float64, not torch.bool"
    )
