"""Errors of xconv_fx that a user can meet and act on."""

from __future__ import annotations


class OptionError(ValueError):
    """An option has a value outside what is allowed.

    The text says which option, which value, and what is allowed.
    """

    def __init__(self, option: str, value: object, allowed: str) -> None:
        """Build the text.

        Args:
            option: name of the option as the user writes it.
            value: the value that was given.
            allowed: what would be accepted, in words.
        """
        self.option = option
        self.value = value
        self.allowed = allowed
        super().__init__(f"option {option!r} got {value!r}; allowed: {allowed}")

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, object, str]]:
        """Pickle by the constructor's arguments, not by the text."""
        return type(self), (self.option, self.value, self.allowed)


class BudgetError(ValueError):
    """A memory budget cannot be met; the text says what was asked and what can be reached."""


class _RecordFileError(ValueError):
    """A file of records cannot be written or read; the text says which file, and why."""

    content = "records"

    def __init__(self, path: object, problem: str) -> None:
        """Build the text.

        Args:
            path: of the file.
            problem: what is wrong with it, in words.
        """
        self.path = str(path)
        self.problem = problem
        super().__init__(f"{self.content} file {self.path}: {problem}")

    def __reduce__(self) -> tuple[type[_RecordFileError], tuple[str, str]]:
        """Pickle by the constructor's arguments, not by the text."""
        return type(self), (self.path, self.problem)


class PlanFileError(_RecordFileError):
    """A file of plans cannot be written or read; the text says which file, and why."""

    content = "plans"


class CalibrationFileError(_RecordFileError):
    """A file of a calibration cannot be read; the text says which file, and why."""

    content = "calibration"


class CalibrationError(ValueError):
    """A step cannot be measured; the text says why, and what to do."""
