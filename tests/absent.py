"""A package that is as if it were not installed."""

import builtins

import pytest


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """From now on an import of it fails."""
    real = builtins.__import__

    def without(name, *more):
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named '{package}'")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
