"""Time of encoding and decoding beside the convolution it serves, and of whole training steps.

Run as ``python -m benchmarks.step_time``. Everything is compiled by Inductor and timed in turn in
one run; figures are ratios, medians over the rounds. The first table times, for one 3x3
convolution of 64 channels at 56x56, its forward and backward, and the encode and the decode of its
input by each codec, alone (inside a step they are fused with their neighbours and cost less), with
an allocator that keeps what is freed: else the one who frees pays for handing back what others
took, and the next one for getting it again. The second, with the allocator as it is, times steps of
zoo models under ``xconv`` as a multiple of the same step under ``inductor``, with the time to
compile as well.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import models_zoo
from benchmarks.measure import step_times
from benchmarks.saved_bytes import loss_of
from demos.devices import device_option, device_text
from passes.rules import Codec
from xconv_fx import _torch
from xconv_fx._vector_loads import direct_loads
from xconv_fx.backend import xconv
from xconv_fx.ops import DECOMPOSITIONS
from xconv_fx.partition_function import device_type_of
from xconv_fx.rules import LADDER
from xconv_fx.sketches.randomness import key_schedule

# Batch and image side of each model's step; the narrow ResNet is the demo's.
STEPS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "resnet18 112x112": ("resnet18", {}, 8, 112),
    "resnet18 width 16, 48x48": ("resnet18", {"width": 16, "small_input": True}, 64, 48),
    "unet2d 64x64": ("unet2d", {}, 4, 64),
}
# What batches are multiplied by, so that a step is more than the launching of its kernels.
_BATCH_FACTORS = {"cpu": 1, "cuda": 16}
_CHANNELS_LAST = (0, 2, 3, 1)


@dataclass(frozen=True)
class CodecTime:
    """Encode plus decode as a share of the convolution's forward plus backward."""

    codec: str
    encode_ratio: float
    decode_ratio: float


@dataclass(frozen=True)
class StepRatio:
    """One model: step and compilation under ``xconv``, as multiples of ``inductor``'s."""

    model: str
    step_ratio: float
    compile_ratio: float


def codec_times(batch_size: int, num_rounds: int, device: str) -> list[CodecTime]:
    """Time the codecs that two dimensions have beside a 3x3 convolution of 64 channels at 56x56."""
    torch.manual_seed(0)
    x = torch.randn(batch_size, 64, 56, 56, device=device)
    x = x.to(memory_format=torch.channels_last).relu()
    convolution: Any = nn.Conv2d(64, 64, 3, padding=1, device=device)
    convolution = convolution.to(memory_format=torch.channels_last)
    seed = key_schedule(torch.tensor([2**61 + 12345], device=device))[0]
    steps: dict[str, Callable[[], object]] = {"convolution": _convolution_step(convolution, x)}
    codecs = [codec for codec in LADDER if codec.supports(x.shape, x.dtype) is None]
    for codec in codecs:
        encode = functools.partial(_compiled(_encode_of(codec)), x, seed)
        decode = functools.partial(_compiled(_decode_of(codec, x)), encode(), seed)
        steps[f"{codec.name} encode"], steps[f"{codec.name} decode"] = encode, decode
    times = step_times(steps, baseline="convolution", num_rounds=num_rounds, device=device)
    return [
        CodecTime(c.name, times[f"{c.name} encode"].ratio, times[f"{c.name} decode"].ratio)
        for c in codecs
    ]


def step_ratio(label: str, num_rounds: int, device: str) -> StepRatio:
    """Time a model's training step under both backends."""
    name, options, batch_size, size = STEPS[label]
    torch.manual_seed(0)
    batch_size *= _BATCH_FACTORS[device]
    model = models_zoo.build(name, **options).to(device)
    inputs = models_zoo.example_input(name, batch_size, size=size, device=device)
    compile_s: dict[str, float] = {}
    steps: dict[str, Callable[[], object]] = {}
    for backend, compiler in (("inductor", "inductor"), ("xconv", xconv)):
        torch.compiler.reset()
        trained = copy.deepcopy(model)
        steps[backend] = _training_step(torch.compile(trained, backend=compiler), trained, inputs)
        start = time.perf_counter()
        with empty_cache():
            steps[backend]()
        compile_s[backend] = time.perf_counter() - start
    times = step_times(steps, baseline="inductor", num_rounds=num_rounds, device=device)
    return StepRatio(label, times["xconv"].ratio, compile_s["xconv"] / compile_s["inductor"])


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """Compile without what earlier runs left behind."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def keep_freed_memory() -> None:
    """Let glibc keep all that is freed to this process, for the rest of it; no other C library."""
    # Of malloc.h: the free memory at the top of the heap, and the size of a block, from which
    # memory goes back to the system.
    trim_threshold, mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for threshold in (trim_threshold, mmap_threshold):
            mallopt(threshold, 2**31 - 1)


def _training_step(
    compiled: Callable[..., Any], model: nn.Module, inputs: tuple[Tensor, ...]
) -> Callable[[], None]:
    def step() -> None:
        loss_of(compiled(*inputs)).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    return step


def _convolution_step(convolution: nn.Module, x: Tensor) -> Callable[[], None]:
    leaf = x.detach().requires_grad_()
    compiled = torch.compile(convolution, backend="inductor")

    def step() -> None:
        output = compiled(leaf)
        output.backward(torch.ones_like(output))
        leaf.grad = None
        convolution.zero_grad(set_to_none=True)

    return step


def _encode_of(codec: Codec) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x, seed: codec.encode(x, seed, _CHANNELS_LAST)


def _decode_of(codec: Codec, x: Tensor) -> Callable[..., Tensor]:
    def decode(parts: tuple[Tensor, ...], seed: Tensor) -> Tensor:
        return codec.decode(parts, seed, list(x.shape), x.dtype, _CHANNELS_LAST)

    return decode


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lower the xconv operators to aten, and compile with the loads and settings of the backend."""
    cache: dict[str, Callable[..., Any]] = {}

    def run(*args: Any) -> Any:
        if "compiled" in cache:
            return cache["compiled"](*args)
        lowered = make_fx(function, decomposition_table=DECOMPOSITIONS)(*args)
        settings = _torch.inductor_settings(device_type_of(pytree.tree_leaves(args)))
        cache["compiled"] = torch.compile(lowered, backend="inductor", options=settings)
        with direct_loads(), empty_cache():
            return cache["compiled"](*args)

    return run


def codec_table(rows: list[CodecTime]) -> Table:
    """Render the codecs' times."""
    table = Table(title="share of a 3x3 convolution's forward and backward", title_justify="left")
    table.add_column("codec")
    for heading in ("encode", "decode", "both"):
        table.add_column(heading, justify="right")
    for row in rows:
        both = row.encode_ratio + row.decode_ratio
        table.add_row(row.codec, *(f"{r:.3f}" for r in (row.encode_ratio, row.decode_ratio, both)))
    return table


def step_table(rows: list[StepRatio]) -> Table:
    """Render the steps' times."""
    table = Table(title="xconv as a multiple of inductor", title_justify="left")
    table.add_column("model")
    table.add_column("step", justify="right")
    table.add_column("compilation", justify="right")
    for row in rows:
        table.add_row(row.model, f"{row.step_ratio:.2f}", f"{row.compile_ratio:.2f}")
    return table


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=15)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, help="Of the convolution.")
@device_option
@click.option("--steps/--no-steps", default=True, help="Also time whole steps.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(rounds: int, batch_size: int, device: str, steps: bool, json_path: Path | None) -> None:
    """Time codecs beside a convolution, and steps under xconv beside inductor."""
    console = Console(width=120)
    ratios = [step_ratio(label, rounds, device) for label in STEPS] if steps else []
    if ratios:
        console.print(step_table(ratios))
    keep_freed_memory()
    codecs = codec_times(batch_size * _BATCH_FACTORS[device], rounds, device)
    console.print(codec_table(codecs))
    console.print(f"batches times {_BATCH_FACTORS[device]}, {device_text(device)}")
    if json_path is not None:
        rows = {"codecs": [asdict(r) for r in codecs], "steps": [asdict(r) for r in ratios]}
        json_path.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
