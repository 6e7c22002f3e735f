import gc

import pytest

from passes.collection import without_collection


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
