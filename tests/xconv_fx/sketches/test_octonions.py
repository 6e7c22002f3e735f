import itertools
import math

import pytest
import torch

from xconv_fx.sketches.octonions import (
    DIM,
    MEAN_ABS_COORDINATE,
    draw_octonions,
    from_signs,
    num_vectors,
    to_signs,
)
from xconv_fx.sketches.tile_rows import draw_words

SEED = torch.tensor(2**61 + 424242)


def test_eight_planes_a_vector():
    assert [num_vectors(planes) for planes in (1, 2, 9, 10, 17)] == [0, 1, 1, 2, 2]


def encode_planes(planes, dim_order):
    octonions = draw_octonions(SEED, planes.shape[1:], num_vectors(len(planes)))
    return to_signs(planes.unbind(), octonions, dim_order)


def decode_planes(signs, kept, num_planes, dim_order):
    octonions = draw_octonions(SEED, signs.shape[1:], num_vectors(num_planes))
    return from_signs(signs, kept, octonions, num_planes, dim_order)


def maps_of(octonions):
    """The matrices of ``y -> a y`` for octonions ``(n, 8)`` of length 1, off what is decoded."""
    count = len(octonions)
    kept = torch.tensor([0.0, DIM * MEAN_ABS_COORDINATE], dtype=torch.float64).view(1, 2, 1)
    kept, a = kept.repeat(count, 1, 1), octonions.T.reshape(1, DIM, count, 1, 1)
    rows = []
    for k in range(DIM):
        # The sum of all rows, and with an opposite sign for k: half the difference is k.
        codes = [torch.full([1, count, 1, 1], c, dtype=torch.uint8) for c in (255, 255 ^ 1 << k)]
        both = [from_signs(code, kept, a, 1 + DIM, [0, 1, 2])[1:] for code in codes]
        rows.append((both[0] - both[1]).view(DIM, count).T / 2)
    return torch.stack(rows, 1)


def units(count):
    a = torch.randn(count, DIM, dtype=torch.float64)
    return a / a.norm(dim=1, keepdim=True)


def test_rows_are_the_octonion_with_signs_and_places_changed():
    # The premise of the proof: so a row is uniform on the sphere where the octonion is.
    maps = maps_of(torch.eye(DIM, dtype=torch.float64)).permute(1, 2, 0)  # (k, j, octonion)
    assert torch.allclose(maps, maps.round(), rtol=0, atol=1e-14)
    # Each row is linear in the octonion by a signed permutation ...
    for row in maps.abs():
        assert torch.allclose(row.sum(0), torch.ones(DIM, dtype=torch.float64))
        assert torch.allclose(row.sum(1), torch.ones(DIM, dtype=torch.float64))
    # ... and no other number of it comes in: the maps of a sum are the sums of maps.
    a = units(1)
    assert torch.allclose(maps_of(a)[0], maps @ a[0], rtol=0, atol=1e-14)


def test_maps_are_orthogonal():
    maps = maps_of(units(500))
    # Rounding of sums of 8 products in float64.
    assert torch.allclose(
        maps @ maps.mT, torch.eye(DIM, dtype=torch.float64).expand(500, DIM, DIM), atol=1e-14
    )


def test_signs_are_those_of_the_rows_that_are_added_up():
    a, y = units(1), torch.randn(DIM, dtype=torch.float64)
    planes = [torch.zeros(1, 1, 1, dtype=torch.float64), *y.view(DIM, 1, 1, 1)]
    signs, kept = to_signs(planes, a.view(1, DIM, 1, 1, 1), [0, 1, 2])
    expected = maps_of(a)[0] @ y >= 0
    assert [int(signs) >> k & 1 for k in range(DIM)] == expected.tolist()
    assert float(kept[0, 1]) == pytest.approx(float(y.norm()), 1e-14)


def test_the_mean_coordinate_is_that_of_the_sphere():
    # The density of a coordinate on the sphere of R^8 is proportional to (1 - u^2)^(5/2).
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = (1 - u * u) ** 2.5
    assert float((u * density).sum() / density.sum()) == pytest.approx(MEAN_ABS_COORDINATE, 1e-9)


VECTORS = {
    "axis": [1, 0, 0, 0, 0, 0, 0, 0],
    "diagonal": [1, -1, 0, 0, 0, 0, 0, 0],
    "even": [1, 1, 1, 1, 1, 1, 1, 1],
    "uneven": [9, -3, 1, 0.3, -0.1, 0.03, 0.01, 0],
    "filled up": [2, -1, 0.5],
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_mean_over_octonions_is_the_vector(name):
    # 2**16 independent octonions, one a sample. Six standard errors of each number fail by chance
    # once in 5e8; a bias of a hundredth of the length would be at least as much.
    num_draws = 2**16
    y = torch.tensor(VECTORS[name], dtype=torch.float64)
    planes = torch.cat([torch.zeros(1, dtype=torch.float64), y]).view(-1, 1, 1, 1)
    planes = planes.expand(-1, num_draws, 1, 1)
    order = [0, 1, 2]
    signs, kept = encode_planes(planes, order)
    back = decode_planes(signs, kept, len(planes), order)[1:, :, 0, 0]
    mean, error = back.mean(1), back.std(1) / math.sqrt(num_draws)
    assert bool(((mean - y).abs() < 6 * error).all())
    assert float(error.max()) < 0.01 * float(y.norm()) / 6


@pytest.mark.parametrize(("name", "most"), [("axis", 0.11), ("even", 0.03), ("uneven", 0.32)])
def test_what_tiles_with_one_octonion_have_in_common_is_small(name, most):
    # The mean over all signs of eight rows given a: tiles that share a have independent errors but
    # for what it is off y. At most 1.3 times what 4,096 octonions gave, as a share of the length
    # (0.081, 0.021, 0.244). A single one is off by sqrt(0.476) = 0.69.
    y = torch.tensor(VECTORS[name], dtype=torch.float64)
    flips = torch.tensor(list(itertools.product((1.0, -1.0), repeat=DIM)), dtype=torch.float64)
    num_octonions = 256
    octonions = draw_octonions(SEED, [num_octonions, 1, 1], 1).double()
    planes = (flips * y).T.view(DIM, 1, len(flips), 1).expand(-1, num_octonions, -1, -1)
    signs, kept = to_signs([torch.zeros_like(planes[0]), *planes], octonions, [0, 1, 2])
    back = from_signs(signs, kept, octonions, 1 + DIM, [0, 1, 2])[1:]
    common = (back * flips.T.view(DIM, 1, len(flips), 1)).mean(2).squeeze(2)  # (8, octonions)
    off = (common - y.unsqueeze(1)).square().sum(0).mean().sqrt() / y.norm()
    assert float(off) < most


def test_what_comes_back_has_always_the_same_length():
    planes = torch.randn(17, 3, 5, 4, 2, dtype=torch.float64)
    signs, kept = encode_planes(planes, [0, 1, 2, 3])
    back = decode_planes(signs, kept, 17, [0, 1, 2, 3])
    assert torch.equal(back[0], planes[0])
    given, decoded = (t[1:].reshape(2, 8, -1).square().sum(1) for t in (planes, back))
    ratio = 1 / (8 * MEAN_ABS_COORDINATE**2)
    assert ratio == pytest.approx(1.476, abs=1e-3)
    # The octonions are of length 1 to the rounding of float32.
    assert torch.allclose(decoded, ratio * given, rtol=1e-5)


@pytest.mark.parametrize("num_planes", [2, 8, 9, 12, 17])
def test_shapes_and_a_tile_of_zeros(num_planes):
    planes = torch.randn(num_planes, 2, 3, 4)
    planes[:, 1] = 0
    signs, kept = encode_planes(planes, [0, 1, 2])
    count = num_vectors(num_planes)
    assert (signs.shape, signs.dtype) == ((count, 2, 3, 4), torch.uint8)
    assert (kept.shape, kept.dtype) == ((2, 3 * (1 + count), 4), torch.float32)
    back = decode_planes(signs, kept, num_planes, [0, 1, 2])
    assert back.shape == planes.shape
    assert torch.equal(back[:, 1], planes[:, 1])


def test_the_first_plane_and_the_lengths_are_channels():
    planes = torch.randn(10, 2, 3, 4)
    _, kept = encode_planes(planes, [0, 1, 2])
    first, *lengths = kept.split(3, 1)
    assert torch.equal(first, planes[0])
    assert torch.allclose(lengths[0], planes[1:9].norm(dim=0), rtol=1e-6)  # sums of eight
    assert torch.allclose(lengths[1], planes[9].abs(), rtol=1e-6)


@pytest.mark.parametrize(
    ("grid", "sizes"),
    [
        ((4, 3, 5), (4, 1, 5)),
        ((4, 3, 2, 5), (4, 1, 2, 1)),
        ((4, 3, 2, 5, 7), (4, 1, 2, 5, 1)),
    ],
)
def test_channels_and_neighbours_along_the_last_dimension_share_octonions(grid, sizes):
    octonions = draw_octonions(SEED, grid, 2)
    assert octonions.shape == (2, 8, *sizes)
    rows = octonions.movedim(1, -1).reshape(-1, DIM)
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), rtol=1e-6)
    for one, other in itertools.combinations(rows, 2):
        assert not bool(torch.isclose(one, other).all())


def test_octonions_are_drawn_apart_from_the_rows():
    # Both come from hashes of a tile; were their counters the same, rows would steer signs.
    grid, num_tiles = (4096, 1, 1), 4096
    words = draw_words(grid, SEED).double().flatten() / 2**31 - 0.5
    numbers = draw_octonions(SEED, grid, 1)[0].reshape(DIM, num_tiles).double()
    correlation = (numbers * words).sum(1) / numbers.norm(dim=1) / words.norm()
    assert float(correlation.abs().max()) < 5 / math.sqrt(num_tiles)  # five standard errors


def test_memory_order_changes_the_layout_and_no_number():
    planes = torch.randn(9, 2, 3, 4, 5)
    order = [0, 2, 3, 1]
    last = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    octonions = draw_octonions(SEED, planes.shape[1:], 1)
    plain = to_signs(planes.unbind(), octonions, [0, 1, 2, 3])
    other = to_signs(last.unbind(), octonions, order)
    for one, two in zip(plain, other, strict=True):
        assert torch.allclose(one, two, atol=1e-6)  # sums of eight, in another order perhaps
    assert other[0].permute(0, 1, 3, 4, 2).is_contiguous()
    assert other[1].is_contiguous(memory_format=torch.channels_last)
    back = from_signs(*other, octonions, 9, order)
    assert torch.allclose(back, from_signs(*plain, octonions, 9, [0, 1, 2, 3]), atol=1e-6)
    assert back.permute(1, 3, 4, 0, 2).is_contiguous()
