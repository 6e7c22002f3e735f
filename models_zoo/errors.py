"""The errors that the zoo raises for bad input.

Owns the error types only; the texts are composed where the fault is found. All are
``ValueError``, so a caller may catch one type for the whole zoo.
"""


class ZooError(ValueError):
    """Base of every error of the zoo."""


class UnknownModelError(ZooError):
    """A model name is not in the registry."""


class ModelOptionError(ZooError):
    """A build or example-input option is unknown or out of range."""


class InputShapeError(ZooError):
    """An input's channels or spatial size do not fit the model."""
