import pytest
import torch
from torch import nn

from benchmarks.convolution_sites import capture, weight_gradients
from benchmarks.trained_nets import LabelledBatch, loss_of


class Net(nn.Module):
    """A convolution of the batch, one of stride 2 and groups, in-place ReLUs, a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.last(self.relu(self.second(self.relu(self.first(x)))))


@pytest.fixture
def batch() -> LabelledBatch:
    return LabelledBatch(torch.randn(2, 3, 8, 8), torch.randint(8, (2, 8, 8)))


def test_sites_give_the_exact_weight_gradient(batch: LabelledBatch) -> None:
    model = Net()
    sites = capture(model, batch)
    loss_of(model, batch).backward()

    # In the order of running, without the convolution of the batch itself.
    assert [site.name for site in sites] == ["second", "last"]
    for site in sites:
        expected = model.get_submodule(site.name).weight.grad
        # The same kernel on the same numbers, but for the order of a sum.
        torch.testing.assert_close(site.exact, expected)
        torch.testing.assert_close(site.weight_gradient(site.x), expected)
    assert sites[0].nbytes == 2 * 4 * 8 * 8 * 4


def test_sites_have_the_input_that_the_convolution_saw(batch: LabelledBatch) -> None:
    model = Net().to(memory_format=torch.channels_last)
    site = capture(model, batch)[0]

    assert torch.equal(site.x, torch.relu(model.first(batch.images)))
    assert site.x.stride(1) == 1


def test_capturing_leaves_no_hook_and_no_gradient(batch: LabelledBatch) -> None:
    model = Net()
    capture(model, batch)

    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_batch_has_its_own_gradient(batch: LabelledBatch) -> None:
    model = Net()
    batches = [batch, LabelledBatch(batch.images.flip(0), batch.labels)]
    drawn = iter(batches)
    gradients = weight_gradients(model, ["second"], lambda: next(drawn), 2)

    assert list(gradients) == ["second"]
    for gradient, each in zip(gradients["second"], batches, strict=True):
        (expected,) = torch.autograd.grad(loss_of(model, each), [model.second.weight])
        torch.testing.assert_close(gradient, expected)
