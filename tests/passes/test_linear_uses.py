from passes.linear_uses import num_positions


def test_positions_are_all_dimensions_but_the_channels():
    assert num_positions((4, 16, 8, 8)) == 256
    assert num_positions((64, 512)) == 64
    assert num_positions((10,)) == 1
    assert num_positions((0, 3, 4, 4)) == 1
