"""Convolutions, linear layers and batch norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter

_MOST_WEIGHTS = 1 << 22
"""Weights that a convolution may have after copying them for each picture of an image."""


def convolution(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A convolution, plain or transposed, of one or two dimensions whose weights do not depend on the images."""
    return _transposed(e, node, a) if a.get("transposed") else _plain(e, node, a)


def transposed_convolution(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """ATen's operators for transposed convolutions alone."""
    return _transposed(e, node, a)


def _plain(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    weight = _weight(e, node, a, "convolution", "use Conv2d")
    rank = weight.ndim - 2
    dilation = _by_dimension(a["dilation"], rank)
    if a["padding"] == "valid":
        padding = [(0, 0)] * rank
    elif a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = [(all_of // 2, all_of - all_of // 2) for all_of in total]
    else:
        padding = [(width, width) for width in _by_dimension(a["padding"], rank)]
    at, name, shape = e.at(node), e.input(a["input"]), e.shape(node)
    bias, groups = e.array(a["bias"]), int(a["groups"])
    _, parts = e.batch_of(a["input"])
    if parts > 1:  # several pictures of each image: groups of channels, with the same weights for each
        if parts * weight.size > _MOST_WEIGHTS:
            raise e.mixed(a["input"])
        weight = np.tile(weight, (parts, *[1] * (weight.ndim - 1)))
        bias = None if bias is None else np.tile(bias, parts)
        given = e.input_shape(a["input"])
        name = at.reshape(name, (parts * given[1], *given[2:]))
        shape = (parts * shape[1], *shape[2:])
    name = at.convolution(
        name,
        shape,
        weight,
        bias,
        stride=_by_dimension(a["stride"], rank),
        padding=padding,
        dilation=dilation,
        groups=parts * groups,
    )
    return at.reshape(name, e.shape(node))


def _transposed(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    weight = _weight(e, node, a, "transposed convolution", "use ConvTranspose2d")
    rank = weight.ndim - 2
    stride, padding, dilation = (_by_dimension(a[key], rank) for key in ("stride", "padding", "dilation"))
    return e.at(node).transposed_convolution(
        e.input(a["input"]),
        e.shape(node),
        weight,
        e.array(a["bias"]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=int(a["groups"]),
    )


def _weight(e: Emitter, node: fx.Node, a: dict[str, Any], kind: str, remedy: str) -> NDArray[np.float32]:
    """Return the weights of a convolution of one or two dimensions."""
    weight = None if e.is_activation(a["weight"]) else e.array(a["weight"])
    if weight is None or weight.ndim not in (3, 4):
        raise e.at(node).unsupported(f"a three-dimensional {kind}, or one with computed weights", remedy)
    return weight


def _by_dimension(values: Sequence[Any], rank: int) -> list[int]:
    """Return one number for each dimension; ATen allows a single number for all of them."""
    return [int(value) for value in values] * (rank if len(values) == 1 else 1)


def linear(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A linear layer over the last dimension."""
    at = e.at(node)
    weight = None if e.is_activation(a["weight"]) else e.array(a["weight"])
    if weight is None:
        raise at.unsupported("a linear layer with computed weights", "use Linear")
    return at.linear(e.input(a["input"]), weight, e.array(a["bias"]))


def batch_norm(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A batch norm with its statistics fixed is a scale and a shift per channel."""
    at = e.at(node)
    mean, variance = e.array(a["running_mean"]), e.array(a["running_var"])
    if mean is None or variance is None:
        raise at.unsupported("a batch norm without running statistics", "set track_running_stats=True")
    if a.get("training"):
        raise at.unsupported("a batch norm on the statistics of the batch", "pass training=self.training")
    gamma, beta = e.array(a["weight"]), e.array(a["bias"])
    axis = e.axis(a["input"], 1)
    if axis < 0:
        raise e.mixed(a["input"])
    return at.batch_norm(e.input(a["input"]), gamma, beta, mean, variance, float(a["eps"]), axis)
