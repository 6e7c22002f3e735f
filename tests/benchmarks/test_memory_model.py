import io
import json

import click.testing
import pytest
from rich.console import Console

import xconv_fx
from benchmarks import memory_model
from benchmarks.memory_model import Prediction


def prediction(model="a", live=100, peak=100):
    return Prediction(model, "aot_eager", (2, 3), live, 100, peak, 100)


def test_a_step_is_predicted_and_measured():
    row = memory_model.predict("mnist_net", 2, "aot_eager")
    assert row.input_shape == (2, 1, 28, 28)
    assert 0 < row.measured_live_nbytes < row.measured_peak_nbytes
    # The target of the model: within 1 % between the graphs, and 10 % at the peak.
    assert abs(row.live_ratio - 1) <= 0.01
    assert abs(row.peak_ratio - 1) <= 0.1


def test_several_graphs_or_no_prediction_are_an_error(monkeypatch):
    report = xconv_fx.last_report
    monkeypatch.setattr(xconv_fx, "all_reports", lambda: (report(), report()))
    with pytest.raises(RuntimeError, match="expected one graph with a prediction, got 2 graphs"):
        memory_model.predict("mnist_net", 2, "aot_eager")


def test_the_summary_names_the_worst():
    rows = [prediction("a"), prediction("b", live=98, peak=93), prediction("c", peak=108)]
    text = memory_model.summary(rows)
    assert "between forward and backward: 0.980 (b, aot_eager)" in text
    assert "peaks from 0.930 (b, aot_eager) to 1.080 (c, aot_eager)" in text


def test_the_table_has_ratios():
    out = io.StringIO()
    Console(file=out, width=120).print(memory_model.results_table([prediction(live=98, peak=107)]))
    assert "0.980" in out.getvalue()
    assert "1.070" in out.getvalue()


def test_the_command_writes_what_it_measured(tmp_path):
    path = tmp_path / "rows.json"
    args = ["mnist_net", "--inner", "aot_eager", "--batch-size", "2", "--json", str(path)]
    result = click.testing.CliRunner().invoke(memory_model.main, args, catch_exceptions=False)
    assert result.exit_code == 0
    (row,) = json.loads(path.read_text())
    assert (row["model"], row["inner"]) == ("mnist_net", "aot_eager")
