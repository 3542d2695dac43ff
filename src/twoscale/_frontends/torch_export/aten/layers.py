"""Convolutions, linear layers and batch norms."""

from __future__ import annotations

from typing import Any

from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, remedy


def convolution(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A convolution of one or two dimensions whose weights do not depend on the images."""
    if a.get("transposed"):
        return transposed_convolution(e, node, a)
    at, weight = e.at(node), e.array(a["weight"])
    if weight is None or e.is_activation(a["weight"]) or weight.ndim not in (3, 4):
        raise at.unsupported("a three-dimensional convolution, or one with computed weights", "use Conv2d")
    rank = weight.ndim - 2
    stride, dilation = ([int(v) for v in a[key]] * (rank if len(a[key]) == 1 else 1) for key in ("stride", "dilation"))
    if a["padding"] == "valid":
        padding = [(0, 0)] * rank
    elif a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = [(all_of // 2, all_of - all_of // 2) for all_of in total]
    else:
        padding = [(int(v), int(v)) for v in a["padding"]] * (rank if len(a["padding"]) == 1 else 1)
    return at.convolution(
        e.input(a["input"]),
        e.shape(node),
        weight,
        e.array(a["bias"]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=int(a["groups"]),
    )


def transposed_convolution(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A transposed convolution of one or two dimensions whose weights do not depend on the images."""
    at, weight = e.at(node), e.array(a["weight"])
    if weight is None or e.is_activation(a["weight"]) or weight.ndim not in (3, 4):
        raise at.unsupported(
            "a three-dimensional transposed convolution, or one with computed weights", "use ConvTranspose2d"
        )
    rank = weight.ndim - 2
    stride, padding, dilation = (
        [int(v) for v in a[key]] * (rank if len(a[key]) == 1 else 1) for key in ("stride", "padding", "dilation")
    )
    return at.transposed_convolution(
        e.input(a["input"]),
        e.shape(node),
        weight,
        e.array(a["bias"]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=int(a["groups"]),
    )


def linear(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A linear layer over the last dimension."""
    at = e.at(node)
    weight, bias = e.array(a["weight"]), e.array(a["bias"])
    if weight is None or e.is_activation(a["weight"]):
        raise at.unsupported("a linear layer with computed weights", "use Linear")
    return at.linear(e.input(a["input"]), weight, bias)


def batch_norm(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A batch norm with its statistics fixed is a scale and a shift per channel."""
    at = e.at(node)
    if a.get("use_input_stats"):
        raise at.unsupported("a norm by the statistics of each image", remedy("instance_norm"))
    mean, variance = e.array(a["running_mean"]), e.array(a["running_var"])
    if mean is None or variance is None:
        raise at.unsupported("a batch norm without running statistics", "set track_running_stats=True")
    if a.get("training"):
        raise at.unsupported("a batch norm on the statistics of the batch", "pass training=self.training")
    gamma, beta = e.array(a["weight"]), e.array(a["bias"])
    return at.batch_norm(e.input(a["input"]), gamma, beta, mean, variance, float(a["eps"]))
