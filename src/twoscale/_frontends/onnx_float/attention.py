"""Products of two activations, softmax inside, and norms by the statistics of the image."""

from __future__ import annotations

import math

import numpy as np
import onnx

from twoscale._frontends.onnx_float.reader import Reader

__all__ = ["group_norm", "instance_norm", "layer_norm", "matmul", "softmax"]


def matmul(r: Reader, node: onnx.NodeProto) -> str:
    """A product of two activations, for every entry of the dimensions before the last two."""
    at = r.at(node)
    if min(len(r.shape(node, 0)), len(r.shape(node, 1))) < 2:
        raise at.wrong("sums over the batch; expected images to stay apart")
    return at.matmul(r.input(node, 0), r.input(node, 1))


def softmax(r: Reader, node: onnx.NodeProto) -> str:
    """A softmax along one dimension, or before opset 13 along all from one on."""
    at, rank = r.at(node), 1 + len(r.shape(node))
    axis = r.axis(node, int(r.attribute(node, "axis", -1 if r.opset >= 13 else 1)), rank)
    shape = r.shape(node)
    if r.opset >= 13 or axis == rank - 2:
        return at.softmax(r.input(node), axis)
    flat = (*shape[:axis], math.prod(shape[axis:]))
    return at.reshape(at.softmax(at.reshape(r.input(node), flat), axis), shape)


def layer_norm(r: Reader, node: onnx.NodeProto) -> str:
    """A norm over the last dimensions, centered or not."""
    at, shape = r.at(node), r.shape(node)
    if r.reads_more_than_the_first(node):
        raise at.unsupported("the statistics of a norm as outputs", "use the first output alone")
    first = r.axis(node, int(r.attribute(node, "axis", -1)), 1 + len(shape))
    gain, bias = (
        None if index >= len(node.input) or not node.input[index] else r.weights(node, index) for index in (1, 2)
    )
    aligned = [
        None if values is None else values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
        for values in (gain, bias)
    ]
    eps = float(r.attribute(node, "epsilon", 1e-5))
    centered = node.op_type == "LayerNormalization"
    return at.normalize(r.input(node), range(first, len(shape)), eps, aligned[0], aligned[1], centered=centered)


def group_norm(r: Reader, node: onnx.NodeProto) -> str:
    """A norm over groups of channels. Before opset 21 its gains are one for each group."""
    at, channels, groups = r.at(node), r.shape(node)[0], int(r.attribute(node, "num_groups", 1))
    if groups < 1 or channels % groups:
        raise at.wrong(f"has {groups} groups of {channels} channels")
    gain, bias = (r.weights(node, index).reshape(-1) for index in (1, 2))
    gain, bias = (np.repeat(values, channels // len(values)) for values in (gain, bias))
    return at.group_norm(r.input(node), groups, float(r.attribute(node, "epsilon", 1e-5)), gain, bias)


def instance_norm(r: Reader, node: onnx.NodeProto) -> str:
    """A norm of each channel."""
    eps = float(r.attribute(node, "epsilon", 1e-5))
    return r.at(node).group_norm(r.input(node), r.shape(node)[0], eps, r.weights(node, 1), r.weights(node, 2))
