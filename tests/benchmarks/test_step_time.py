import io

from rich.console import Console

from benchmarks.step_time import CodecTime, StepRatio, codec_table, step_table


def rendered(table):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_both_is_the_sum_of_encode_and_decode():
    text = rendered(codec_table([CodecTime("quantize[2b]", 0.0625, 0.03125)]))
    assert "quantize[2b]" in text
    assert "0.062" in text
    assert "0.031" in text
    assert "0.094" in text


def test_ratios_have_two_digits():
    text = rendered(step_table([StepRatio("resnet18", 1.234, 2.0)]))
    assert "1.23" in text
    assert "2.00" in text
