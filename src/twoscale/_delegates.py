"""Functions of higher packages that methods of lower ones call by name.

An ``IntegerNetwork`` has methods for what packages above it do: compile it, save it, show it. They call what
``twoscale/__init__.py``, which knows every package, has registered here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["call", "register"]

_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def register(name: str, function: Callable[..., Any]) -> None:
    """Let ``call(name, ...)`` call ``function``."""
    _FUNCTIONS[name] = function


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the function that is registered as ``name``."""
    return _FUNCTIONS[name](*args, **kwargs)
