"""Other tools' ONNX files of QLinear operators → IntegerNetwork.

The subset is what ONNX Runtime's quantizer writes for feed-forward classifiers. In operator form
(QuantFormat.QOperator): QuantizeLinear at the input, the QLinear operators of the default and the com.microsoft domain,
operators that only move integers, and DequantizeLinear at the logits. Between a DequantizeLinear and a QuantizeLinear
the operators that only move numbers are read as moving integers. In QDQ form: float operators between the two, read as
the operators on integers that ONNX Runtime fuses them into. Where its optimizer leaves one in floating point (int8
activations on x86), integers next to a tie may differ by one; verify counts them.

Such networks have free float multipliers and any zero points, so they are off the grid. Executors may differ in the
last bit of a rounding; verify measures how often. An operator on two tensors, and a table, is compared with ONNX
Runtime's kernel for every operand pair while the file is read. Nodes that do not fit are refused, with their name and
the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx

from twoscale._frontends import onnx_model
from twoscale._frontends.onnx_integer.computing import COMPUTING, MICROSOFT, quantize_constant, read_function
from twoscale._frontends.onnx_integer.fusing import FUNCTION, fused
from twoscale._frontends.onnx_integer.moving import MOVING
from twoscale._frontends.onnx_integer.reader import Reader
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import NetworkFileError, QuantizationError

__all__ = ["OPERATORS", "read"]

_READ: dict[str, Callable[[Reader, onnx.NodeProto], None]] = {
    "Constant": Reader.read_constant,
    **COMPUTING,
    **MOVING,
}

_DAMAGE = (ValueError, IndexError, TypeError, ArithmeticError, KeyError, AttributeError)
"""What reading a damaged graph raises."""

OPERATORS = tuple(sorted(_READ))
"""Operators that are read."""


def read(path: Path, model: onnx.ModelProto) -> IntegerNetwork:
    """Read a foreign model.

    Args:
        path: of the file, for messages.
        model: what is in the file.

    Raises:
        NetworkFileError: it is a float network, or a node does not fit the subset; names the node, its operator and the
        reason.
    """
    if not onnx_model.is_quantized(model):
        onnx_model.refuse_unknown_operators(path, model)
        raise NetworkFileError(
            f"{path} is a float network: no operator in it quantizes or is quantized; quantize it with "
            "twoscale quantize, or with another tool in operator form (QuantFormat.QOperator)"
        )
    onnx_model.check(path, model)
    reader = Reader(path, model, OPERATORS)
    nodes = [node for node in model.graph.node if not _try(reader, node, _read_constant)]
    for node in nodes:
        _refuse_scales_per_channel(reader, node)
    try:
        steps = fused(nodes, reader.constants, [value.name for value in model.graph.output], reader.opset)
    except _DAMAGE as error:
        raise NetworkFileError(
            f"{path}: its quantization cannot be read ({onnx_model.one_line(error)}); export the model again"
        ) from error
    for step in steps:
        reader.step = step
        _try(reader, step.node, _read_step)
    outputs = reader.outputs()
    onnx_model.validate(path, model)
    try:
        return IntegerNetwork(
            name=model.graph.name or path.stem,
            layers=tuple(reader.layers),
            outputs=outputs,
            scheme="foreign",
            metadata={
                "file": path.name,
                "producer": f"{model.producer_name} {model.producer_version}".strip(),
                **({"form": "qdq"} if any(step.operator and step.node.op_type != FUNCTION for step in steps) else {}),
            },
            source=path.absolute(),
        )
    except QuantizationError as error:
        raise NetworkFileError(f"{path} does not make an integer network: {error}") from error


def _refuse_scales_per_channel(reader: Reader, node: onnx.NodeProto) -> None:
    """Refuse an activation with several scales. NNCF gives them to the inputs of depthwise convolutions."""
    scale = reader.constants.get(node.input[1]) if node.op_type == "QuantizeLinear" and len(node.input) > 1 else None
    if scale is not None and math.prod(scale.dims) > 1:
        reader.refuse(
            node,
            f"it quantizes an activation with {math.prod(scale.dims)} scales, expected one; quantize activations per "
            "tensor (NNCF: QuantizationParameters(per_channel=False) for activations)",
        )


def _try(reader: Reader, node: onnx.NodeProto, read_node: Callable[[Reader, onnx.NodeProto], bool]) -> bool:
    """Read a node; however it is wrong, the error names it."""
    try:
        return read_node(reader, node)
    except _DAMAGE as error:
        reader.refuse(node, f"it cannot be read ({onnx_model.one_line(error)})")


def _read_constant(reader: Reader, node: onnx.NodeProto) -> bool:
    """Read a node that depends on nothing but constants; return whether it is one."""
    if node.op_type == "Constant":
        reader.read_constant(node)
    elif node.op_type == "QuantizeLinear" and node.input and node.input[0] in reader.constants:
        quantize_constant(reader, node)
    else:
        return reader.fold(node)
    return True


def _read_step(reader: Reader, node: onnx.NodeProto) -> bool:
    """Read a node that depends on the images, or only on their shape."""
    is_fused = reader.step.operator is not None
    if not is_fused and reader.fold(node):
        return True
    if node.op_type in _READ and (node.domain == "com.microsoft") != (node.op_type in MICROSOFT):
        reader.refuse_operator(node)
    if len(node.input) > MICROSOFT.get(node.op_type, len(node.input)) or len(node.output) != 1:
        reader.refuse(node, f"it has {len(node.input)} inputs and {len(node.output)} outputs")
    handler = read_function if is_fused and node.op_type == FUNCTION else _READ.get(node.op_type)
    if handler is None:
        reader.refuse_operator(node)
    handler(reader, node)
    return True
