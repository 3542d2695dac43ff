"""Attention, products of two activations, and norms by the statistics of the image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from twoscale._frontends.torch_export.aten import layers, sums
from twoscale._frontends.torch_export.aten.emitter import Emitter

_EPS = torch.finfo(torch.float32).eps
"""Of an RMSNorm without an epsilon."""


def matmul(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A product of two activations, for every entry of the dimensions before the last two; or one with weights."""
    operands = [a[key] for key in ("self", "other", "mat1", "mat2") if key in a]
    if "mat1" in a or not all(e.is_activation(operand) for operand in operands):
        return sums.matmul(e, node, a)
    at = e.at(node)
    for operand in operands:
        rank = len(operand.meta["val"].shape)
        if rank < 3 or e.batch_of(operand)[0] >= rank - 2:
            raise at.wrong("sums over the batch; expected images to stay apart")
    return at.reshape(at.matmul(e.input(operands[0]), e.input(operands[1])), e.shape(node))


def attention(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """softmax(q · kᵀ · scale + mask) · v."""
    at = e.at(node)
    query, key, value = (e.input(a[name]) for name in ("query", "key", "value"))
    if a.get("dropout_p"):
        raise at.unsupported("a dropout that is on in eval mode", "pass dropout_p only in training")
    if a.get("enable_gqa"):
        raise at.unsupported("keys shared by several queries", "repeat them with repeat_interleave")
    (*_, rows, features), (*_, columns, _) = e.builder[query].shape, e.builder[key].shape
    mask: Any = None
    given = a.get("attn_mask")
    if given is not None and e.is_activation(given):
        mask = e.input(given)
    elif given is not None:
        values = e.constants[given].detach().cpu()
        mask = np.where(values.numpy(), 0.0, -np.inf) if values.dtype == torch.bool else values.double().numpy()
    if a.get("is_causal"):
        mask = np.where(np.tril(np.ones((rows, columns), bool)), 0.0, -np.inf)
    factor = a.get("scale")
    return at.attention(query, key, value, 1 / math.sqrt(features) if factor is None else float(factor), mask)


def layer_norm(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A norm over the last dimensions, centered or not."""
    centered = "rms" not in str(node.target)
    eps = a["eps"] if a["eps"] is not None else _EPS
    name, shape = e.input(a["input"]), e.input_shape(a["input"])
    count = len(a["normalized_shape"])
    if e.axis(a["input"], -count) < 0 or len(shape) < count:
        raise e.mixed(a["input"])
    gain, bias = e.array(a["weight"]), e.array(a.get("bias"))
    size = (*[1] * (len(shape) - count), *shape[len(shape) - count :])
    gain, bias = (None if values is None else values.reshape(size) for values in (gain, bias))
    axes = range(len(shape) - count, len(shape))
    return e.at(node).normalize(name, axes, float(eps), gain, bias, centered=centered)


def group_norm(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A norm over groups of channels."""
    groups = int(a["num_groups"] if "num_groups" in a else a["group"])
    return e.at(node).group_norm(e.input(a["input"]), groups, float(a["eps"]), e.array(a["weight"]), e.array(a["bias"]))


def instance_norm(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A norm of each channel, or a batch norm where the statistics are fixed."""
    if not a.get("use_input_stats"):
        return layers.batch_norm(e, node, a)
    name = e.input(a["input"])
    channels = e.builder[name].shape[0]
    return e.at(node).group_norm(name, channels, float(a["eps"]), e.array(a["weight"]), e.array(a["bias"]))
