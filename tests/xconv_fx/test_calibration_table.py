"""The tables of a calibration: every figure is where its heading says."""

from passes.measured import (
    CodecMeasurement,
    GradientMeasurement,
    GraphMeasurement,
    ValueMeasurement,
)
from xconv_fx.calibration_table import render
from xconv_fx.codecs import Quantize, Tile


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def make_graph(num_groups=8):
    codecs = (
        CodecMeasurement(Quantize(4), 0.01, 0.005, 0.02, 2.0),
        CodecMeasurement(Tile(2, (1,)), 0.5, 0.5, 1.6, 2.0),
    )
    read = ValueMeasurement(3, "relu", "layer1", 4096, True, False, 0.5, 6.0, 5.0, codecs)
    other = ValueMeasurement(4, "conv", "layer2", 4096, False, True, 0.0, 6.0, 5.0, codecs)
    gradients = (
        GradientMeasurement(1, "layer1", 1.0, 0.5, 2.0),
        GradientMeasurement(2, "layer1", 2.0, 1.0, 1.0),
        GradientMeasurement(3, "layer2", 1.0, 4.0, 0.25),
        GradientMeasurement(4, "layer3", 0.0, 0.0, 0.0),
    )
    return GraphMeasurement(("%0 = input: float32[2]",), num_groups, (read, other), gradients)


def test_gradients_and_values_by_module():
    assert rows_of(render([make_graph()])) == [
        ["layer1", "2", "75.00%", "0.707"],
        ["layer2", "1", "25.00%", "2.000"],
        ["layer3", "1", "0.00%", "no gradient"],
        # The scale is that of all values alike: sqrt(0.04 * 3.2 / (0.005 * 0.5)) * 4,096 bytes, so
        # that the tile's harm of 1 a unit of noise is a sensitivity of 7.2.
        ["layer1", "relu", "weight", "50.0%", "6.0", "5.0", "7.2 / 2", "0.50", "0.31"],
    ]


def test_a_batch_that_could_not_be_split_is_mentioned():
    words = "the gradients themselves count as noise"
    assert words not in " ".join(render([make_graph()]).split())
    assert words in " ".join(render([make_graph(num_groups=1)]).split())
