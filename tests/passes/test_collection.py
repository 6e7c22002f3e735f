import gc
import weakref

import pytest

from passes.collection import collect_where_off, without_collection


def test_the_collector_is_off_until_the_end_even_of_a_failure():
    assert gc.isenabled()
    with without_collection():
        assert not gc.isenabled()
        with without_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), without_collection():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_each_call_of_a_function_is_without_collection():
    is_on = without_collection()(gc.isenabled)
    assert not is_on()
    assert not is_on()
    assert gc.isenabled()


class _Cycle:
    def __init__(self):
        self.itself = self


def test_what_is_left_behind_is_collected_where_the_collector_is_off():
    with without_collection():
        left = weakref.ref(_Cycle())
        assert left() is not None
        collect_where_off()
        assert left() is None


def test_what_was_made_counts_among_the_old():
    with without_collection():
        made = _Cycle()
    assert any(found is made for found in gc.get_objects(generation=2))


def test_what_the_program_has_frozen_stays_so():
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with without_collection():
            pass
        assert gc.get_freeze_count() == count
    finally:
        gc.unfreeze()
