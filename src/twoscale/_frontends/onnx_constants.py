"""Nodes of an ONNX graph that depend on no image, computed by ONNX's reference evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from twoscale._frontends.onnx_model import one_line

__all__ = ["fold", "shape_of"]

_LARGEST = 1 << 28  # values
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


def fold(
    node: onnx.NodeProto, feeds: dict[str, NDArray[Any]], opsets: Iterable[onnx.OperatorSetIdProto]
) -> dict[str, NDArray[Any]]:
    """Compute a node from constants.

    Args:
        node: the node.
        feeds: values of its inputs by name.
        opsets: the operator sets of its model.

    Returns:
        Values of its outputs by name.

    Raises:
        ValueError: it is random, its result is too large, or it cannot be computed; continues "the node ...".
    """
    if node.op_type in _RANDOM:
        raise ValueError("is random; expected the same logits for the same images")
    _check_size(node, feeds, opsets)
    outputs = [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        "constant",
        [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for key, value in feeds.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
    )
    one = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    try:
        values = ReferenceEvaluator(one).run(None, feeds)
    except Exception as error:  # of any kind, from NumPy
        raise ValueError(f"cannot be computed ({one_line(error)})") from error
    return dict(zip(outputs, map(np.array, values), strict=True))


def shape_of(node: onnx.NodeProto, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return what a Shape node gives for a tensor of this shape, batch included."""
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape, np.int64)[bounds.get("start", 0) : bounds.get("end")]


def _check_size(
    node: onnx.NodeProto, feeds: dict[str, NDArray[Any]], opsets: Iterable[onnx.OperatorSetIdProto]
) -> None:
    """Refuse a node whose constant result is too large, by ONNX's shape inference and before it is computed."""
    sizes: list[int] = []
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range"):
        shapes = [v for v in feeds.values() if v.dtype == np.int64 and v.size <= 16]
        sizes += [math.prod(int(x) for x in np.abs(v).flat) for v in shapes]
    constants = [numpy_helper.from_array(value, name) for name, value in feeds.items()]
    graph = helper.make_graph(
        [node], "size", [], [helper.make_empty_tensor_value_info(name) for name in node.output if name], constants
    )
    try:
        inferred = onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opsets, ir_version=8), data_prop=True
        )
    except Exception:  # of several kinds, from C++; computing it gives the reason
        return
    for value in inferred.graph.output:
        sizes.append(math.prod(dimension.dim_value for dimension in value.type.tensor_type.shape.dim))
    if max(sizes, default=0) > _LARGEST:
        raise ValueError("makes a constant that is too large")
