"""The zoo's errors share one base that is a ValueError."""

import pytest

from models_zoo.errors import InputShapeError, ModelOptionError, UnknownModelError, ZooError


@pytest.mark.parametrize("error", [InputShapeError, ModelOptionError, UnknownModelError])
def test_every_error_is_a_zoo_error_and_a_value_error(error: type[Exception]) -> None:
    assert issubclass(error, ZooError)
    assert issubclass(error, ValueError)
