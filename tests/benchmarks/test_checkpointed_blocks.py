import pytest
import torch
from torch import Tensor, nn

import models_zoo
from benchmarks.checkpointed_blocks import Checkpointed, checkpoint_blocks
from benchmarks.measure import saved_nbytes

MODELS = (
    ("resnet18", {"width": 8, "small_input": True, "num_classes": 4}, (2, 3, 16, 16), 8),
    ("unet2d", {"width": 4, "num_stages": 3}, (2, 3, 16, 16), 5),
    ("mobilenet_v2", {"width_mult": 0.1, "dropout": 0.0, "num_classes": 4}, (2, 3, 32, 32), 17),
    ("vgg11_bn", {"width": 4, "small_input": True, "num_classes": 4}, (2, 3, 32, 32), 5),
)


@pytest.fixture(params=MODELS, ids=lambda entry: entry[0])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, int]:
    name, options, shape, num_blocks = request.param
    return models_zoo.build(name, **options), torch.randn(shape), num_blocks


def gradients(run: nn.Module, model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(run(x).square().mean(), list(model.parameters()))


def test_every_block_is_wrapped_and_gradients_are_the_same(case) -> None:
    model, x, num_blocks = case
    copied = checkpoint_blocks(model)

    assert sum(isinstance(module, Checkpointed) for module in copied.modules()) == num_blocks
    expected, found = gradients(model, model, x), gradients(copied, model, x)
    # The same kernels on the same numbers, but for the order of sums in threads.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_model_stays_as_it_is_and_the_copy_shares_its_parameters(case) -> None:
    model, _, _ = case
    copied = checkpoint_blocks(model)

    assert not any(isinstance(module, Checkpointed) for module in model.modules())
    assert {id(p) for p in copied.parameters()} == {id(p) for p in model.parameters()}
    assert not {id(b) for b in copied.buffers()} & {id(b) for b in model.buffers()}


def test_blocks_save_less(case) -> None:
    model, x, _ = case
    copied = checkpoint_blocks(model)
    held = [*model.parameters(), *model.buffers(), *copied.buffers(), x]
    whole = saved_nbytes(lambda: model(x).square().mean(), held)

    assert saved_nbytes(lambda: copied(x).square().mean(), held) < whole


def test_a_model_whose_blocks_are_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a ResNet, UNet, .* got a Linear"):
        checkpoint_blocks(nn.Linear(2, 2))
