import itertools

import torch

from xconv_fx.sketches.layout import ceil_div, flatten, inverse, numel_of, pad_flat, unflatten


def test_flatten_of_channels_last_is_a_view_in_memory_order():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    flat = flatten(x, (0, 2, 3, 1))
    assert flat.data_ptr() == x.data_ptr()
    assert torch.equal(flat, x.as_strided((x.numel(),), (1,)))


def test_unflatten_undoes_flatten_in_every_order():
    x = torch.randn(2, 3, 4)
    for order in itertools.permutations(range(3)):
        back = unflatten(flatten(x, order), x.shape, order)
        assert torch.equal(back, x)
        assert sorted(back.stride(), reverse=True) == [back.stride(d) for d in order]
        assert [order[i] for i in inverse(order)] == [0, 1, 2]


def test_padding_reaches_the_next_multiple_and_leaves_multiples_alone():
    x = torch.arange(5.0)
    assert pad_flat(x, 5, 9.0) is x
    assert pad_flat(x, 4, 9.0).tolist() == [0, 1, 2, 3, 4, 9, 9, 9]


def test_counts():
    assert numel_of(()) == 1
    assert numel_of((2, 3, 4)) == 24
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
