"""What the zoo's tests share: counting parameters, output shapes, one training step."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import models_zoo


@pytest.fixture
def count_parameters() -> Callable[..., int]:
    """Count the parameters of a model built without storage.

    Returns:
        A function of a model's name and options.
    """

    def count(name: str, **options: object) -> int:
        with torch.device("meta"):
            model = models_zoo.build(name, **options)
        return sum(parameter.numel() for parameter in model.parameters())

    return count


@pytest.fixture
def meta_output() -> Callable[..., Tensor]:
    """Run a full-size model on the meta device, for its output's shape alone.

    Returns:
        A function of a model's name, batch size, spatial size and options.
    """

    def run(name: str, batch_size: int, size: tuple[int, ...], **options: object) -> Tensor:
        with torch.device("meta"):
            model = models_zoo.build(name, **options)
            inputs = models_zoo.example_input(name, batch_size, size=size, **options)
            output: Tensor = model(*inputs)
        return output

    return run


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Models of one family share code, so that their compilations count as one's recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def train_step() -> Callable[..., Tensor]:
    """Run forward and backward and check that a gradient reaches every parameter.

    A bias before a norm has a gradient of zero up to rounding, so only weights must be non-zero.

    Returns:
        A function of a model and its inputs that gives the output.
    """

    def step(model: nn.Module, *inputs: Tensor) -> Tensor:
        output: Tensor = model(*inputs)
        output.square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            if parameter.ndim > 1:
                assert parameter.grad.abs().max() > 0, name
        return output.detach()

    return step
