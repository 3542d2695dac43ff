"""Real functions of one value, by their names in Elementwise nodes and table layers.

The definitions are PyTorch's. They are computed in float64, once for each table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import UnknownNameError

__all__ = ["FUNCTIONS", "Composition", "Step", "evaluate"]

_SMALLEST = float(np.finfo(np.float32).tiny)
"""Smaller arguments of logarithms and reciprocal roots are replaced by it. Tables have entries for values that never
occur."""

Float64 = NDArray[np.float64]


def _sigmoid(x: Float64) -> Float64:
    return np.exp(-np.logaddexp(0.0, -x))


def _relu6(x: Float64) -> Float64:
    return np.clip(x, 0.0, 6.0)


def _softplus(x: Float64, beta: float = 1.0, threshold: float = 20.0) -> Float64:
    return np.where(beta * x > threshold, x, np.logaddexp(0.0, beta * x) / beta)


def _elu(x: Float64, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Float64:
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) * input_scale))


def _erf(x: Float64) -> Float64:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), np.float64)


def _power(x: Float64, exponent: float) -> Float64:
    # Tables have entries for values that never occur, such as negative arguments of a root.
    return np.power(x if exponent.is_integer() else np.maximum(x, 0.0), exponent)


def _log(x: Float64) -> Float64:
    return np.log(np.maximum(x, _SMALLEST))


def _reciprocal(x: Float64) -> Float64:
    return 1.0 / np.where(np.abs(x) < _SMALLEST, np.copysign(_SMALLEST, x), x)


FUNCTIONS: dict[str, Callable[..., Float64]] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "hardsigmoid": lambda x: _relu6(x + 3.0) / 6.0,
    "hardswish": lambda x: x * _relu6(x + 3.0) / 6.0,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "leaky_relu": lambda x, slope: np.where(x >= 0, x, slope * x),
    "elu": _elu,
    "celu": lambda x, alpha: _elu(x, alpha, 1.0, 1.0 / alpha),
    # Klambauer et al., "Self-normalizing neural networks", 2017: its two constants.
    "selu": lambda x: _elu(x, 1.6732632423543772, 1.0507009873554805),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "softplus": _softplus,
    "log_sigmoid": lambda x: -np.logaddexp(0.0, -x),
    "abs": np.abs,
    "erf": _erf,
    "sign": np.sign,
    "power": _power,
    "threshold": lambda x, limit, value: np.where(x > limit, x, np.full_like(x, value)),
    "hardshrink": lambda x, limit: np.where(np.abs(x) > limit, x, 0.0),
    "softshrink": lambda x, limit: np.sign(x) * np.maximum(np.abs(x) - limit, 0.0),
    "exp": np.exp,
    "log": _log,
    "log1p": lambda x: _log(1.0 + x),
    "rsqrt": lambda x: 1.0 / np.sqrt(np.maximum(x, _SMALLEST)),
    "reciprocal": _reciprocal,
    "expm1": np.expm1,
    "exp2": np.exp2,
    "log2": lambda x: _log(x) / math.log(2.0),
    "log10": lambda x: _log(x) / math.log(10.0),
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "erfc": lambda x: 1.0 - _erf(x),
    "round": np.rint,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "sin": np.sin,
    "cos": np.cos,
    "affine": lambda x, scale, shift: x * scale + shift,
    "clamp": lambda x, lo, hi: np.clip(x, lo, hi),
    "greater": lambda x, limit: (x > limit).astype(np.float64),
    "greater_equal": lambda x, limit: (x >= limit).astype(np.float64),
    "less": lambda x, limit: (x < limit).astype(np.float64),
    "equal": lambda x, number: (x == number).astype(np.float64),
    "not_equal": lambda x, number: (x != number).astype(np.float64),
    "less_equal": lambda x, limit: (x <= limit).astype(np.float64),
    "constant": lambda x, value: np.full_like(x, value),
}


_OF_TWO: dict[str, Callable[[Float64, Float64], Float64]] = {"add": np.add, "mul": np.multiply}


@dataclass(frozen=True)
class Step:
    """One operation of a Composition."""

    function: str
    """A name of FUNCTIONS, or "add" or "mul"."""
    inputs: tuple[int, ...]
    """The values that it reads: 0 is x, i is the result of step i, counted from 1."""
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Composition:
    """A function of one value written as several operations; the last step gives the result."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        """Return a formula, such as mul(x, clamp(affine(x, 1, 3), 0, 6))."""
        texts = ["x"]
        for step in self.steps:
            arguments = [texts[i] for i in step.inputs] + [f"{value:g}" for value in step.parameters]
            texts.append(f"{step.function}({', '.join(arguments)})")
        return texts[-1]


def evaluate(function: str | Composition, parameters: tuple[float, ...], x: Float64) -> Float64:
    """Return ``function`` of every value of ``x`` (any shape), in float64."""
    if isinstance(function, Composition):
        values = [np.asarray(x, np.float64)]
        for step in function.steps:
            inputs = [values[i] for i in step.inputs]
            if step.function in _OF_TWO:
                values.append(_OF_TWO[step.function](inputs[0], inputs[1]))
            else:
                values.append(evaluate(step.function, step.parameters, inputs[0]))
        return values[-1]
    if function not in FUNCTIONS:
        raise UnknownNameError("elementwise function", function, FUNCTIONS)
    return np.asarray(FUNCTIONS[function](np.asarray(x, np.float64), *parameters), np.float64)
