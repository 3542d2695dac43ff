"""Functions of higher packages that methods of lower ones call by name.

``IntegerNetwork`` has methods that packages above it implement: compile, save, show. They call functions that
``twoscale/__init__.py``, which imports all packages, has registered here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["call", "register"]

_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def register(name: str, function: Callable[..., Any]) -> None:
    """Register ``function`` for ``call(name, ...)``."""
    _FUNCTIONS[name] = function


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the function that is registered as ``name``."""
    return _FUNCTIONS[name](*args, **kwargs)
