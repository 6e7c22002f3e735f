"""Options and names of devices."""

import click
import pytest
import torch
from click.testing import CliRunner

from demos.devices import device_name, device_option, device_text, precision


@click.command()
@device_option
def command(device: str) -> None:
    click.echo(f"runs on {device}")


def test_the_cpu_is_the_default() -> None:
    assert CliRunner().invoke(command).output == "runs on cpu\n"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(command, ["--device", "cuda"])

    assert result.exit_code == 2
    assert "Invalid value for '--device': torch finds no CUDA device." in result.output


def test_a_gpu_is_named_with_the_precision_of_its_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a {device}")

    assert device_name("cuda") == "a cuda"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert precision("cuda") == "fp32 with convolutions in tf32"
        assert precision("cpu") == "fp32"
        text = f"torch {torch.__version__}, a cuda, fp32 with convolutions in tf32"
        assert device_text("cuda") == text
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert precision("cuda") == "fp32"


def test_a_cpu_is_described_by_its_vectors_and_threads() -> None:
    assert f"{torch.get_num_threads()} threads, fp32" in device_text("cpu")
