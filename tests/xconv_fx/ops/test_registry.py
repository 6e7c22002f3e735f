import torch

from xconv_fx.ops import sketching
from xconv_fx.ops.registry import without_autocast

SEED = torch.tensor(12345)


def test_sketches_are_the_same_under_autocast():
    x = torch.randn(2, 3, 8, 6)
    plain = sketching.probe(x, SEED, "independent", 4, "gaussian")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = sketching.probe(x, SEED, "independent", 4, "gaussian")
        back = sketching.reconstruct(
            under, SEED, list(x.shape), torch.float32, "independent", "gaussian"
        )
    assert under.dtype == torch.float32
    assert torch.equal(under, plain)
    expected = sketching.reconstruct(
        plain, SEED, list(x.shape), torch.float32, "independent", "gaussian"
    )
    assert torch.equal(back, expected)


def test_autocast_is_switched_off_inside_only():
    def seen(_: torch.Tensor) -> bool:
        return torch.is_autocast_enabled("cpu")

    x = torch.zeros(())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert without_autocast(seen)(x) is False
        assert torch.is_autocast_enabled("cpu")
    assert without_autocast(seen)(torch.zeros((), device="meta")) is False
