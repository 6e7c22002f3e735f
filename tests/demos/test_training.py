import pytest
import torch

from demos.texture_data import TextureData, split
from demos.training import Settings, build_model, num_test_crops, train_ways

TINY = Settings(
    model="resnet18", ways=("eager",), steps=2, batch_size=4, image_size=16, width=2, num_seeds=1
)


@pytest.fixture
def data() -> TextureData:
    return split({"even": torch.full((32, 64), 0.5), "noise": torch.rand(32, 64)})


def ignore_progress(num_done: int, text: str) -> None:  # noqa: ARG001
    pass


def settings(**changes: object) -> Settings:
    return Settings(**{**vars(TINY), **changes})


def test_a_way_is_trained_and_measured(data: TextureData) -> None:
    (result,) = train_ways(TINY, data, ignore_progress)

    assert result.way == "eager"
    assert len(result.losses[0]) == 2
    assert 0 <= result.accuracies[0] <= 1
    assert 0 < result.memory.live_after_forward_nbytes < result.memory.peak_nbytes
    assert result.time.ratio == 1.0
    assert num_test_crops(data) == 192


def test_training_depends_on_the_seed_alone(data: TextureData) -> None:
    first, again = (train_ways(settings(num_seeds=2), data, ignore_progress)[0] for _ in range(2))

    assert first.losses == again.losses
    assert first.accuracies == again.accuracies
    assert first.losses[0] != first.losses[1]


def test_all_ways_get_the_same_weights_and_batches(data: TextureData) -> None:
    # aot_eager runs the same kernels: only the order of its sums may differ.
    ways = settings(ways=("eager", "aot_eager"))
    eager, compiled = train_ways(ways, data, ignore_progress)

    assert compiled.losses[0] == pytest.approx(eager.losses[0], rel=1e-4)


def test_progress_counts_the_rounds_of_all_seeds(data: TextureData) -> None:
    counts: list[int] = []
    train_ways(settings(num_seeds=2), data, lambda num_done, _: counts.append(num_done))

    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4}


def test_inductor_is_the_baseline_where_it_runs() -> None:
    assert settings(ways=("eager", "inductor")).baseline == "inductor"
    assert settings(ways=("aot_eager", "eager")).baseline == "aot_eager"


@pytest.mark.parametrize("model", ["mobilenet_v2", "vgg11_bn"])
def test_other_classifiers_get_only_options_they_have(model: str) -> None:
    built = build_model(settings(model=model, width=None, image_size=64), 3, seed=0)

    assert built.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet19"}, "unknown model 'resnet19'"),
        ({"model": "dcgan_discriminator"}, "dcgan_discriminator is no classifier"),
        ({"model": "mobilenet_v2", "width": 8}, "no option 'width'"),
        ({"image_size": 7}, "resnet18.*7"),
    ],
)
def test_a_model_that_cannot_be_built_is_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(settings(**changes), 3, seed=0)
