import pytest
import torch
from torch import Tensor, nn

from benchmarks.measure import saved_nbytes, step_memory, step_times, summarise_rounds

# Large enough that a missed block shows, and no size that torch would pad.
NUM_ELEMENTS = 1000
BLOCK_NBYTES = 4 * NUM_ELEMENTS
SCALAR_NBYTES = 4


def exp_sum(x: Tensor) -> Tensor:
    return x.exp().sum()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(NUM_ELEMENTS, requires_grad=True)


def test_memory_of_a_step_worked_out_by_hand(x: Tensor) -> None:
    # Forward keeps exp(x) and the loss; backward adds the loss's gradient and the one of x.
    memory = step_memory(lambda: exp_sum(x))

    assert memory.live_after_forward_nbytes == BLOCK_NBYTES + SCALAR_NBYTES
    assert memory.peak_nbytes == 2 * BLOCK_NBYTES + 2 * SCALAR_NBYTES


def test_memory_of_a_compiled_step_is_measured_alike(x: Tensor) -> None:
    compiled = torch.compile(exp_sum, backend="aot_eager")
    compiled(x).backward()
    x.grad = None
    memory = step_memory(lambda: compiled(x))
    x.grad = None

    assert memory == step_memory(lambda: exp_sum(x))


def test_peak_covers_the_update(x: Tensor) -> None:
    def update() -> None:
        torch.empty(10 * NUM_ELEMENTS)

    memory = step_memory(lambda: exp_sum(x), update)

    # At the update live: the loss, the gradient of x, and what the update itself takes.
    assert memory.peak_nbytes == 11 * BLOCK_NBYTES + SCALAR_NBYTES


def test_blocks_from_before_the_step_count_as_staying(x: Tensor) -> None:
    step_memory(lambda: exp_sum(x))  # leaves a gradient that the profiler has seen allocated
    old = [torch.empty(NUM_ELEMENTS)]

    def forward() -> Tensor:
        old.clear()
        x.grad = None
        return exp_sum(x)

    assert step_memory(forward).live_after_forward_nbytes == BLOCK_NBYTES + SCALAR_NBYTES


def test_memory_of_an_unsupported_device_is_an_error(x: Tensor) -> None:
    with pytest.raises(ValueError, match="expected a cpu or cuda device, got 'meta'"):
        step_memory(lambda: exp_sum(x), device="meta")


@pytest.mark.gpu
def test_memory_on_cuda_is_what_the_allocator_counted() -> None:
    x = torch.randn(1 << 20, device="cuda", requires_grad=True)
    memory = step_memory(lambda: exp_sum(x), device="cuda")

    # The caching allocator rounds up to 512 bytes: the scalar counts as one such block.
    assert memory.live_after_forward_nbytes == (4 << 20) + 512
    assert memory.peak_nbytes >= 2 * (4 << 20)


def test_saved_storages_are_counted_once_and_parameters_not() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    images = torch.randn(4, 8)

    # Saved: the batch (4x8, by the first layer), and relu's output (4x16), which relu and the
    # second layer share. The weights are saved too, but excluded.
    nbytes = saved_nbytes(lambda: model(images).sum(), model.parameters())

    assert nbytes == 4 * (4 * 8 + 4 * 16)
    assert saved_nbytes(lambda: model(images).sum(), [*model.parameters(), images]) == 4 * 4 * 16


def test_step_times_run_the_candidates_in_turn() -> None:
    calls: list[str] = []
    times = step_times(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        baseline="a",
        num_rounds=2,
        num_warmup=1,
    )

    assert calls == ["a", "b"] * 3
    assert list(times) == ["a", "b"]
    assert times["a"].ratio == 1.0
    assert times["b"].num_rounds == 2


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is ten times slower in the second round; b takes twice as long as a in each.
    rounds = [{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 20.0}, {"a": 1.0, "b": 2.0}]
    times = summarise_rounds(rounds, baseline="a")

    assert times["b"].ratio == 2.0
    assert times["b"].median_us == 2.0


def test_step_times_reject_an_unknown_baseline() -> None:
    with pytest.raises(ValueError, match=r"baseline 'c' is not among \['a'\]"):
        step_times({"a": lambda: None}, baseline="c")


def test_step_times_reject_no_rounds() -> None:
    with pytest.raises(ValueError, match="expected num_rounds >= 1, got 0"):
        step_times({"a": lambda: None}, baseline="a", num_rounds=0)
