"""A calibration as a file, a table and an option."""

import dataclasses
import json
import pickle

import pytest
import torch
from torch import nn

import xconv_fx
from passes.measured import (
    CodecMeasurement,
    GradientMeasurement,
    GraphMeasurement,
    ValueMeasurement,
)
from xconv_fx.audit import last_report
from xconv_fx.backend import xconv
from xconv_fx.calibration import SCHEMA, Calibration, resolve_calibration
from xconv_fx.codecs import Quantize, Tile
from xconv_fx.errors import CalibrationFileError
from xconv_fx.options import Options, parse_options
from xconv_fx.partition_function import PartitionFunction

EAGER = {"inner": "aot_eager"}


def make_calibration(harm=0.5):
    codecs = (
        CodecMeasurement(Quantize(4), 0.01, harm / 100, 0.02, 1.0),
        CodecMeasurement(Tile(2, (1,)), 0.5, harm, 1.6, 1.0),
    )
    value = ValueMeasurement(3, "relu", "layer1", 4096, True, False, 0.5, 6.0, 5.0, codecs)
    gradient = GradientMeasurement(1, "layer1", 4.0, 2.0, 0.5)
    graph = GraphMeasurement(("%0 = input: float32[2]", "return []"), 8, (value,), (gradient,))
    return Calibration("2.13", "0.1", (graph,))


def make_model(channels=8):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 4, 3, padding=1)
    )


def report_of(model, count=4, **options):
    torch.compiler.reset()
    compiled = torch.compile(model, backend=xconv, options={**EAGER, **options})
    compiled(torch.randn(count, 3, 8, 8)).square().mean().backward()
    return last_report()


@pytest.fixture(scope="module")
def measured():
    return xconv_fx.calibrate(make_model(), torch.randn(4, 3, 8, 8), options=EAGER, num_draws=1)


class TestFiles:
    def test_what_is_read_is_what_was_saved(self, tmp_path):
        calibration = make_calibration()
        calibration.save(tmp_path / "c.json")
        read = Calibration.load(tmp_path / "c.json")
        assert read == calibration
        assert read.digest == calibration.digest
        assert read.scale == calibration.scale > 0.0

    def test_what_was_measured_comes_back(self, tmp_path, measured):
        measured.save(tmp_path / "c.json")
        assert resolve_calibration(str(tmp_path / "c.json")) == measured
        assert resolve_calibration(measured) is measured
        assert resolve_calibration(None) is None

    def test_no_file(self, tmp_path):
        with pytest.raises(CalibrationFileError) as caught:
            Calibration.load(tmp_path / "none.json")
        assert str(caught.value).startswith(
            f"calibration file {tmp_path / 'none.json'}: cannot be read: "
        )

    def test_a_file_of_something_else(self, tmp_path):
        (tmp_path / "c.json").write_text('{"schema": 1, "graphs": []}')
        with pytest.raises(CalibrationFileError, match=f"expected schema {SCHEMA}, got 1"):
            Calibration.load(tmp_path / "c.json")

    def test_a_missing_entry(self, tmp_path):
        path = tmp_path / "c.json"
        make_calibration().save(path)
        content = json.loads(path.read_text())
        del content["graphs"][0]["values"]
        path.write_text(json.dumps(content))
        with pytest.raises(CalibrationFileError, match="the entry 'values' is missing"):
            Calibration.load(path)

    def test_the_error_survives_pickling(self):
        error = CalibrationFileError("c.json", "is damaged")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), "calibration file c.json: is damaged")


class TestTheOption:
    def test_the_cache_key_tells_calibrations_apart(self):
        options = Options()
        keys = {
            PartitionFunction(options, "inductor", 0, None, c).identity
            for c in (None, make_calibration(0.5), make_calibration(0.6))
        }
        assert len(keys) == 3

    def test_a_file_does_as_well(self, tmp_path, measured):
        measured.save(tmp_path / "c.json")
        report = report_of(make_model(), calibration=str(tmp_path / "c.json"))
        assert any(f"(calibration {measured.digest}, graph " in note for note in report.notes)

    def test_another_batch_size_is_served_and_the_report_says_so(self, measured):
        report = report_of(make_model(), count=6, calibration=measured)
        (note,) = (n for n in report.notes if n.startswith("they were measured at other sizes"))
        assert "expected '%2 = input: float32[4, 3, 8, 8]'" in note
        assert "got '%2 = input: float32[6, 3, 8, 8]'" in note

    def test_another_graph_is_planned_from_its_shapes_and_the_report_says_so(self, measured):
        model = nn.Sequential(*make_model(), nn.Tanh())
        with_it, without = (report_of(model, calibration=c) for c in (measured, None))
        assert with_it.values == without.values
        (note,) = (n for n in with_it.notes if n.startswith("this graph is not in the calibration"))
        assert "noise is modelled from its shapes; the closest of 1 is" in note
        assert "Calibrate with the same options" in note

    def test_codecs_that_were_not_measured_are_named(self, measured):
        (graph,) = measured.graphs
        fewer = tuple(dataclasses.replace(v, codecs=v.codecs[:1]) for v in graph.values)
        partial = dataclasses.replace(measured, graphs=(dataclasses.replace(graph, values=fewer),))
        report = report_of(make_model(), calibration=partial)
        assert any(
            "values may get a codec that was not measured and keep their modelled noise (" in note
            for note in report.notes
        )

    def test_with_a_budget_it_keeps_to_the_budget(self, measured):
        report = report_of(make_model(), calibration=measured, memory_budget=0.2)
        assert report.ratio <= 0.2
        assert any("are measured" in note for note in report.notes)

    def test_parsing(self):
        calibration = make_calibration()
        assert parse_options({"calibration": calibration}).calibration is calibration
        assert parse_options({"calibration": "c.json"}).calibration == "c.json"
