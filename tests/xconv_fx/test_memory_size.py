import pytest

from xconv_fx.errors import OptionError
from xconv_fx.memory_size import parse_budget


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.3, 0.3),
        (1.0, 1.0),
        (1, 1),
        (2**33, 2**33),
        ("8GiB", 8 * 2**30),
        ("8 gb", 8 * 10**9),
        ("1.5KiB", 1536),
        ("512B", 512),
        (" 2TiB ", 2 * 2**40),
    ],
)
def test_shares_bytes_and_units(given, expected):
    parsed = parse_budget(given)
    assert parsed == expected
    assert isinstance(parsed, float) == isinstance(given, float)


BAD = [0.0, 1.5, -0.1, 0, -8, True, "8", "8GB8", "GiB", "0.5B", [1], None]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_budget_is_named(bad):
    with pytest.raises(OptionError, match=r"option 'memory_budget' got .*; allowed: a share in"):
        parse_budget(bad)
