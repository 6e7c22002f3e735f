import itertools

import numpy
import pytest
import torch

from xconv_fx.sketches.lattice import lattice_thresholds, window_thresholds
from xconv_fx.sketches.randomness import NUM_STARTS, SEED_BOUND, key_schedule

SEEDS = [0, 1, 2**32 - 1, 2**32, 0x123456789ABCDEF, SEED_BOUND - 1]


def seed_of(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


SIZES = [(5,), (70, 3), (40, 3, 7), (35, 3, 5, 6), (33, 2, 3, 4, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [23, 24])
def test_a_threshold_is_its_samples_start_plus_a_constant(size, bits):
    # T - start is the same for every seed, modulo 2**bits, and start is exactly uniform; so is T.
    seeds = [seed_of(value) for value in SEEDS]
    turns = []
    for seed in seeds:
        thresholds = lattice_thresholds(size, seed, bits)
        assert thresholds.dtype == torch.int32
        assert thresholds.shape == size
        assert int(thresholds.min()) >= 0
        assert int(thresholds.max()) < 2**bits
        starts = (key_schedule(seed)[8:] >> (24 - bits)).flip(0)
        own = starts[torch.arange(size[0]) % NUM_STARTS].view(-1, *[1] * (len(size) - 1))
        turns.append((thresholds - own) % 2**bits)
    for turn in turns[1:]:
        assert torch.equal(turn, turns[0])
    # The low bits are the start's alone: what is added is a multiple of 2**(bits - 12).
    assert not bool((turns[0] % 2 ** (bits - 12)).any())


@pytest.mark.parametrize("size", SIZES)
def test_thresholds_follow_their_formula(size):
    # In plain integers, with the multipliers read off the root of g**(D + 1) = g + 1.
    (root,) = (r.real for r in numpy.roots([1, *[0] * (len(size) - 1), -1, -1]) if r.real > 1)
    multipliers = [int(root ** -(d + 1) * 2**12) | 1 for d in range(len(size))]
    starts = key_schedule(seed_of(SEEDS[4]))[8:].flip(0).tolist()
    thresholds = lattice_thresholds(size, seed_of(SEEDS[4]), 24)
    for index in itertools.product(*(range(0, extent, 3) for extent in size)):
        turn = sum(a * i for a, i in zip(multipliers, index, strict=True)) % 2**12
        expected = (starts[index[0] % NUM_STARTS] + turn * 2**12) % 2**24
        assert int(thresholds[index]) == expected


def test_a_scalar_has_a_start():
    seed = seed_of(SEEDS[4])
    assert int(lattice_thresholds((), seed, 24)) in key_schedule(seed)[8:].tolist()
    assert torch.equal(lattice_thresholds((), seed, 23), lattice_thresholds((), seed, 24) >> 1)


def test_a_schedule_row_draws_what_its_seed_draws():
    seed = seed_of(SEEDS[4])
    drawn = lattice_thresholds((3, 4, 5), seed, 24)
    assert torch.equal(lattice_thresholds((3, 4, 5), key_schedule(seed), 24), drawn)


@pytest.mark.parametrize("length", [1, 3, 35, 64])
@pytest.mark.parametrize("size", SIZES)
def test_windows_are_slices_of_the_whole(size, length):
    seed = seed_of(SEEDS[4])
    for dim in range(len(size)):
        whole = lattice_thresholds([*size[:dim], 3 * length, *size[dim + 1 :]], seed, 24)
        windows = window_thresholds(size, seed, 24, dim=dim, length=length, num_windows=3)
        assert torch.equal(torch.cat(windows, dim), whole)


@pytest.mark.parametrize("dim", [0, 1])
def test_indices_count_modulo_two_to_the_sixteenth(dim):
    # Windows up to there and beyond are formed differently.
    size = [1, 1]
    size[dim] = 2**16 + 100
    whole = lattice_thresholds(size, seed_of(SEEDS[4]), 24)
    (within,) = window_thresholds(size, seed_of(SEEDS[4]), 24, dim=dim, length=2**16, num_windows=1)
    assert torch.equal(whole.narrow(dim, 0, 2**16), within)
    assert torch.equal(whole.narrow(dim, 2**16, 100), within.narrow(dim, 0, 100))


def test_empty_tensors_have_no_thresholds():
    assert lattice_thresholds((3, 0, 5), seed_of(1), 24).shape == (3, 0, 5)
    assert lattice_thresholds((0,), seed_of(1), 24).shape == (0,)


@pytest.mark.parametrize("num_dims", [2, 3, 4, 5])
def test_neighbours_are_spread_along_every_dimension(num_dims):
    # Sixteen neighbours along a dimension of a lattice leave gaps of a few sixteenths at most:
    # independent draws would leave one above 3/8 in 1 case of 100 (16 * (5/8)**15), two of 16 in
    # the same 1/1000 in 1 of 9.
    # (Samples have starts of their own.)
    for dim in range(1, num_dims):
        size = [1] * num_dims
        size[dim] = 16
        points = lattice_thresholds(size, seed_of(SEEDS[4]), 24).flatten().double() / 2**24
        ordered = points.sort().values
        gaps = torch.cat([ordered.diff(), ordered[:1] + 1 - ordered[-1:]])
        assert float(gaps.max()) < 3 / 8
        assert float(gaps.min()) > 1e-3


def test_windows_of_whole_neighbourhoods_have_the_mean_of_uniforms():
    # A 16 x 16 patch of a 4-D tensor: the mean of 256 independent uniforms has the standard
    # error 0.018, a lattice's is an order below. Ten samples, their starts differ.
    thresholds = lattice_thresholds((10, 1, 16, 16), seed_of(SEEDS[4]), 24).double() / 2**24
    means = thresholds.mean((1, 2, 3))
    assert float((means - 0.5).abs().max()) < 0.018
    assert means.unique().numel() == 10
