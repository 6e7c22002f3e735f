import itertools
import math

import pytest
import torch

from xconv_fx.sketches.randomness import NUM_STARTS, key_schedule
from xconv_fx.sketches.tile_rows import (
    allotment,
    draw_rows,
    draw_words,
    kept_rows,
    num_planes,
    num_rows,
)

SEED = torch.tensor(2**61 + 424242)


def word_bits(num_spatial: int, num_levels: int) -> int:
    """The bits of a word that are read when every level is drawn from."""
    return sum(num_spatial * level + (0, 3, 4)[num_spatial - 1] for level in range(num_levels))


def test_levels_add_up_to_a_tile():
    for num_spatial, side in ((1, 8), (2, 8), (3, 4)):
        levels = range(1, side.bit_length())
        assert 1 + sum(num_rows(num_spatial, level) for level in levels) == side**num_spatial
    assert num_planes(2, (1, 2)) == 4
    assert num_planes(2, (5, 40)) == 16


@pytest.mark.parametrize(("num_spatial", "side"), [(1, 8), (2, 4), (2, 8), (3, 4)])
def test_a_row_has_its_probability_and_its_level(num_spatial, side, numbers_of):
    levels = side.bit_length() - 1
    num_bits = word_bits(num_spatial, levels)
    words = torch.arange(2**num_bits, dtype=torch.int32)
    known = kept_rows(num_spatial, [1] * levels)
    rows = draw_rows(words, num_spatial, side, [1] * levels)
    divisors = iter(rows.divisors)
    for level, number in enumerate(numbers_of(rows, words, levels), 1):
        index, count = number.unique(return_counts=True)
        assert len(index) == num_rows(num_spatial, level)
        probability = count.double() / len(words)
        divisor = torch.ones_like(words) if num_spatial == 1 else next(divisors)
        inverse = known[level - 1].factor / divisor.double()
        for k, p in zip(index, probability, strict=True):
            assert torch.allclose(inverse[number == k], 1 / p)
        assert known[level - 1].moment == pytest.approx(float((1 / probability).sum()))
        # The finest bit set in any axis is the level's.
        axes = [index >> (axis * levels) & (side - 1) for axis in range(num_spatial)]
        finest = torch.stack(axes).sum(0) * 0
        for axis in axes:
            finest = finest | axis
        assert bool((finest % 2 ** (levels - level) == 0).all())
        assert bool((finest // 2 ** (levels - level) % 2 == 1).all())


@pytest.mark.parametrize(("num_spatial", "kept"), [(1, (1, 1, 2)), (2, (3, 7)), (3, (7, 25))])
def test_an_allotted_row_is_uniform_over_its_kind(num_spatial, kept, numbers_of):
    levels = len(kept)
    words = torch.arange(2 ** word_bits(num_spatial, levels), dtype=torch.int32)
    rows = draw_rows(words, num_spatial, 2**levels, kept)
    numbers = numbers_of(rows, words, sum(kept))
    known = kept_rows(num_spatial, kept)
    assert len(rows.divisors) == 0
    place = 0
    for level, count in enumerate(kept, 1):
        shares = allotment(num_spatial, level, count)
        assert sum(shares) == count
        for share in shares:
            for row in range(place, place + share):
                index, times = numbers[row].unique(return_counts=True)
                assert len(index) == 2 ** (num_spatial * (level - 1))
                assert bool((times == times[0]).all())
                assert known[row].factor == len(index) / share
                assert known[row].moment == known[row].factor ** 2
            place += share
    assert place == len(numbers)


def test_draws_are_allotted_where_they_spare_most():
    assert allotment(2, 1, 2) is None
    assert allotment(2, 1, 3) == (1, 1, 1)
    # Single axes count 9, the pair 4: 9/2 + 9/2 + 4/1 is less than 9/1 + 9/2 + 4/2.
    assert allotment(2, 2, 5) == (2, 2, 1)
    assert allotment(2, 2, 99) == (4, 4, 4)
    assert allotment(3, 2, 13) == (2, 2, 2, 2, 2, 2, 1)


@pytest.mark.parametrize("num_spatial", [1, 2, 3])
@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("most", [2, 9])
def test_draws_of_a_level_name_different_rows(num_spatial, side, most, numbers_of):
    levels = side.bit_length() - 1
    kept = [min(most, num_rows(num_spatial, level)) for level in range(1, levels + 1)]
    words = torch.arange(2 ** word_bits(num_spatial, levels), dtype=torch.int32)
    rows = draw_rows(words, num_spatial, side, kept)
    for one, other in itertools.combinations(numbers_of(rows, words, sum(kept)), 2):
        assert not bool((one == other).any())


@pytest.mark.parametrize("kept", [(1, 1), (3, 3), (2, 7), (3, 40)])
def test_a_row_is_negative_half_of_the_time_whichever_it_is(kept, numbers_of):
    # All bits that name rows, and as many of the next as there are rows: with these a sign is a bit
    # that names none.
    num_rows, num_read = sum(min(n, 12) for n in kept), word_bits(2, 2)
    words = draw_words((2**12, 1, 8, 8), SEED).flatten()
    rows = draw_rows(words, 2, 4, kept)
    numbers = numbers_of(rows, words, num_rows)
    assert num_read + num_rows < 31
    for row in range(num_rows):
        negative = rows.negated >> row & 1
        for number in numbers[row].unique():
            those = negative[numbers[row] == number].double()
            # Six standard errors of a fair coin.
            assert abs(float(those.mean()) - 0.5) < 3 / math.sqrt(len(those))


def test_the_bits_that_name_rows_are_the_last_to_be_signs():
    words = torch.arange(2**6, dtype=torch.int32)
    rows = draw_rows(words, 2, 8, [3, 7, 14])  # six bits name rows, and kinds are allotted
    assert torch.equal(rows.negated, words << 25)
    rows = draw_rows(words << 6, 2, 8, [3, 7, 14])
    assert torch.equal(rows.negated, words)


def test_channels_share_words_and_tiles_do_not():
    words = draw_words((64, 5, 8, 8), SEED)
    assert words.shape == (64, 1, 8, 8)
    assert words.dtype == torch.int32
    assert int(words.min()) >= 0
    # The words of a seed are a bijection of counters.
    assert words.unique().numel() == 4096
    # The mean of uniforms, six standard errors.
    mean = float(words.double().mean()) / 2**31
    assert abs(mean - 0.5) < 6 * math.sqrt(1 / 12 / 4096)


def test_rows_are_drawn_apart_from_the_starts_of_the_thresholds():
    # Both are exactly uniform for the counters 0 to 31 of one seed. Were their leading bits
    # the same, rounding would depend on the rows, and a tile's expectation would be another.
    seed = torch.tensor(2**61 + 2718281)
    words = draw_words([NUM_STARTS, 1, 1], seed).flatten() >> 7
    starts = key_schedule(seed)[-NUM_STARTS:]
    assert words.shape == starts.shape
    assert int((words == starts).sum()) == 0
