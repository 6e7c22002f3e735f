import math

import pytest
import torch

from benchmarks.gradient_statistics import (
    bias_ratio,
    bias_score,
    geometric_mean,
    minibatch_noise,
    relative_rms_error,
    root_mean_square,
)


def test_the_error_is_the_root_of_the_mean_square_over_the_norm() -> None:
    exact = torch.tensor([3.0, 4.0])
    estimates = [exact + torch.tensor([1.0, 0.0]), exact - torch.tensor([0.0, 7.0])]

    # (1 + 49) / 2 = 25, and the norm is 5.
    assert relative_rms_error(estimates, exact) == pytest.approx(1.0)


def test_an_error_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one estimate, got none"):
        relative_rms_error([], torch.ones(2))


def test_an_error_relative_to_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="the exact gradient is zero"):
        relative_rms_error([torch.ones(2)], torch.zeros(2))


def test_the_minibatch_noise_of_gradients_of_known_variance_is_found() -> None:
    # Mean of norm 3 and a total variance of 16: the noise is sqrt(16 / 25) = 0.8.
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(400)
    mean[0] = 3.0
    scale = math.sqrt(16 / 400)
    gradients = [mean + scale * torch.randn(400, generator=generator) for _ in range(200)]

    # Each squared norm deviates by sqrt(2 / 400) of its mean, the cross term with the mean less,
    # and their mean by 1/14 of that: 0.02 are five standard deviations or more.
    assert minibatch_noise(gradients) == pytest.approx(0.8, abs=0.02)


def test_two_opposite_batches_have_the_sample_variance_with_divisor_one() -> None:
    gradients = [torch.tensor([1.0]), torch.tensor([-1.0])]

    assert minibatch_noise(gradients) == pytest.approx(math.sqrt(2.0))


def test_batches_that_agree_have_no_noise() -> None:
    assert minibatch_noise([torch.ones(3), torch.ones(3)]) == 0.0
    assert minibatch_noise([torch.zeros(3), torch.zeros(3)]) == 0.0


def test_the_noise_of_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="expected gradients of 2 batches or more, got 1"):
        minibatch_noise([torch.ones(2)])


def drawn_errors(bias: float) -> torch.Tensor:
    return torch.randn(64, 500, generator=torch.Generator().manual_seed(1)) + bias


def test_errors_without_bias_score_like_a_standard_normal() -> None:
    errors = drawn_errors(0.0)

    # 64 x 500 normal entries: the score is normal to a good approximation, and 4 happens once in
    # 16,000. The squared ratio is chi-squared with 500 degrees of freedom over 500.
    assert abs(bias_score(errors)) < 4
    assert bias_ratio(errors) == pytest.approx(1.0, abs=0.2)


def test_a_bias_of_a_quarter_of_the_deviation_is_found() -> None:
    errors = drawn_errors(0.25)

    assert bias_score(errors) > 20
    assert bias_ratio(errors) > 2


def test_a_bias_without_noise_is_infinitely_many_standard_errors() -> None:
    assert bias_ratio(torch.ones(4, 3)) == math.inf


def test_no_error_has_no_bias() -> None:
    assert bias_ratio(torch.zeros(4, 3)) == 0.0
    assert bias_score(torch.zeros(4, 3)) == 0.0


def test_means() -> None:
    assert root_mean_square([3.0, 4.0]) == pytest.approx(math.sqrt(12.5))
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([0.0, 8.0]) == 0.0
    assert math.isnan(geometric_mean([]))
    assert math.isnan(root_mean_square([]))
