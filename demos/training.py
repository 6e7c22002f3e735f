"""Trains one model several ways side by side, and measures what each way keeps and costs.

Comes in: settings and texture data. Goes out: a frozen result for each way. A way is how the same
module is run: eagerly, or through `torch.compile` with a backend. All ways start from the same
weights and see the same batches; they take turns step by step, so that a slow spell of the
machine touches all alike. The command line and the printing are left to `demos.textures` and
`demos.texture_report`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models_zoo
from benchmarks.measure import StepMemory, StepTime, step_memory, summarise_rounds, timed_us
from demos.texture_data import Batch, TextureData, draw_test_set, draw_train_batch

EAGER = "eager"
# The way that the others are compared with, where it is among those asked for.
USUAL_BASELINE = "inductor"

# A quarter of the usual width, for two CPU cores.
_DEFAULT_WIDTH = 16
_NUM_TEST_PER_CLASS = 96
_TEST_BATCH_SIZE = 128
# Steps of the first seed that are not timed: the first compiles, and the next warm up.
_NUM_WARMUP = 5

OnProgress = Callable[[int, str], None]
"""Told the number of rounds done, over all seeds, and what is going on."""


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Attributes:
        model: Name in `models_zoo`.
        ways: `eager` or names of `torch.compile` backends.
        steps: Training steps of each seed.
        batch_size: N.
        image_size: Side of the square crops, in pixels.
        width: Base width of the model; None for 16 where the model has such an option.
        num_seeds: Trainings of each way, from seed 0 on.
        backend_options: `torch.compile`'s options for the backend `xconv`.
        learning_rate: Highest learning rate of the one-cycle schedule.
        device: Where the model is trained.
    """

    model: str = "resnet18"
    ways: tuple[str, ...] = (EAGER, "inductor", "xconv")
    steps: int = 120
    batch_size: int = 64
    image_size: int = 48
    width: int | None = None
    num_seeds: int = 1
    backend_options: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    learning_rate: float = 0.1
    device: str = "cpu"

    @property
    def baseline(self) -> str:
        """The way that the others are compared with."""
        return USUAL_BASELINE if USUAL_BASELINE in self.ways else self.ways[0]


@dataclass(frozen=True)
class WayResult:
    """What one way reached and cost.

    Attributes:
        way: Its name.
        accuracies: Share of test crops classified right, for each seed.
        losses: Training loss of each step, for each seed.
        first_step_us: Time of the very first step, with any compilation.
        memory: Memory of one step after training.
        time: Time of a step, and its ratio to the baseline's.
    """

    way: str
    accuracies: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    first_step_us: float
    memory: StepMemory
    time: StepTime


@dataclass
class _Learner:
    """One way with its own copy of the model."""

    way: str
    model: nn.Module
    run: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    accuracies: list[float] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.run(batch.images), batch.labels)

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.scheduler.step()
        self.losses[-1].append(loss.item())


def build_model(settings: Settings, num_classes: int, seed: int) -> nn.Module:
    """Builds the classifier with the seed's initial weights.

    Args:
        settings: Model, width and crop size.
        num_classes: Number of logits.
        seed: Seed of the weights.

    Returns:
        The model, in training mode, on the CPU.

    Raises:
        ValueError: There is no such model, it is no classifier of 3-channel images, it has no
            width to set, or it cannot take crops of this size.
    """
    known = models_zoo.entry(settings.model).options()
    if "num_classes" not in known:
        raise ValueError(f"{settings.model} is no classifier: it has no option num_classes.")
    options: dict[str, object] = {"num_classes": num_classes, "in_channels": 3}
    if settings.width is not None or "width" in known:
        options["width"] = settings.width or _DEFAULT_WIDTH
    if "small_input" in known:
        options["small_input"] = True
    if "image_size" in known:
        options["image_size"] = settings.image_size
    torch.manual_seed(seed)
    model = models_zoo.build(settings.model, **options)
    models_zoo.input_spec(model).check_size((settings.image_size, settings.image_size))
    return model


def train_ways(settings: Settings, data: TextureData, on_progress: OnProgress) -> list[WayResult]:
    """Trains and measures every way.

    Args:
        settings: What to train, and how.
        data: The photographs' regions.
        on_progress: Called after each round, and before a part that takes long.

    Returns:
        A result for each way, in the order of the settings.
    """
    torch.compiler.reset()
    learners = [_make_learner(way, settings, data) for way in settings.ways]
    test_set = _to_device(
        draw_test_set(data, _NUM_TEST_PER_CLASS, settings.image_size), settings.device
    )
    rounds: list[dict[str, float]] = []
    for seed in range(settings.num_seeds):
        _start_over(learners, settings, data, seed)
        rounds += _train_seed(learners, settings, data, seed, on_progress)
        on_progress(len(rounds), f"testing, seed {seed}")
        for learner in learners:
            learner.accuracies.append(_accuracy(learner.model, test_set))
    on_progress(len(rounds), "measuring the memory of a step")
    memories = [_measure_memory(learner, settings, data) for learner in learners]
    num_warmup = min(_NUM_WARMUP, len(rounds) - 1)
    times = summarise_rounds(rounds[num_warmup:], baseline=settings.baseline)
    return [
        WayResult(
            way=learner.way,
            accuracies=tuple(learner.accuracies),
            losses=tuple(tuple(losses) for losses in learner.losses),
            first_step_us=rounds[0][learner.way],
            memory=memory,
            time=times[learner.way],
        )
        for learner, memory in zip(learners, memories, strict=True)
    ]


def num_test_crops(data: TextureData) -> int:
    """Number of test crops that an accuracy is taken over."""
    return _NUM_TEST_PER_CLASS * len(data.names)


def _make_learner(way: str, settings: Settings, data: TextureData) -> _Learner:
    model = build_model(settings, len(data.names), seed=0).to(settings.device)
    optimizer, scheduler = _make_optimizer(model, settings)
    return _Learner(way, model, _compile(model, way, settings), optimizer, scheduler)


def _compile(model: nn.Module, way: str, settings: Settings) -> Callable[[Tensor], Tensor]:
    if way == EAGER:
        return model
    # torch annotates fewer types of options than it passes on, floats among them.
    options: dict[str, Any] = dict(settings.backend_options) if way == "xconv" else {}
    return torch.compile(model, backend=way, options=options or None)


def _make_optimizer(
    model: nn.Module, settings: Settings
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    rate = settings.learning_rate
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    # One more than the steps: the schedule divides by the lengths of its phases, and those of a
    # single step would be zero.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=settings.steps + 1
    )
    return optimizer, scheduler


def _start_over(learners: list[_Learner], settings: Settings, data: TextureData, seed: int) -> None:
    """Gives all ways the seed's weights and fresh optimisers; what is compiled stays."""
    weights = build_model(settings, len(data.names), seed).state_dict()
    for learner in learners:
        learner.model.load_state_dict(weights)
        learner.model.train()
        learner.optimizer, learner.scheduler = _make_optimizer(learner.model, settings)
        learner.losses.append([])


def _train_seed(
    learners: list[_Learner],
    settings: Settings,
    data: TextureData,
    seed: int,
    on_progress: OnProgress,
) -> list[dict[str, float]]:
    """Trains all ways in turn and returns each round's times in microseconds."""
    generator = torch.Generator().manual_seed(seed)
    device = torch.device(settings.device)
    rounds: list[dict[str, float]] = []
    for step in range(settings.steps):
        batch = _to_device(
            draw_train_batch(data, settings.batch_size, settings.image_size, generator), device
        )
        times: dict[str, float] = {}
        for learner in learners:
            if step == 0 and seed == 0:
                on_progress(0, f"first step of {learner.way}")
            times[learner.way] = timed_us(partial(learner.step, batch), device)
        rounds.append(times)
        losses = "  ".join(f"{learner.way} {learner.losses[-1][-1]:.2f}" for learner in learners)
        on_progress(seed * settings.steps + step + 1, f"loss {losses}")
    return rounds


def _accuracy(model: nn.Module, test_set: Batch) -> float:
    """Share classified right; run eagerly for every way, since only training differs."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat(
            [model(images) for images in torch.split(test_set.images, _TEST_BATCH_SIZE)]
        )
    model.train()
    return float((logits.argmax(1) == test_set.labels).float().mean())


def _measure_memory(learner: _Learner, settings: Settings, data: TextureData) -> StepMemory:
    """Measures one more training step, on the batch that every way gets."""
    generator = torch.Generator().manual_seed(0)
    batch = _to_device(
        draw_train_batch(data, settings.batch_size, settings.image_size, generator),
        settings.device,
    )
    learner.optimizer.zero_grad(set_to_none=True)
    return step_memory(lambda: learner.loss(batch), learner.optimizer.step, device=settings.device)


def _to_device(batch: Batch, device: torch.device | str) -> Batch:
    return Batch(batch.images.to(device), batch.labels.to(device))
