"""Convolutions, linear layers and batch norms."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, pair, remedy, symmetric, unsupported
from twoscale._ir.float_graph import Conv2d


def conv2d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A two-dimensional convolution whose weights do not depend on the images."""
    weight = e.array(a["weight"])
    if weight is None or e.is_activation(a["weight"]) or weight.ndim != 4 or a.get("transposed"):
        raise unsupported(e, node, "a transposed or one-dimensional convolution", "use Conv2d")
    bias = e.array(a["bias"])
    stride, dilation = pair(a["stride"]), pair(a["dilation"])
    if a["padding"] == "valid":
        padding = (0, 0, 0, 0)
    elif a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        padding = symmetric(pair(a["padding"]))
    e.add(
        node,
        Conv2d(
            **e.common(node, a["input"]),
            weight_oihw=weight,
            bias_o=np.zeros(weight.shape[0], np.float32) if bias is None else bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=int(a["groups"]),
        ),
    )


def conv1d(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A convolution of one row."""
    weight, bias = e.array(a["weight"]), e.array(a["bias"])
    if weight is None or e.is_activation(a["weight"]):
        raise unsupported(e, node, "a convolution with computed weights", "use Conv1d")
    (channels, length), (out, out_length) = e.input_shape(a["input"]), e.shape(node)
    stride, dilation, kernel = int(a["stride"][0]), int(a["dilation"][0]), weight.shape[2]
    before = after = 0
    if a["padding"] == "same":
        before, after = dilation * (kernel - 1) // 2, -(-dilation * (kernel - 1) // 2)
    elif a["padding"] != "valid":
        before = after = int(a["padding"][0])
    name = e.reshape(node, e.input(a["input"]), (channels, 1, length))
    name = e.derive(
        node,
        Conv2d,
        (out, 1, out_length),
        name,
        weight_oihw=weight[:, :, None],
        bias_o=np.zeros(out, np.float32) if bias is None else bias,
        stride=(1, stride),
        padding=(0, before, 0, after),
        dilation=(1, dilation),
        groups=int(a["groups"]),
    )
    e.reshape(node, name, (out, out_length))


def linear(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A linear layer over the last dimension."""
    weight, bias = e.array(a["weight"]), e.array(a["bias"])
    if weight is None or e.is_activation(a["weight"]):
        raise unsupported(e, node, "a linear layer with computed weights", "use Linear")
    e.linear(node, a["input"], weight, np.zeros(len(weight), np.float32) if bias is None else bias)


def batch_norm(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A batch norm with its statistics fixed is a scale and a shift a channel."""
    if a.get("use_input_stats"):
        raise unsupported(e, node, "a norm by the statistics of each image", remedy("instance_norm"))
    mean, variance = e.array(a["running_mean"]), e.array(a["running_var"])
    if mean is None or variance is None:
        raise unsupported(e, node, "a batch norm without running statistics", "set track_running_stats=True")
    if a.get("training"):
        raise unsupported(e, node, "a batch norm on the statistics of the batch", "pass training=self.training")
    gamma, beta = e.array(a["weight"]), e.array(a["bias"])
    # float64: folding must not add error of its own.
    scale = 1.0 / np.sqrt(variance.astype(np.float64) + float(a["eps"]))
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    e.affine(node, e.input(a["input"]), scale, shift)
