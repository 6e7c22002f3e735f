"""What the tests of the benchmarks share."""

import builtins

import pytest


@pytest.fixture
def no_matplotlib(monkeypatch):
    """Make matplotlib impossible to import, as where the extra is not installed."""
    importing = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
