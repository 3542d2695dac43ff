"""One function per operator. It appends the operator's nodes and returns the name of the result."""

from __future__ import annotations

from twoscale._frontends.onnx_float import attention, elementwise, shapes, windows
from twoscale._frontends.onnx_float.reader import Operator
from twoscale._frontends.onnx_float.resizing import resize

__all__ = ["OPERATORS"]

OPERATORS: dict[str, Operator] = {
    **elementwise.OPERATORS,
    **shapes.OPERATORS,
    **windows.OPERATORS,
    "LayerNormalization": attention.layer_norm,
    "RMSNormalization": attention.layer_norm,
    "GroupNormalization": attention.group_norm,
    "InstanceNormalization": attention.instance_norm,
    "Resize": resize,
    "Upsample": resize,
}
"""Functions that read a node, by operator."""
