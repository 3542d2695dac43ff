"""Calls from Python into compiled C with less overhead than ctypes, if Python's headers are installed."""

from __future__ import annotations

import ctypes
import functools
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from twoscale._runtimes import compiler
from twoscale.errors import TwoscaleError

__all__ = ["Call", "maker"]

Call = Callable[[Any, Any], bool]
"""Compute logits from images (both are arrays). Returns False if the images have another form or are not finite."""

_FLAGS = ("-std=gnu99", "-O2", "-fPIC", "-shared")


@functools.cache
def maker() -> Callable[[Any, Any, Sequence[int], int, float], Call] | None:
    """Return a function that makes a Call from (NAME_pool_run of the C, a pool, the image's shape, classes, the
    output's scale).

    Return None if it cannot be compiled: on a Python other than CPython, or without headers.
    """
    include = sysconfig.get_path("include")
    if sys.implementation.name != "cpython" or not Path(include, "Python.h").exists():
        return None
    text = resources.files("twoscale._runtimes").joinpath("call.c").read_text()
    try:
        sources = compiler.Sources({"call.c": text})
        library = compiler.load("calls", [text, sys.version], lambda: sources, (*_FLAGS, f"-I{include}")).handle
        new = ctypes.PyDLL(library._name, handle=library._handle).caller_new
    except (TwoscaleError, OSError, ImportError):  # no compiler, no platformdirs, headers without the limited API
        return None
    new.restype = ctypes.py_object
    new.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int64,
        ctypes.c_double,
    ]

    def make(run: Any, pool: Any, shape: Sequence[int], classes: int, scale: float) -> Call:
        call: Call = new(run, pool, len(shape), (ctypes.c_int64 * len(shape))(*shape), classes, scale)
        return call

    return make
