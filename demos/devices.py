"""The device that a command runs on: its option, and how results name it.

In: what the user typed. Out: ``cpu`` or ``cuda``, checked to be there before hours of work.
"""

from __future__ import annotations

import platform

import click
import torch


def _checked(context: click.Context, parameter: click.Parameter, device: str) -> str:
    del context, parameter
    if device == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch finds no CUDA device.")
    return device


device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", callback=_checked
)
"""The option ``--device`` of a command; it fills ``device``."""


def device_name(device: str) -> str:
    """Name the processor that a device is.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def device_text(device: str) -> str:
    """Say in a line what ran: torch, the processor, its vector width or threads, the precision.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    if torch.device(device).type == "cuda":
        return f"torch {torch.__version__}, {device_name(device)}, {precision(device)}"
    width = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, CPU ({width}), {torch.get_num_threads()} threads, fp32"


def precision(device: str) -> str:
    """Say in which precision fp32 tensors are convolved.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    if torch.device(device).type == "cuda" and torch.backends.cudnn.allow_tf32:
        return "fp32 with convolutions in tf32"
    return "fp32"
