"""The frame of files of records; what plans and calibrations put into it is tested with them."""

import json

import pytest

from passes import PlanMismatchError
from xconv_fx.codecs import Pack, Probe, Quantize, SignTile, Tile
from xconv_fx.record_files import build_codec, describe_codec, read_records, records_text


class Refusal(ValueError):
    """The caller's own error."""

    def __init__(self, path, problem):
        super().__init__(f"{path.name}: {problem}")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "records.json"
    path.write_text(records_text("test 1", "2.13", "0.1", [{"a": 1}, {"a": 2}]))
    return path


@pytest.mark.parametrize(
    "codec",
    [Pack(2), Quantize(4), SignTile(4, (2, 6)), Tile(4, (1, 2), 2), Probe("orthogonal", 3)],
)
def test_a_codec_comes_back_from_json(codec):
    assert build_codec(json.loads(json.dumps(describe_codec(codec)))) == codec


def test_a_codec_that_cannot_be_built():
    with pytest.raises(PlanMismatchError, match="codec 'zip' is unknown; known are"):
        build_codec({"name": "zip", "options": {}})
    with pytest.raises(PlanMismatchError, match=r"codec 'quantize' with options \{'bits': 3\}: "):
        build_codec({"name": "quantize", "options": {"bits": 3}})


def test_versions_and_records_come_back(path):
    read = read_records(path, "test 1", lambda graph: graph["a"], Refusal)
    assert read == ("2.13", "0.1", (1, 2))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read: "),
        ("[]", "expected schema test 1, got None"),
        ('{"schema": 2}', "expected schema test 1, got 2"),
        ('{"schema": "test 1"}', "the entry 'graphs' is missing"),
        ('{"schema": "test 1", "graphs": [{}]}', "the entry 'a' is missing"),
        ('{"schema": "test 1", "graphs": [3]}', "'int' object is not subscriptable"),
    ],
)
def test_a_damaged_file_is_refused_in_the_callers_words(path, text, problem):
    path.write_text(text)
    with pytest.raises(Refusal) as caught:
        read_records(path, "test 1", lambda graph: graph["a"], Refusal)
    assert str(caught.value).startswith(f"records.json: {problem}")
