"""Real functions of one value, by the name that Elementwise nodes and table layers carry.

Definitions are PyTorch's; computed in float64, since tables are made from them once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import UnknownNameError

__all__ = ["FUNCTIONS", "evaluate"]

Float64 = NDArray[np.float64]


def _sigmoid(x: Float64) -> Float64:
    return np.exp(-np.logaddexp(0.0, -x))


def _relu6(x: Float64) -> Float64:
    return np.clip(x, 0.0, 6.0)


def _erf(x: Float64) -> Float64:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), np.float64)


FUNCTIONS: dict[str, Callable[..., Float64]] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "hardsigmoid": lambda x: _relu6(x + 3.0) / 6.0,
    "hardswish": lambda x: x * _relu6(x + 3.0) / 6.0,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "leaky_relu": lambda x, slope: np.where(x >= 0, x, slope * x),
    "elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0))),
}


def evaluate(function: str, parameters: tuple[float, ...], x: Float64) -> Float64:
    """Return ``function`` of every value of ``x`` (any shape), in float64."""
    if function not in FUNCTIONS:
        raise UnknownNameError("elementwise function", function, FUNCTIONS)
    return np.asarray(FUNCTIONS[function](np.asarray(x, np.float64), *parameters), np.float64)
