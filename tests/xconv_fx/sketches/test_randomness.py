import math

import pytest
import torch

from xconv_fx.sketches.randomness import (
    NUM_STARTS,
    SCHEDULE_LENGTH,
    SEED_BOUND,
    bits_at,
    feistel,
    gaussian,
    gaussians,
    integer_windows,
    key_schedule,
    rademacher,
    random_bits,
    random_words,
    round_keys,
    schedule_of,
    start_rows,
    uniform,
)

SEEDS = [0, 1, 2**32 - 1, 2**32, 0x123456789ABCDEF, SEED_BOUND - 1]


def seed_of(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


def grid(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(rows).unsqueeze(1), torch.arange(columns).unsqueeze(0)


def word(halves: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return halves[0].long() * 2**16 + halves[1].long()


def bits_of(values: torch.Tensor) -> torch.Tensor:
    return (values.unsqueeze(-1) >> torch.arange(32)) & 1


@pytest.mark.parametrize("value", SEEDS)
def test_words_are_exactly_uniform_over_the_whitening_bits(value):
    # Proof in two steps, for the keys of this seed. (1) A round maps (high, low) to
    # (low ^ F(high), high): for each of the 2**16 values of high the map of low is an XOR by a
    # constant in [0, 2**16), so the round is a bijection of 2**32 states if F(high) is in range.
    # Checked here for every high and every key. (2) The counter enters by XOR, also a bijection.
    every_half = torch.arange(2**16, dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    for key in round_keys(schedule_of(seed_of(value))):
        mixed, passed = feistel(every_half, zero, (key,))
        assert torch.equal(passed, every_half)
        assert int(mixed.min()) >= 0
        assert int(mixed.max()) < 2**16
        again, _ = feistel(every_half, every_half.flip(0), (key,))
        assert torch.equal(again, mixed ^ every_half.flip(0))


@pytest.mark.parametrize("fixed_half", ["low", "high"])
def test_no_two_seeds_of_one_slice_give_the_same_word(fixed_half):
    # Full enumeration of 2**16 whitening words with the other half fixed, through random_bits.
    half = torch.arange(2**16)
    whitening = half * 2**16 + 0x1234 if fixed_half == "low" else half + 0x1234 * 2**16
    seeds = whitening + 0x2BCDEF01 * 2**32
    keys = round_keys(schedule_of(seed_of(0x2BCDEF01 * 2**32)))
    high = ((seeds >> 16) & 0xFFFF).int() ^ 77
    low = (seeds & 0xFFFF).int() ^ 5
    words = word(feistel(high, low, keys))
    for index in (0, 1, 40000):
        drawn = word(random_bits(torch.tensor(77), torch.tensor(5), seeds[index]))
        assert int(drawn) == int(words[index])
    assert words.unique().numel() == 2**16


def test_the_network_undone_by_reversed_keys_gives_the_state_back():
    keys = round_keys(schedule_of(seed_of(99 * 2**32)))
    high = torch.randint(0, 2**16, (5000,), dtype=torch.int32)
    low = torch.randint(0, 2**16, (5000,), dtype=torch.int32)
    forward = feistel(high, low, keys)
    back = feistel(forward[1], forward[0], tuple(reversed(keys)))
    assert torch.equal(back[1], high)
    assert torch.equal(back[0], low)


@pytest.mark.parametrize("value", SEEDS)
def test_no_int32_product_overflows(value):
    # Reference in int64 on the same counters: equality means that nothing wrapped around.
    row, column = grid(300, 300)
    row, column = row * 2**20 + 7, column * 2**29 + 3
    narrow = random_bits(row, column, seed_of(value), stream=3)
    state = start_rows(row, seed_of(value), stream=3)
    wide_keys = tuple(key.long() for key in state.keys)
    wide_state = state._replace(keys=wide_keys, high=state.high.long())
    wide = bits_at(wide_state, column)
    assert torch.equal(narrow[0].long(), wide[0].long())
    assert torch.equal(narrow[1].long(), wide[1].long())
    for half in narrow:
        assert half.dtype == torch.int32
        assert int(half.min()) >= 0
        assert int(half.max()) < 2**16


def test_static_bounds_change_nothing_but_the_work():
    row, column = grid(64, 64)
    wide = random_bits(row, column, seed_of(123))
    tight = random_bits(row, column, seed_of(123), row_bits=16, column_bits=16)
    # Words above the bound are zero, and a zero word folds to zero.
    assert torch.equal(wide[0], tight[0])
    assert torch.equal(wide[1], tight[1])


def neighbours(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    seed = 0x1F2E3D4C5B6A7988 % SEED_BOUND
    row, column = grid(512, 256)
    base = word(random_bits(row, column, seed_of(seed)))
    kind, _, amount = name.partition(" ")
    step = int(amount)
    other = {
        "column": lambda: word(random_bits(row, column + step, seed_of(seed))),
        "row": lambda: word(random_bits(row + step, column, seed_of(seed))),
        "seed": lambda: word(random_bits(row, column, seed_of(seed ^ step))),
        "stream": lambda: word(random_bits(row, column, seed_of(seed), stream=step)),
        "diagonal": lambda: word(random_bits(row + step, column + step, seed_of(seed))),
    }[kind]()
    return base, other


NEIGHBOURS = (
    [f"column {2**i}" for i in range(0, 40, 3)]
    + [f"row {2**i}" for i in range(0, 40, 3)]
    + [f"seed {2**i}" for i in range(0, 62, 5)]
    + ["stream 1", "stream 2", "stream 255", "diagonal 1", "diagonal 65536"]
)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbouring_draws_are_uncorrelated(name):
    # 131,072 pairs; every one of 32 x 32 bit pairs is compared. With no correlation the largest
    # of 1,024 standard normals exceeds 6 with probability 2e-6, for all cases together 1e-4.
    base, other = neighbours(name)
    a = bits_of(base).reshape(-1, 32).float() * 2 - 1
    b = bits_of(other).reshape(-1, 32).float() * 2 - 1
    scores = (a.t() @ b).abs() / math.sqrt(a.shape[0])
    assert float(scores.max()) < 6.0


def test_one_flipped_counter_bit_flips_half_of_the_output_bits():
    # Avalanche over 20,000 seeds; 32 counter bits x 32 output bits, 6 standard errors.
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(0, SEED_BOUND, (20000,), generator=generator)

    def draw(row: int, column: int) -> torch.Tensor:
        return word(random_bits(torch.tensor(row), torch.tensor(column), seeds))

    base = draw(5, 7)
    for bit in range(16):
        for other in (draw(5 ^ 2**bit, 7), draw(5, 7 ^ 2**bit)):
            flips = bits_of(base ^ other).double().mean(0)
            assert float((flips - 0.5).abs().max()) < 6 * 0.5 / math.sqrt(20000)


def test_bytes_are_uniform():
    row, column = grid(1024, 256)
    words = word(random_bits(row, column, seed_of(2**61 + 17)))
    for shift in (0, 8, 16, 24):
        counts = torch.bincount(((words >> shift) & 255).flatten(), minlength=256).double()
        chi2 = float(((counts - 1024) ** 2 / 1024).sum())
        # 255 degrees of freedom, standard deviation 22.6: 6 of them.
        assert abs(chi2 - 255) < 136


def test_rows_65536_apart_do_not_repeat_each_other():
    row, column = grid(64, 256)
    near = word(random_bits(row, column, seed_of(42))).flatten()
    far = word(random_bits(row + 2**16, column, seed_of(42))).flatten()
    # 2**28 pairs of 32-bit words: 2**-4 accidental matches are expected.
    assert int(torch.isin(near, far).sum()) <= 3


def test_uniform_moments_range_and_pairs():
    row, column = grid(1024, 1024)
    u = uniform(row, column, seed_of(7))
    assert u.dtype == torch.float32
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    # 2**20 draws: 6 standard errors of the mean and of the second moment.
    assert abs(float(u.double().mean()) - 1 / 2) < 6 * math.sqrt(1 / 12) / 1024
    assert abs(float(u.double().square().mean()) - 1 / 3) < 6 * math.sqrt(4 / 45) / 1024


@pytest.mark.parametrize("bits", [23, 24])
def test_windows_of_one_hash_are_turned_bytes(bits):
    row, column = grid(64, 64)
    high, low = random_bits(row, column, seed_of(7))
    word = high.long() * 2**16 + low
    windows = integer_windows(start_rows(row, seed_of(7)), column, bits=bits, count=4)
    for i, window in enumerate(windows):
        turned = (word << 8 * i | word >> (32 - 8 * i)) % 2**32
        assert torch.equal(window.long(), turned >> (32 - bits))


def test_schedule_rows_stand_for_their_seeds():
    seeds = torch.tensor([5, 2**61 + 12345, 2**62 - 1])
    for seed, schedule in zip(seeds, key_schedule(seeds), strict=True):
        assert torch.equal(uniform(*grid(8, 8), seed), uniform(*grid(8, 8), schedule))


def test_rademacher_is_plus_or_minus_one_in_balance():
    signs = rademacher(*grid(1024, 1024), seed_of(11))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 6 / 1024


def test_gaussian_moments():
    z = gaussian(*grid(1024, 1024), seed_of(13)).double()
    assert bool(z.isfinite().all())
    # 2**20 draws, 6 standard errors; Var z = 1, Var z^2 = 2, Var z^3 = 15, Var z^4 = 96.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(z.pow(power).mean()) - mean) < 6 * math.sqrt(variance) / 1024
    rows = (z.sum(1) / 32) ** 2
    assert abs(float(rows.mean()) - 1) < 6 * math.sqrt(2 / 1024)


def test_gaussian_discretisation_error_of_the_variance():
    # The mean of -2 ln u over the 2**24 midpoints, all of them, in float64; it is twice the
    # variance, since the squared cosines average to one half exactly.
    total = 0.0
    for start in range(0, 2**24, 2**22):
        k = torch.arange(start, start + 2**22, dtype=torch.float64)
        total += float(-2.0 * ((k + 0.5) * 2.0**-24).log().sum())
    assert total * 2.0**-24 / 2 == pytest.approx(1 - math.log(2) / 2 * 2.0**-24, abs=1e-9)


def test_the_same_counter_and_seed_give_the_same_draw_whatever_the_grid():
    row, column = grid(40, 40)
    whole = uniform(row, column, seed_of(3))
    part = uniform(row[10:20], column[:, 5:7], seed_of(3))
    assert torch.equal(whole[10:20, 5:7], part)


def test_a_schedule_has_keys_and_starts():
    seeds = torch.tensor([[5, 2**61 + 12345, 2**62 - 1]])
    schedules = key_schedule(seeds)
    assert schedules.shape == (1, 3, SCHEDULE_LENGTH)
    assert schedules.dtype == torch.int32
    assert torch.equal(schedule_of(seeds[0, 1]), schedules[0, 1])
    assert schedule_of(schedules[0, 2]) is not None
    assert int(schedules[..., :8].min()) >= 0
    assert int(schedules[..., :8].max()) < 2**16
    assert int(schedules[..., 8:].min()) >= 0
    assert int(schedules[..., 8:].max()) < 2**24


@pytest.mark.parametrize("fixed_half", ["low", "high"])
def test_starts_are_the_leading_bits_of_words_that_are_exactly_uniform(fixed_half):
    # A start is the leading 24 bits of the word of a fixed counter, column 0. Words are a
    # bijection of the low 32 seed bits (first test of this file), so each start has 2**8 of the
    # 2**32 seeds: exactly uniform. Here: it is that word, and of 2**16 seeds no two give the same.
    half = torch.arange(2**16)
    whitening = half * 2**16 + 0x1234 if fixed_half == "low" else half + 0x1234 * 2**16
    seeds = whitening + 0x2BCDEF01 * 2**32
    starts = key_schedule(seeds)[:, 8:].long()
    counters = torch.arange(NUM_STARTS)
    for index in (0, 1, 40000):
        words = word(random_bits(counters, torch.tensor(0), seeds[index], stream=13))
        assert torch.equal(starts[index], words >> 8)
    keys = round_keys(schedule_of(seeds[0]), stream=13)
    for counter in (0, 1, 31):
        high = ((seeds >> 16) & 0xFFFF).int() ^ counter
        words = word(feistel(high, (seeds & 0xFFFF).int(), keys))
        assert words.unique().numel() == 2**16
        assert torch.equal(words >> 8, starts[:, counter])


def undone(words: torch.Tensor, seed: torch.Tensor, stream: int) -> torch.Tensor:
    """The sums of seed and counter that :func:`random_words` mixed, by the inverse of each step."""
    first, second = (int(key) for key in key_schedule(seed)[2 * stream : 2 * stream + 2])

    def shifted_back(state, shift):
        return state ^ state >> shift ^ state >> 2 * shift  # no shift is below a third of 31

    state = shifted_back(words.long(), 14)
    for shift, multiplier in ((15, 0x31848BAB), (11, 0xAC4C1B51), (17, 0xED5AD4BB)):
        state = shifted_back(state * pow(multiplier, -1, 2**31) & 2**31 - 1, shift)
    return state ^ (first * 2**15 ^ second)


@pytest.mark.parametrize("value", SEEDS)
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_words_are_a_bijection_of_seed_and_counter(value, stream):
    # Exactly uniform, then, for each counter over the low 31 bits of the seed.
    seed = seed_of(value)
    words = random_words([3, 1000], seed, stream=stream)
    assert int(words.min()) >= 0
    counter = torch.arange(3000).view(3, 1000)
    assert torch.equal(undone(words, seed, stream), (value + counter) % 2**31)


def test_words_of_a_schedule_are_those_of_its_seed():
    seed = seed_of(0x123456789ABCDEF)
    one, other = (random_words([64], s, stream=1) for s in (seed, key_schedule(seed)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("distance", [1, 2, 16, 256, 4096, 2**16])
def test_words_of_near_counters_are_uncorrelated(distance):
    count = 2**18
    bits = bits_of(random_words([count], seed_of(987654321987654321), stream=0))[:, :31]
    signs = 1.0 - 2.0 * bits.double()
    # Between any two bits of words at the distance; five standard errors, 961 pairs.
    correlation = signs[:-distance].T @ signs[distance:] / (count - distance)
    assert float(correlation.abs().max()) < 5 / math.sqrt(count - distance)
    assert float(signs.mean(0).abs().max()) < 5 / math.sqrt(count)


@pytest.mark.parametrize("bit", [0, 7, 16, 30, 31, 33, 45, 61])
def test_words_of_seeds_that_differ_in_a_bit_are_uncorrelated(bit):
    count, value = 2**17, 0x123456789ABCDEF
    one, other = (
        1.0 - 2.0 * bits_of(random_words([count], seed_of(v), stream=0))[:, :31].double()
        for v in (value, value ^ 1 << bit)
    )
    correlation = one.T @ other / count
    if bit == 31:  # not read of the low half, and the upper bits are the keys
        assert torch.equal(one, other)
    else:
        assert float(correlation.abs().max()) < 5 / math.sqrt(count)


def test_words_of_streams_are_uncorrelated():
    count, seed = 2**17, seed_of(0x123456789ABCDEF)
    one, other = (
        1.0 - 2.0 * bits_of(random_words([count], seed, stream=stream))[:, :31].double()
        for stream in (0, 1)
    )
    assert float((one.T @ other / count).abs().max()) < 5 / math.sqrt(count)


def test_moments_of_gaussians_and_independence_of_their_halves():
    normal = gaussians([2, 2**17], seed_of(424242), stream=1).double()
    count = normal.numel()
    # Six standard errors each; the fourth moment has the variance 96.
    assert abs(float(normal.mean())) < 6 / math.sqrt(count)
    assert abs(float(normal.square().mean()) - 1) < 6 * math.sqrt(2 / count)
    assert abs(float(normal.pow(4).mean()) - 3) < 6 * math.sqrt(96 / count)
    product = normal[0] * normal[1]
    assert abs(float(product.mean())) < 6 / math.sqrt(len(product))
    assert float(normal.abs().max()) < 5.9
