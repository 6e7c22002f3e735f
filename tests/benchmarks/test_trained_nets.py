import pytest
import torch

from benchmarks import trained_nets
from benchmarks.trained_nets import NETS, build_net, draw_batch, find_net, loss_of, train
from demos.texture_data import TextureData, split


@pytest.fixture
def data() -> TextureData:
    """Two photographs: one is dark on the left and bright on the right, the other reversed."""
    ramp = torch.linspace(0, 1, 128).expand(64, 128)
    return split({"rising": ramp, "falling": ramp.flip(1)})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_a_net_takes_its_batches(net, data: TextureData) -> None:
    batch = draw_batch(net, data, seeded(0), batch_size=2)
    loss = loss_of(build_net(net, seed=0), batch)

    assert batch.images.shape[2:] == net.size
    assert batch.labels.shape[1:] == (net.size if net.task == "segment" else ())
    assert loss.isfinite()


def mask_left(count: int, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001
    """The left half is inside, in place of one side of a random line."""
    inside = torch.zeros(count, *size, dtype=torch.bool)
    inside[..., : size[-1] // 2] = True
    return inside


def test_a_segmentation_has_the_pixels_of_the_photograph_that_its_label_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trained_nets, "_half_spaces", mask_left)
    rows, columns = torch.arange(64).view(-1, 1) % 2, torch.arange(128) % 2
    stripes, chessboard = rows.expand(64, 128).float(), (rows ^ columns).float()
    data = split({"stripes": stripes, "chessboard": chessboard})
    batch = draw_batch(find_net("unet2d"), data, seeded(0), batch_size=8)

    # Neighbours in a row are equal in the stripes alone; columns 15 and 16 are of two crops.
    equal = batch.images[:, 0, :, 1:] == batch.images[:, 0, :, :-1]
    stripy = (batch.labels == 0)[:, :, 1:]
    assert set(batch.labels[:, 0, 0].tolist()) == {0, 1}
    assert (batch.labels[:, 0, 0] != batch.labels[:, 0, 31]).any()
    for side in (slice(0, 15), slice(16, 31)):
        assert torch.equal(equal[..., side], stripy[..., side])


def test_the_line_passes_near_the_centre_at_any_slope(data: TextureData) -> None:
    batch = draw_batch(find_net("unet2d"), data, seeded(0), batch_size=64)
    divided = batch.labels[batch.labels.float().std((1, 2)) > 0]

    assert len(divided) > 16
    # The line is at most a quarter of half a side away from the centre.
    assert (divided.float().mean((1, 2)) - 0.5).abs().max() < 0.2
    assert (divided[:, :, :1] != divided).any(2).any()
    assert (divided[:, :1, :] != divided).any(1).any()


def test_a_volume_is_a_pan_over_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_nets, "_half_spaces", mask_left)
    data = split({"a": torch.rand(64, 128), "b": torch.rand(64, 128)})
    left = draw_batch(find_net("unet3d"), data, seeded(0), batch_size=1).images[0, 0, ..., :8]

    assert torch.equal(left[1, :-1, :-1], left[0, 1:, 1:])
    assert not torch.equal(left[1], left[0])


def test_training_lowers_the_loss_and_leaves_no_gradient(data: TextureData) -> None:
    net = find_net("resnet18")
    model = build_net(net, seed=0)
    losses = train(net, model, data, 6, seeded(0))

    # Two classes of ramps among eight logits: the first steps learn which are never right.
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batches_depend_on_the_generator_alone(data: TextureData) -> None:
    net = find_net("unet3d")
    first, again, other = (draw_batch(net, data, seeded(s), batch_size=2) for s in (1, 1, 2))

    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_an_unknown_net_is_an_error_with_a_hint() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'unet3' \(did you mean 'unet3d'\?\)"):
        find_net("unet3")
