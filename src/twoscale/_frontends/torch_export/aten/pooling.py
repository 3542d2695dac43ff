"""Maxima and averages over windows, and over whole images."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, pair, symmetric
from twoscale._frontends.torch_export.aten.sums import maximum
from twoscale._ir.float_graph import AveragePool2d, MaxPool2d


def max_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A maximum over windows."""
    kernel = pair(a["kernel_size"])
    return e.at(node).max_pool(
        e.input(a["self"]),
        e.shape(node),
        kernel,
        pair(a["stride"]) if a["stride"] else kernel,
        symmetric(pair(a["padding"])),
        pair(a["dilation"]),
        ceil_mode=bool(a["ceil_mode"]),
    )


def avg_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A mean over windows, with any options for their sizes at the borders."""
    kernel = pair(a["kernel_size"])
    return e.at(node).average_pool(
        e.input(a["self"]),
        e.shape(node),
        kernel,
        pair(a["stride"]) if a["stride"] else kernel,
        symmetric(pair(a["padding"])),
        counts_padding=bool(a["count_include_pad"]),
        divisor=int(a["divisor_override"]) if a["divisor_override"] else None,
    )


def adaptive_avg_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A mean over windows whose sizes follow from the size of the result."""
    return e.at(node).adaptive_average_pool(e.input(a["self"]), e.shape(node))


def adaptive_max_pool2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A maximum over windows whose sizes follow from the size of the result."""
    return e.at(node).adaptive_max_pool(e.input(a["self"]), e.shape(node))


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


def _axes(e: Emitter, node: fx.Node, a: dict[str, Any]) -> list[int]:
    """Return the dimensions that are reduced, in order, without the batch."""
    rank = 1 + len(e.input_shape(a["self"]))
    dims = a.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
    axes = sorted(int(dim) % rank - 1 for dim in dims)
    if axes[0] < 0:
        raise e.at(node).wrong("is over the batch; expected images to stay apart")
    return axes
