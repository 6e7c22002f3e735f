"""Which freed buffers are held for a later one, on programs of a few kernels."""

from passes.buffer_reuse import hold_for_reuse
from passes.kernels import Kernel, Program


def program(*kernels, outputs=(), **nbytes):
    made = {value: 100 for kernel in kernels for value in kernel.outputs}
    return Program(tuple(kernels), {"x": 100, **made, **nbytes}, ("x",), outputs)


def kernel(name, outputs, reads, reused=()):
    return Kernel(name, "", tuple(outputs), tuple(reads), reused=tuple(reused))


def held(given, pooled=None, live=None):
    """The program, with the reads that were added, by kernel."""
    pooled = pooled or [set(k.outputs) for k in given.kernels]
    result = hold_for_reuse(given, pooled, live or [[0] for _ in given.kernels])
    pairs = zip(given.kernels, result.kernels, strict=True)
    added = {new.name: new.reads[len(old.reads) :] for old, new in pairs}
    for old, new in zip(given.kernels, result.kernels, strict=True):
        assert new.reused == old.reused + new.reads[len(old.reads) :]
    return {name: reads for name, reads in added.items() if reads}


def chain(**sizes):
    """Kernel k1 makes a, k2 reads it last; k3 makes c, k4 makes d."""
    return program(
        kernel("k1", "a", "x"),
        kernel("k2", "b", "a"),
        kernel("k3", "c", "b"),
        kernel("k4", "d", "c"),
        outputs=("d",),
        **sizes,
    )


def test_the_next_kernel_takes_what_was_freed_just_before():
    assert held(chain()) == {"k3": ("a",), "k4": ("b",)}


def test_a_buffer_of_another_size_takes_nothing():
    assert held(chain(a=50, b=60)) == {}


def test_what_a_call_allocates_itself_neither_takes_nor_gives():
    assert held(chain(), [{"a"}, {"b"}, set(), {"d"}]) == {"k4": ("b",)}
    assert held(chain(), [set(), {"b"}, {"c"}, {"d"}]) == {"k4": ("b",)}
    assert held(chain(), [{"a"}, set(), {"c"}, set()]) == {"k3": ("a",)}
    assert held(chain(), [set(), set(), {"c"}, {"d"}]) == {}


def test_a_buffer_is_held_over_a_kernel_that_leaves_room_under_the_peak():
    # Only the first and the last buffer are of one size, and k3 runs in between.
    given = chain(b=30, c=40)
    assert held(given, live=[[0], [160], [20, 60], [0]]) == {"k4": ("a",)}
    assert held(given, live=[[0], [160], [60, 20], [0]]) == {"k4": ("a",)}


def test_a_buffer_is_not_held_over_the_peak():
    assert held(chain(b=30, c=40), live=[[0], [159], [20, 60], [0]]) == {}


def test_what_is_held_counts_for_the_next():
    kernels = [kernel("k1", "ab", "x"), kernel("k2", "c", "ab"), kernel("k3", "d", "c")]
    given = program(*kernels, kernel("k4", "ef", "d"), outputs=("e", "f"), c=30, d=40)
    room_for_two, room_for_one = [[0], [300], [100], [0]], [[0], [299], [100], [0]]
    assert held(given, live=room_for_two) == {"k4": ("b", "a")}
    assert held(given, live=room_for_one) == {"k4": ("b",)}


def test_what_is_reused_in_place_is_not_free_any_more():
    given = program(
        kernel("k1", "a", "x"),
        kernel("k2", "b", "a", "a"),
        kernel("k3", "c", "x"),
        outputs=("b", "c"),
    )
    assert held(given) == {}


def test_outputs_of_the_graph_are_not_free():
    given = chain()
    assert "k3" in held(given)
    returned = program(*given.kernels, outputs=("a", "d"))
    assert "k3" not in held(returned)
