"""Functions of one value: clamps, and what becomes a table."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, Translation, remedy, unsupported
from twoscale._ir.float_graph import Add, Bounds, Clamp, Elementwise, Mul, Node, Permute, Slice


def _by_value(e: Emitter, node: fx.Node, x: fx.Node, kind: type[Node], **fields: Any) -> None:
    """Append a function of one value; it comes before a change of the order of dimensions, so that those can meet."""
    name = e.input(x)
    source = e.made(name)
    if isinstance(source, Permute):
        inner = e.made(source.inputs[0])
        e.permute(node, e.derive(node, kind, inner.shape, inner.name, **fields), source.axes)
    else:
        e.derive(node, kind, e.shape(node), name, **fields)


def relu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """max(x, 0)."""
    _by_value(e, node, a["self"], Clamp, bounds=(0.0, math.inf))


def relu6(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """min(max(x, 0), 6)."""
    _by_value(e, node, a["self"], Clamp, bounds=(0.0, 6.0))


def clamp(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A clamp by numbers."""
    lo = a.get("min_val", a.get("min"))
    hi = a.get("max_val", a.get("max"))
    if isinstance(lo, fx.Node) or isinstance(hi, fx.Node):
        raise unsupported(e, node, "a clamp with tensor bounds", "use numbers")
    clamp_to(e, node, a["self"], (-math.inf if lo is None else float(lo), math.inf if hi is None else float(hi)))


def clamp_to(e: Emitter, node: fx.Node, x: fx.Node, bounds: Bounds) -> None:
    """min(max(x, lo), hi)."""
    if bounds[0] > 0 and bounds[1] == math.inf:  # integers keep a 0, so this is a table
        _by_value(e, node, x, Elementwise, function="threshold", parameters=(bounds[0], bounds[0]))
        return
    if not bounds[0] <= 0 <= bounds[1]:
        raise unsupported(e, node, "a clamp to a range without 0", "clamp to bounds with 0 between them")
    _by_value(e, node, x, Clamp, bounds=bounds)


def table_of(name: str, *names: str) -> Translation:
    """Return the translation of a function in graph/functions.py, whose parameters ATen calls ``names``."""

    def translation(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
        parameters = tuple(float(a[parameter]) for parameter in names)
        _by_value(e, node, a["self"], Elementwise, function=name, parameters=parameters)

    return translation


def prelu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Return max(x, 0) + slope · min(x, 0); one slope is a leaky ReLU."""
    slopes = e.array(a["weight"])
    assert slopes is not None
    if slopes.size == 1:
        e.add(node, Elementwise(**e.common(node, a["self"]), function="leaky_relu", parameters=(float(slopes[0]),)))
        return
    name, shape = e.input(a["self"]), e.shape(node)
    positive = e.derive(node, Clamp, shape, name, bounds=(0.0, math.inf))
    negative = e.derive(node, Clamp, shape, name, bounds=(-math.inf, 0.0))
    scaled = e.affine(node, negative, slopes)
    e.derive(node, Add, shape, positive, scaled)


def gelu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Its exact form, or the one by tanh."""
    function = "gelu_tanh" if a.get("approximate") == "tanh" else "gelu"
    _by_value(e, node, a["self"], Elementwise, function=function)


def softmax(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A softmax over the classes at the end changes no order: what it is of are the logits."""
    function = str(node.target._opname).strip("_")  # type: ignore[union-attr]
    rank = 1 + len(e.input_shape(a["self"]))
    at_the_end = rank == 2 and int(a["dim"]) % rank == 1 and all(user.op == "output" for user in node.users)
    if not at_the_end:
        raise unsupported(e, node, f"a {function} before the end", remedy(function))
    e.same(node, a["self"])
    e.left_out = (function, e.source(node))


def rrelu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """In eval mode, a leaky ReLU with the mean of the random slopes."""
    if a.get("training"):
        raise unsupported(e, node, "a random slope in eval mode", "pass training=self.training")
    slope = (float(a["lower"]) + float(a["upper"])) / 2
    _by_value(e, node, a["self"], Elementwise, function="leaky_relu", parameters=(slope,))


def glu(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """One half of a dimension, gated by the other."""
    name, shape = e.input(a["self"]), e.shape(node)
    axis = int(a["dim"]) % (1 + len(shape)) - 1
    half = shape[axis]
    value, gate = (
        e.derive(node, Slice, shape, name, axis=axis, start=start, stop=start + half, step=1) for start in (0, half)
    )
    e.derive(node, Mul, shape, value, e.derive(node, Elementwise, shape, gate, function="sigmoid"))


def sqrt(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """The power 1/2."""
    _by_value(e, node, a["self"], Elementwise, function="power", parameters=(0.5,))
