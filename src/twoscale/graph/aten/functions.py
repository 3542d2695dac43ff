"""Functions of one value: clamps, and what becomes a table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from twoscale.graph.aten.translator import Translation, Translator, unsupported
from twoscale.graph.nodes import Add, ChannelAffine, Clamp, Elementwise


def relu(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """max(x, 0)."""
    t.add(node, Clamp(**t.common(node, a["self"]), bounds=(0.0, math.inf)))


def relu6(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """min(max(x, 0), 6)."""
    t.add(node, Clamp(**t.common(node, a["self"]), bounds=(0.0, 6.0)))


def clamp(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """A clamp by numbers."""
    lo = a.get("min_val", a.get("min"))
    hi = a.get("max_val", a.get("max"))
    if isinstance(lo, fx.Node) or isinstance(hi, fx.Node):
        raise unsupported(t, node, "a clamp with tensor bounds", "use numbers")
    bounds = (-math.inf if lo is None else float(lo), math.inf if hi is None else float(hi))
    t.add(node, Clamp(**t.common(node, a["self"]), bounds=bounds))


def table_of(name: str, *names: str) -> Translation:
    """Return the translation of a function in graph/functions.py, whose parameters ATen calls ``names``."""

    def translation(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
        parameters = tuple(float(a[parameter]) for parameter in names)
        t.add(node, Elementwise(**t.common(node, a["self"]), function=name, parameters=parameters))

    return translation


def prelu(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """Return max(x, 0) + slope · min(x, 0); one slope is a leaky ReLU."""
    slopes = t.array(a["weight"])
    assert slopes is not None
    if slopes.size == 1:
        t.add(node, Elementwise(**t.common(node, a["self"]), function="leaky_relu", parameters=(float(slopes[0]),)))
        return
    name, shape = t.input(a["self"]), t.shape(node)
    positive = t.derive(node, Clamp, shape, name, bounds=(0.0, math.inf))
    negative = t.derive(node, Clamp, shape, name, bounds=(-math.inf, 0.0))
    scaled = t.derive(node, ChannelAffine, shape, negative, scale_c=slopes, shift_c=np.zeros_like(slopes))
    t.derive(node, Add, shape, positive, scaled)


def gelu(t: Translator, node: fx.Node, a: dict[str, Any]) -> None:
    """Its exact form, or the one by tanh."""
    function = "gelu_tanh" if a.get("approximate") == "tanh" else "gelu"
    t.add(node, Elementwise(**t.common(node, a["self"]), function=function))
