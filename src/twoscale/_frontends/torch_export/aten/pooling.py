"""Maxima and averages over windows, and over whole images."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, pair, symmetric
from twoscale._frontends.torch_export.aten.sums import maximum, minimum
from twoscale._ir.builder import Place
from twoscale._ir.float_graph import AveragePool2d, MaxPool2d


def max_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A maximum over windows."""
    kernel = pair(a["kernel_size"])
    at, name, shape = _channels(e, node, a)
    pooled = at.max_pool(
        name,
        shape,
        kernel,
        pair(a["stride"]) if a["stride"] else kernel,
        symmetric(pair(a["padding"])),
        pair(a["dilation"]),
        ceil_mode=bool(a["ceil_mode"]),
    )
    return at.reshape(pooled, e.shape(node))


def avg_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A mean over windows, with any options for their sizes at the borders."""
    kernel = pair(a["kernel_size"])
    at, name, shape = _channels(e, node, a)
    pooled = at.average_pool(
        name,
        shape,
        kernel,
        pair(a["stride"]) if a["stride"] else kernel,
        symmetric(pair(a["padding"])),
        counts_padding=bool(a["count_include_pad"]),
        divisor=int(a["divisor_override"]) if a["divisor_override"] else None,
    )
    return at.reshape(pooled, e.shape(node))


def avg_pool3d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A mean over windows along the first of three dimensions, as ``local_response_norm`` takes it of channels."""
    at, given, shape = e.at(node), e.input_shape(a["self"]), e.shape(node)
    kernel, padding = ([int(v) for v in a[key]] * (3 if len(a[key]) == 1 else 1) for key in ("kernel_size", "padding"))
    stride = [int(v) for v in a["stride"] or kernel] * (3 if len(a["stride"] or kernel) == 1 else 1)
    if kernel[1:] != [1, 1] or stride[1:] != [1, 1] or padding[1:] != [0, 0]:
        raise at.unsupported("a mean over windows of three dimensions", "use one or two")
    channels, pixels = math.prod(given[:-3]), math.prod(given[-2:])
    pooled = at.average_pool(
        at.reshape(e.input(a["self"]), (channels, given[-3], pixels)),
        (channels, shape[-3], pixels),
        (kernel[0], 1),
        (stride[0], 1),
        (padding[0], 0, padding[0], 0),
        counts_padding=bool(a["count_include_pad"]),
        divisor=int(a["divisor_override"]) if a["divisor_override"] else None,
    )
    return at.reshape(pooled, shape)


def adaptive_avg_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A mean over windows whose sizes follow from the size of the result."""
    at, name, shape = _channels(e, node, a)
    return at.reshape(at.adaptive_average_pool(name, shape), e.shape(node))


def adaptive_max_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A maximum over windows whose sizes follow from the size of the result."""
    at, name, shape = _channels(e, node, a)
    return at.reshape(at.adaptive_max_pool(name, shape), e.shape(node))


def _channels(e: Emitter, node: fx.Node, a: dict[str, Any]) -> tuple[Place, str, tuple[int, ...]]:
    """Return where to append, the input as (C, H, W) and the result's shape: what is before H and W are channels."""
    at, given, shape = e.at(node), e.input_shape(a["self"]), e.shape(node)
    channels = math.prod(given[:-2])
    return at, at.reshape(e.input(a["self"]), (channels, *given[-2:])), (channels, *shape[-2:])


def mean(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A mean over any dimensions but the batch."""
    return e.at(node).reduce(e.input(a["self"]), _axes(e, node, a), AveragePool2d, e.shape(node))


def total(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A sum over any dimensions but the batch."""
    return e.at(node).total(e.input(a["self"]), _axes(e, node, a), e.shape(node))


def largest(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A maximum over any dimensions but the batch; ``max.other`` is of two tensors."""
    if "other" in a:
        return maximum(e, node, a)
    if any(user.args[1] != 0 for user in node.users if user.target is operator.getitem):
        raise e.at(node).unsupported("the index of a maximum", "use its value")
    return e.at(node).reduce(e.input(a["self"]), _axes(e, node, a), MaxPool2d, e.shape(node))


def least(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A minimum over any dimensions but the batch; ``min.other`` is of two tensors."""
    if "other" in a:
        return minimum(e, node, a)
    if any(user.args[1] != 0 for user in node.users if user.target is operator.getitem):
        raise e.at(node).unsupported("the index of a minimum", "use its value")
    at = e.at(node)
    negated = at.affine(e.input(a["self"]), -1.0)
    return at.affine(at.reduce(negated, _axes(e, node, a), MaxPool2d, e.shape(node)), -1.0)


def norm(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The square root of a sum of squares, or a sum or a maximum of magnitudes."""
    at, name, axes, shape = e.at(node), e.input(a["self"]), _axes(e, node, a), e.shape(node)
    order = a.get("ord", a.get("p"))
    order = 2.0 if order is None else float(order)
    if order == math.inf:
        return at.reduce(at.table(name, "abs"), axes, MaxPool2d, shape)
    if order == 1.0:
        return at.total(at.table(name, "abs"), axes, shape)
    if order != 2.0:
        raise at.unsupported(f"a norm of order {order:g}", "use order 1, 2 or infinity")
    return at.table(at.total(at.mul(name, name, at.shape(name)), axes, shape), "power", 0.5)


def _axes(e: Emitter, node: fx.Node, a: dict[str, Any]) -> list[int]:
    """Return the dimensions that are reduced, in order, without the batch."""
    dims = a.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(a["self"].meta["val"].shape)))
    axes = sorted(e.axis(a["self"], dim) for dim in dims)
    if axes[0] < 0:
        raise e.at(node).wrong("is over the batch; expected images to stay apart")
    return axes
