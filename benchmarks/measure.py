"""Measurements of a training step: memory to the byte, and time as a ratio.

Comes in: callables that run a forward pass or a whole step of any model, eager or compiled.
Goes out: frozen dataclasses of plain numbers. Printing and plotting are left to the callers.

On the CPU memory is read from the profiler's allocation events, which torch's allocator reports
one by one, so that eager and compiled steps are measured alike and to the byte (checked on torch
2.13). On CUDA it is what the caching allocator has counted, which rounds up to 512 bytes.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class StepMemory:
    """Memory of one training step, in bytes above what was allocated before it.

    Attributes:
        live_after_forward_nbytes: Live between forward and backward: what forward keeps for
            backward, plus its outputs (the loss, a scalar) that the caller still holds.
        peak_nbytes: The most that was live at any moment of the step, gradients included.
    """

    live_after_forward_nbytes: int
    peak_nbytes: int


@dataclass(frozen=True)
class StepTime:
    """Time of one step.

    Attributes:
        median_us: Median over the rounds, in microseconds.
        ratio: Median over the rounds of this candidate's time divided by the baseline's time in
            the same round, so that a slow spell of the machine touches both.
        num_rounds: How many rounds were timed.
    """

    median_us: float
    ratio: float
    num_rounds: int


@dataclass
class _Ledger:
    """Blocks allocated since the start of the measurement and still live.

    A block that was allocated earlier may be freed during the measurement. The profiler reports
    such a free only if it happens to know the block from an earlier profile (torch 2.13), so all
    of them are left out: memory from before the start counts as staying.
    """

    nbytes_by_address: dict[int, int] = field(default_factory=dict)
    live_nbytes: int = 0
    peak_nbytes: int = 0

    def record(self, address: int, alloc_nbytes: int) -> None:
        if alloc_nbytes > 0:
            self.nbytes_by_address[address] = alloc_nbytes
            self.live_nbytes += alloc_nbytes
            self.peak_nbytes = max(self.peak_nbytes, self.live_nbytes)
        else:
            self.live_nbytes -= self.nbytes_by_address.pop(address, 0)


def step_memory(
    forward: Callable[[], Tensor],
    update: Callable[[], object] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> StepMemory:
    """Measures the memory of one step: forward, backward and, if given, the update.

    Run a few steps first, so that compilation, optimiser state and caches are in place, and set
    the gradients to None, so that they are allocated inside the step as in training.

    Args:
        forward: Runs the forward pass and returns the scalar loss.
        update: Runs after backward, an optimiser's step for instance.
        device: Where the step runs: the CPU or a CUDA device.

    Returns:
        Bytes above the level at which the step began.

    Raises:
        ValueError: The device is neither the CPU nor CUDA.
    """
    device = torch.device(device)

    def backward(loss: Tensor) -> None:
        torch.autograd.backward(loss)
        if update is not None:
            update()

    gc.collect()
    if device.type == "cuda":
        return _step_memory_cuda(forward, backward, device)
    if device.type != "cpu":
        raise ValueError(
            f"step_memory: expected a cpu or cuda device, got {str(device)!r}; "
            "other devices report no allocations that could be counted."
        )
    ledger = _Ledger()
    loss = _run_recorded(forward, ledger)
    live_after_forward_nbytes = ledger.live_nbytes
    _run_recorded(lambda: backward(loss), ledger)
    return StepMemory(live_after_forward_nbytes, ledger.peak_nbytes)


def saved_nbytes(forward: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Counts the bytes of distinct storages that an eager forward saves for backward.

    Autograd's saved-tensor hooks see what eager ops save; a compiled graph saves behind them, so
    for one use `step_memory`.

    Args:
        forward: Runs the forward pass and returns the loss.
        exclude: Tensors whose storages are not counted: parameters, buffers, perhaps the batch.

    Returns:
        The sum of the sizes of the saved storages, each counted once.
    """
    excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    nbytes_by_address: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            nbytes_by_address[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # The graph holds every saved storage as long as the loss lives: no address is used twice.
        loss = forward()
    del loss
    return sum(nbytes_by_address.values())


def step_times(
    steps: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    num_rounds: int = 10,
    num_warmup: int = 3,
    device: torch.device | str = "cpu",
) -> dict[str, StepTime]:
    """Times candidates in turn, round by round, so that a drift of the machine hits all alike.

    Args:
        steps: A callable per candidate that runs one whole step.
        baseline: The candidate that the ratios are taken to.
        num_rounds: Timed rounds; each runs every candidate once.
        num_warmup: Rounds before those that are not timed.
        device: Waited for at the end of each step when it is a CUDA device.

    Returns:
        The time of each candidate, in the order given.

    Raises:
        ValueError: The baseline is no candidate, or `num_rounds` is not positive.
    """
    if baseline not in steps:
        raise ValueError(f"step_times: baseline {baseline!r} is not among {sorted(steps)}.")
    if num_rounds <= 0:
        raise ValueError(f"step_times: expected num_rounds >= 1, got {num_rounds}.")
    device = torch.device(device)
    rounds = [
        {name: timed_us(step, device) for name, step in steps.items()}
        for _ in range(num_warmup + num_rounds)
    ][num_warmup:]
    return summarise_rounds(rounds, baseline=baseline)


def timed_us(step: Callable[[], object], device: torch.device) -> float:
    """Runs one step and returns the time it took, in microseconds."""
    _wait_for(device)
    start_ns = time.perf_counter_ns()
    step()
    _wait_for(device)
    return (time.perf_counter_ns() - start_ns) / 1000


def summarise_rounds(
    rounds: Iterable[Mapping[str, float]], *, baseline: str
) -> dict[str, StepTime]:
    """Summarises rounds of interleaved timings.

    Args:
        rounds: For each round the microseconds of each candidate; at least one round.
        baseline: The candidate that the ratios are taken to.

    Returns:
        The time of each candidate, in the order of the first round.
    """
    rounds = list(rounds)
    return {
        name: StepTime(
            median_us=statistics.median(times[name] for times in rounds),
            ratio=statistics.median(times[name] / times[baseline] for times in rounds),
            num_rounds=len(rounds),
        )
        for name in rounds[0]
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _step_memory_cuda(
    forward: Callable[[], Tensor], backward: Callable[[Tensor], None], device: torch.device
) -> StepMemory:
    _wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    start_nbytes = torch.cuda.memory_allocated(device)
    loss = forward()
    live_after_forward_nbytes = torch.cuda.memory_allocated(device) - start_nbytes
    backward(loss)
    _wait_for(device)
    peak_nbytes = torch.cuda.max_memory_allocated(device) - start_nbytes
    return StepMemory(live_after_forward_nbytes, peak_nbytes)


def _run_recorded(run: Callable[[], Any], ledger: _Ledger) -> Any:
    """Runs under the profiler and enters every allocation and free into the ledger, in order."""
    # Without `acc_events`, torch 2.11 warns that a second cycle would lose the events of the first.
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        result = run()
    results: Any = profiler.profiler.kineto_results
    allocations = [
        event for event in _walk(results.experimental_event_tree()) if event.name == "[memory]"
    ]
    for event in sorted(allocations, key=lambda event: event.start_time_ns):
        _, extra = event.typed
        if extra.device.type == "cpu":
            ledger.record(extra.ptr, extra.alloc_size)
    return result


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)
