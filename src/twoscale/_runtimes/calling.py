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

import numpy as np
from numpy.typing import NDArray

from twoscale._runtimes import compiler
from twoscale.errors import TwoscaleError

__all__ = ["LARGEST_RANK", "Call", "maker"]

Call = Callable[[Any], NDArray[np.float32] | None]
"""Returns the logits of images; None if they have another form or are not finite, or if all pools are in use."""
LARGEST_RANK = 3
"""Most dimensions of an image."""

_FLAGS = ("-std=gnu99", "-O2", "-fPIC", "-shared")


@functools.cache
def maker() -> Callable[[Any, list[Any], Sequence[int], int, float], Call] | None:
    """Return a function that makes a Call from (NAME_pool_run of the C, a list of pools, the image's shape, classes,
    the output's scale).

    A call takes the last pool of the list and puts it back. A pool's ``number`` is its address.

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
        ctypes.py_object,
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int64,
        ctypes.c_double,
        ctypes.py_object,
        ctypes.py_object,
        ctypes.py_object,
    ]

    def make(run: Any, pools: list[Any], shape: Sequence[int], classes: int, scale: float) -> Call:
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        float32 = np.dtype(np.float32)
        call: Call = new(run, pools, len(shape), sizes, classes, scale, np.ndarray, np.empty, float32)
        return call

    return make
