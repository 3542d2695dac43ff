"""Other tools' ONNX files of QLinear operators → IntegerNetwork.

The subset is what ONNX Runtime's quantizer writes in operator form (QuantFormat.QOperator) for feed-forward
classifiers: QuantizeLinear at the input, the QLinear operators of the default and the com.microsoft domain, operators
that only move integers, and DequantizeLinear at the logits. Between a DequantizeLinear and a QuantizeLinear the
operators that only move numbers are read as moving integers.

Such networks have free float multipliers and any zero points, so they are off the grid. Executors may differ in the
last bit of a rounding; verify measures how often. An operator on two tensors, and a table, is compared with ONNX
Runtime's kernel for every operand pair while the file is read. Nodes that do not fit are refused, with their name and
the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from twoscale._frontends import onnx_model
from twoscale._frontends.onnx_integer.computing import COMPUTING, MICROSOFT
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

OPERATORS = tuple(sorted(_READ))
"""Operators that are read."""


def _is_unknown(node: onnx.NodeProto) -> bool:
    """Return whether an operator is of another tool, such as RequantShift of NEMO and Deeploy."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return domain != "com.microsoft" and not onnx.defs.has(node.op_type, domain)


def read(path: Path, model: onnx.ModelProto) -> IntegerNetwork:
    """Read a foreign model.

    Args:
        path: of the file, for messages.
        model: what is in the file.

    Raises:
        NetworkFileError: it is a float network, or a node does not fit the subset; names the node, its operator and the
        reason.
    """
    operators = {node.op_type for node in model.graph.node}
    if not any(operator.startswith("Q") or "Quantize" in operator for operator in operators):
        if (unknown := next((node for node in model.graph.node if _is_unknown(node)), None)) is not None:
            raise NetworkFileError(
                f"{path} has the operator {unknown.op_type} at {unknown.name or ', '.join(unknown.output)}, which is "
                "neither ONNX's nor ONNX Runtime's; quantize the weights of the float network (.safetensors, .pt or "
                ".pth) with twoscale quantize, or the whole model in operator form (QuantFormat.QOperator)"
            )
        raise NetworkFileError(
            f"{path} is a float network: no operator in it quantizes or is quantized; quantize its weights "
            "(.safetensors, .pt or .pth) with twoscale quantize, or the whole model in operator form "
            "(QuantFormat.QOperator)"
        )
    onnx_model.check(path, model)
    reader = Reader(path, model, OPERATORS)
    for node in model.graph.node:
        if node.op_type in _READ and (node.domain == "com.microsoft") != (node.op_type in MICROSOFT):
            reader.refuse_operator(node)
        if len(node.input) > MICROSOFT.get(node.op_type, len(node.input)) or len(node.output) != 1:
            reader.refuse(node, f"it has {len(node.input)} inputs and {len(node.output)} outputs")
        try:
            _READ.get(node.op_type, Reader.refuse_operator)(reader, node)
        except (ValueError, IndexError, TypeError, ArithmeticError, KeyError) as error:
            reader.refuse(node, f"it cannot be read ({onnx_model.one_line(error)})")
    output = reader.output()
    onnx_model.validate(path, model)
    try:
        return IntegerNetwork(
            name=model.graph.name or path.stem,
            layers=tuple(reader.layers),
            output=output,
            scheme="foreign",
            metadata={"file": path.name, "producer": f"{model.producer_name} {model.producer_version}".strip()},
            source=path.absolute(),
        )
    except QuantizationError as error:
        raise NetworkFileError(f"{path} does not make an integer network: {error}") from error
