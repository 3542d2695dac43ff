"""Models in QDQ form → the QLinear operators that ONNX Runtime fuses their nodes into.

In QDQ form a float operator stands between the DequantizeLinear nodes of its operands and the QuantizeLinear of its
result. ONNX Runtime replaces the three by one operator on integers, where it has one, and so does this. A function of
one tensor becomes a table of what ONNX Runtime computes with the three nodes. What it would compute in floating point
is left as it is, and refused by the reader.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["FUNCTION", "Step", "chain_of", "fused"]

FUNCTION = "Function"
"""Operator type of a function of one tensor: input, its scale and zero point, the output's scale and zero point."""

_FUNCTIONS = frozenset({
    "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg", "Relu", "Selu",
    "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
})  # fmt: skip
_BINARY = {"Add": "QLinearAdd", "Mul": "QLinearMul"}
_POOLS = {"AveragePool": "QLinearAveragePool", "GlobalAveragePool": "QLinearGlobalAveragePool"}
_MOVING = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that do the same to integers as to the real values that these stand for."""
_BOUNDS = {"Relu", "Clip"}
"""Operators that ONNX Runtime drops before a QuantizeLinear whose range is within their bounds."""


_TAKING_OPERANDS = frozenset({"Conv", "Gemm", "MatMul", "Concat", *_BINARY, *_POOLS})


@dataclass(frozen=True)
class Step:
    """A node to read, and the float operator that it stands for, if it was fused."""

    node: onnx.NodeProto
    operator: onnx.NodeProto | None = None


def fused(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, onnx.TensorProto], outputs: Collection[str], opset: int
) -> list[Step]:
    """Return the nodes with QDQ groups replaced by operators on integers.

    DequantizeLinear nodes that nothing reads any more are left in; they are read without an effect.

    Args:
        nodes: those that depend on the images.
        constants: by name. The integers of biases that the file holds as real numbers are added.
        outputs: names of the model's outputs.
        opset: version of the standard operators.
    """
    return _Fuser(nodes, constants, outputs, opset).steps()


class _Fuser:
    def __init__(
        self,
        nodes: Sequence[onnx.NodeProto],
        constants: dict[str, onnx.TensorProto],
        outputs: Collection[str],
        opset: int,
    ) -> None:
        self.nodes, self.constants, self.outputs, self.opset = nodes, constants, outputs, opset
        self.producers = {name: node for node in nodes for name in node.output}
        self.nodes = self._moved_before_dequantizing()
        self._count()
        self.nodes = self._quantized_before_moving()
        self._count()

    def _count(self) -> None:
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.readers = Counter(name for node in self.nodes for name in node.input)

    def steps(self) -> list[Step]:
        replaced: dict[int, Step] = {}
        dropped: set[int] = set()
        for node in self.nodes:
            if node.op_type != "QuantizeLinear" or not node.input:
                continue
            bounds: list[onnx.NodeProto] = []
            operator = self.producers.get(node.input[0])
            while operator is not None and operator.op_type in _BOUNDS and self._bounds_nothing(operator, node):
                bounds.append(operator)
                operator = self.producers.get(operator.input[0])
            if operator is None or not all(self._is_read_once(each) for each in (operator, *bounds)):
                continue
            single = self._integer_operator(operator, node)
            convolution = None
            if single is None and (summed := self._convolution_of_sum(operator)) is not None:
                convolution, residual = summed
                if (alone := self._integer_operator(convolution, node)) is not None:
                    single = _with_residual(alone, residual)
            if single is not None:
                replaced[id(node)] = Step(single, convolution or operator)
                dropped |= {id(each) for each in (operator, convolution, *bounds) if each is not None}
        for node in self.nodes:
            if id(node) not in dropped and node.op_type == "Gemm" and (single := self._real_gemm(node)) is not None:
                replaced[id(node)] = Step(single)
        return [replaced.get(id(node), Step(node)) for node in self.nodes if id(node) not in dropped]

    def _moved_before_dequantizing(self) -> list[onnx.NodeProto]:
        """Return the nodes, in which what only moves values comes before DequantizeLinear if operands are behind it.

        NNCF writes one pair of QuantizeLinear and DequantizeLinear before a max pool or a flattening, and none behind.
        """
        by_input: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                by_input.setdefault(name, []).append(node)
        operand: set[str] = set()  # tensors that only operators with operands read, at most through moves
        for node in reversed(self.nodes):
            for name in node.output:
                readers = by_input.get(name, [])
                reads = [
                    reader.op_type in _TAKING_OPERANDS
                    or (reader.op_type in _MOVING and reader.input[0] == name and reader.output[0] in operand)
                    for reader in readers
                ]
                if reads and all(reads) and name not in self.outputs:
                    operand.add(name)
        made: list[onnx.NodeProto] = []
        for node in self.nodes:
            source = self._dequantized(node.input[0]) if node.op_type in _MOVING and node.input else None
            scale = None if source is None else self._scale(source)
            if source is None or scale is None or scale.size != 1 or node.output[0] not in operand:
                made.append(node)
                continue
            integers = f"{node.output[0]} before dequantizing"
            moved = _renamed(node, [source.input[0], *node.input[1:]], integers)
            dequantized = helper.make_node(
                "DequantizeLinear", [integers, *source.input[1:]], [node.output[0]], name=node.name
            )
            made += [moved, dequantized]
            self.producers[node.output[0]] = dequantized
        return made

    def _quantized_before_moving(self) -> list[onnx.NodeProto]:
        """Return the nodes, in which QuantizeLinear comes before what only moves values.

        torchao writes a convolution, a max pool, a flattening, and one QuantizeLinear behind them. Rounding is
        monotonic, so the largest of the rounded values is the largest value rounded.
        """
        made: dict[int, list[onnx.NodeProto]] = {}
        for q in self.nodes:
            moves: list[onnx.NodeProto] = []
            name = q.input[0] if q.op_type == "QuantizeLinear" and q.input else ""
            while (
                (node := self.producers.get(name)) is not None and node.op_type in _MOVING and self._is_read_once(node)
            ):
                moves.append(node)
                name = node.input[0]
            if not moves or node is None or node.op_type == "DequantizeLinear" or not self._is_read_once(node):
                continue
            integers = f"{q.output[0]} before moving"
            made[id(q)] = []
            made[id(moves[-1])] = [_renamed(q, [name, *q.input[1:]], integers)]
            for move in reversed(moves):
                output = q.output[0] if move is moves[0] else f"{move.output[0]} of integers"
                moved = _renamed(move, [integers, *move.input[1:]], output)
                made[id(move)] = [*made.get(id(move), []), moved]
                integers = output
        return [each for node in self.nodes for each in made.get(id(node), [node])]

    def _convolution_of_sum(self, add: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
        """Return the convolution and the DequantizeLinear whose real results a node adds, or None."""
        if add.op_type != "Add" or len(add.input) != 2:
            return None
        for one, other in (add.input, reversed(add.input)):
            convolution, residual = self.producers.get(one), self._dequantized(other)
            if (
                convolution is not None
                and residual is not None
                and convolution.op_type == "Conv"
                and self._is_read_once(convolution)
            ):
                return convolution, residual
        return None

    def _is_read_once(self, node: onnx.NodeProto) -> bool:
        name = node.output[0] if len(node.output) == 1 else ""
        return name not in self.outputs and self.readers[name] == 1

    def _dequantized(self, name: str) -> onnx.NodeProto | None:
        node = self.producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" and len(node.input) > 1 else None

    def _value(self, name: str) -> NDArray[Any] | None:
        return np.asarray(numpy_helper.to_array(self.constants[name])) if name in self.constants else None

    def _scale(self, node: onnx.NodeProto) -> NDArray[Any] | None:
        return self._value(node.input[1])

    def _axis(self, node: onnx.NodeProto, rank: int) -> int:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        return axis % rank if rank else 0

    def _integer_operator(self, operator: onnx.NodeProto, q: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the operator on integers that computes what ``q`` gives, or None."""
        if operator.domain not in ("", "ai.onnx") or not operator.input:
            return None
        kind = operator.op_type
        ends = _quantization(q)
        operands = [self._dequantized(name) for name in operator.input if name]
        if kind in ("Conv", "Gemm", "MatMul"):
            return self._with_weights(operator, ends, q.output[0])
        first = operands[0]
        if first is None:
            return None
        if kind in _FUNCTIONS:
            return _node(FUNCTION, [*_operand(first), *ends], q.output[0], operator, attributes=False)
        if any(operand is None for operand in operands):
            return None
        triples = [name for operand in operands if operand is not None for name in _operand(operand)]
        if kind in _BINARY and len(operands) == 2:
            return _node(_BINARY[kind], [*triples, *ends], q.output[0], operator, domain="com.microsoft")
        if kind in _POOLS:
            return _node(_POOLS[kind], [*triples, *ends], q.output[0], operator, domain="com.microsoft")
        if kind == "Concat":
            return _node("QLinearConcat", [*ends, *triples], q.output[0], operator, domain="com.microsoft")
        return None

    def _with_weights(self, operator: onnx.NodeProto, ends: list[str], output: str) -> onnx.NodeProto | None:
        """Return a convolution or a product with a matrix whose bias is in steps of the accumulators."""
        kind = operator.op_type
        x, weight = (self._dequantized(name) for name in operator.input[:2])
        if (
            x is None
            or weight is None
            or weight.input[0] not in self.constants
            or operator.input[0] == operator.input[1]
        ):
            return None
        rank = len(self.constants[weight.input[0]].dims)
        transposed = any(a.name == "transB" and a.i for a in operator.attribute)
        channels = 0 if kind == "Conv" or transposed else rank - 1
        w_scale = self._scale(weight)
        if w_scale is None or (w_scale.size > 1 and self._axis(weight, rank) != channels):
            return None
        bias = self._integer_bias(operator, x, w_scale)
        if bias is None:
            return None
        parts = [*_operand(x), *_operand(weight)]
        if kind == "Conv":
            return _node("QLinearConv", [*parts, *ends, *bias], output, operator)
        if kind == "MatMul":
            return _node("QLinearMatMul", [*parts, *ends], output, operator)
        beta = next((a.f for a in operator.attribute if a.name == "beta"), 1.0)
        if beta != 1.0 and bias:
            return None
        names = [*parts, *(bias or [""]), *ends]
        while names and not names[-1]:
            names.pop()
        return _node("QGemm", names, output, operator, domain="com.microsoft", without=("beta",))

    def _real_gemm(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the last layer, where its real result is the model's output."""
        return self._with_weights(node, [], node.output[0]) if node.output[0] in self.outputs else None

    def _integer_bias(self, operator: onnx.NodeProto, x: onnx.NodeProto, w_scale: NDArray[Any]) -> list[str] | None:
        """Return the name of the int32 bias, an empty list where there is none, or None where it does not fit."""
        if len(operator.input) < 3 or not operator.input[2]:
            return []
        x_scale = self._scale(x)
        if x_scale is None or x_scale.size != 1:
            return None
        alpha = next((np.float32(a.f) for a in operator.attribute if a.name == "alpha"), np.float32(1))
        expected = alpha * x_scale.reshape(-1) * w_scale.reshape(-1)
        real = self._value(operator.input[2])
        if real is not None:
            return self._quantized_bias(operator, real, expected)
        bias = self._dequantized(operator.input[2])
        if bias is None or bias.input[0] not in self.constants:
            return None
        scale, zero = self._scale(bias), self._value(bias.input[2]) if len(bias.input) > 2 and bias.input[2] else None
        if scale is None or (zero is not None and zero.any()):
            return None
        if expected.shape[0] != scale.size or not np.allclose(scale.reshape(-1), expected, rtol=1e-6, atol=0):
            return None
        return [bias.input[0]]

    def _quantized_bias(
        self, operator: onnx.NodeProto, real: NDArray[Any], scale: NDArray[np.float32]
    ) -> list[str] | None:
        """Return the name of a bias that the file holds in float32, as NNCF's and torch's do, in steps of the sums."""
        if real.dtype != np.float32 or real.ndim != 1 or scale.size not in (1, real.size) or not (scale > 0).all():
            return None
        steps = np.rint(real / scale)
        if not (np.abs(steps) < 2.0**31).all():  # nor NaN
            return None
        name = f"{operator.input[2]} of {operator.output[0]} in steps"
        self.constants[name] = numpy_helper.from_array(steps.astype(np.int32), name)
        return [name]

    def _bounds_nothing(self, node: onnx.NodeProto, q: onnx.NodeProto) -> bool:
        """Whether every real number that ``q`` can hold is within the bounds of a Relu or Clip before it."""
        scale = self._scale(q) if len(q.input) > 1 else None
        if scale is None or scale.size != 1 or scale.dtype != np.float32:
            return False
        zero = self._value(q.input[2]) if len(q.input) > 2 and q.input[2] else np.zeros((), np.uint8)
        if zero is None or zero.size != 1 or zero.dtype not in (np.uint8, np.int8):
            return False
        limits = np.iinfo(zero.dtype)
        lowest, highest = ((bound - zero.item()) * float(scale.item()) for bound in (limits.min, limits.max))
        if node.op_type == "Relu":
            return lowest >= 0
        lower, upper = -math.inf, math.inf
        if self.opset < 11:
            lower = next((a.f for a in node.attribute if a.name == "min"), lower)
            upper = next((a.f for a in node.attribute if a.name == "max"), upper)
        else:
            bounds = [self._value(name) if name else None for name in (*node.input[1:3], "", "")[:2]]
            if any(name and value is None for name, value in zip((*node.input[1:3], "", ""), bounds, strict=False)):
                return False
            lower = lower if bounds[0] is None else float(bounds[0].reshape(-1)[0])
            upper = upper if bounds[1] is None else float(bounds[1].reshape(-1)[0])
        return lower <= lowest and highest <= upper


def _quantization(node: onnx.NodeProto) -> list[str]:
    """Return the names of the scale and the zero point of a QuantizeLinear or DequantizeLinear."""
    return [node.input[1] if len(node.input) > 1 else "", node.input[2] if len(node.input) > 2 else ""]


def _operand(node: onnx.NodeProto) -> list[str]:
    return [node.input[0], *_quantization(node)]


def _with_residual(convolution: onnx.NodeProto, residual: onnx.NodeProto) -> onnx.NodeProto:
    """Return a QLinearConv with three more inputs: a tensor that is added before the result is quantized."""
    bias = [""] * (9 - len(convolution.input))
    return _renamed(convolution, [*convolution.input, *bias, *_operand(residual)], convolution.output[0])


def _node(
    kind: str,
    inputs: Sequence[str],
    output: str,
    operator: onnx.NodeProto,
    domain: str = "",
    attributes: bool = True,
    without: Collection[str] = (),
) -> onnx.NodeProto:
    made = helper.make_node(kind, inputs, [output], name=operator.name or output, domain=domain)
    if attributes:
        made.attribute.extend(attribute for attribute in operator.attribute if attribute.name not in without)
    return made


def chain_of(step: Step, operands: Collection[int]) -> list[onnx.NodeProto]:
    """Return the nodes as the file has them; for a fused one: dequantize the operands, compute, quantize.

    The integers at the inputs of the indices ``operands`` are named "operand0" and so on, the result "result".
    """
    node, operator = step.node, step.operator
    names = [f"operand{index}" if index in operands else name for index, name in enumerate(node.input)]
    if operator is None:
        return [_renamed(node, names, "result")]
    ends = names[:2] if node.op_type == "QLinearConcat" else names[-2:]
    indices = (0, 3) if operator.op_type in _BINARY else sorted(operands)
    reals = [f"real{index}" for index in indices]
    chain = [
        helper.make_node("DequantizeLinear", _trimmed(names[index : index + 3]), [f"real{index}"]) for index in indices
    ]
    rest = [] if operator.op_type in (*_BINARY, "Concat") else operator.input[1:]
    chain.append(_renamed(operator, [*reals, *rest], "real"))
    chain.append(helper.make_node("QuantizeLinear", _trimmed(["real", *ends]), ["result"]))
    return chain


def _renamed(node: onnx.NodeProto, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    other = onnx.NodeProto()
    other.CopyFrom(node)
    del other.input[:], other.output[:]
    other.input.extend(inputs)
    other.output.append(output)
    return other


def _trimmed(names: Sequence[str]) -> list[str]:
    """Return the names without empty ones at the end."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept
