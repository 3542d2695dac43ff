"""ONNX's own node tests through the float front-end: ``python -m benchmarks.onnx_nodes``.

The onnx package defines one or more tests for each operator: a graph of one node, its inputs and the expected outputs.
Every test of an operator that the front-end reads is tried: the first input is the batch, the others are constants. The
outputs of the float network must be those of the test, within ONNX's own tolerance. What is refused is counted with the
reason. The record is results/onnx_nodes.json; the table is the one in docs/onnx.md.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from benchmarks.common import write_result
from twoscale._frontends import float_graph
from twoscale._frontends.onnx_float import OPERATORS
from twoscale._ir.float_module import GraphModule
from twoscale.errors import TwoscaleError

PASSED, WRONG, LEFT_OUT = "passed", "wrong", "left out at the end"
_REFUSED = re.compile(r": node \S* ?(.*?) has no integer form here")
_REASONS = (
    ("batch", "over or between the images of a batch"),
    ("mixes", "over or between the images of a batch"),
    ("does not depend on the images", "the result does not depend on the input"),
    ("which is not read here", "constants of other types"),
    ("sizes", "the result does not depend on the input"),
)


_BY_VALUE = {
    "Abs", "Add", "Asinh", "Atan", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg",
    "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Sqrt",
    "Sub", "Sum", "Tanh", "ThresholdedRelu",
}  # fmt: skip
"""Operators that compute each value by itself. A vector as input then becomes a batch of one."""


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    operator: str
    test: str
    outcome: str
    """PASSED, WRONG, LEFT_OUT, or why it is refused."""


@dataclass(frozen=True)
class Row:
    """The tests of one operator."""

    operator: str
    passed: int
    tests: int
    reasons: str
    """Why the others are refused, with the number of tests."""


def outcomes(wanted: set[str] | None = None) -> Iterator[Outcome]:
    """Try every test, or those that are named."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of making the tests
        cases: list[Any] = collect_testcases(None)
        for case in cases:
            (node, *others) = case.model.graph.node
            if (
                others
                or node.domain
                or node.op_type not in OPERATORS
                or (wanted is not None and case.name not in wanted)
            ):
                continue
            yield Outcome(node.op_type, case.name, _outcome(case, Path(folder) / "case.onnx"))


def _outcome(case: Any, path: Path) -> str:
    inputs, outputs = ([_array(value) for value in values] for values in case.data_sets[0])
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    if any(value is None for value in (*inputs, *outputs)) or inputs[0].dtype != np.float32:
        return "inputs that are not float32"
    if inputs[0].ndim < 2:
        if model.graph.node[0].op_type not in _BY_VALUE or any(value.ndim > 1 for value in inputs):
            return "inputs without a batch"
        inputs[0], outputs = inputs[0].reshape(1, -1), [value.reshape(1, -1) for value in outputs]
        first = model.graph.input[0]
        first.CopyFrom(onnx.helper.make_tensor_value_info(first.name, onnx.TensorProto.FLOAT, inputs[0].shape))
        for value in model.graph.output:
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [None, None]))
    if model.graph.node[0].op_type == "LayerNormalization":  # the others are its statistics
        del model.graph.output[1:]
        del outputs[1:]
    names = [value.name for value in model.graph.input]
    del model.graph.input[1:]
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in zip(names[1:], inputs[1:], strict=True)
    )
    onnx.save(model, path)
    try:
        graph = float_graph(path, inputs[0])
    except TwoscaleError as error:
        return _reason(str(error))
    with torch.no_grad():
        found = GraphModule(graph).run(torch.from_numpy(inputs[0].copy()))
    if model.graph.node[0].op_type in ("Softmax", "LogSoftmax"):
        return LEFT_OUT
    for name, expected in zip(graph.outputs, outputs, strict=True):
        values = found[name].numpy()
        if values.shape != expected.shape or not np.allclose(values, expected, rtol=1e-3, atol=1e-6):
            return WRONG
    return PASSED


def _array(value: Any) -> Any:
    """Return numbers as an array; None for sequences and values that are left out."""
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None


def _reason(message: str) -> str:
    """Return why a test is refused in a few words, the same for tests that differ only by numbers."""
    if found := _REFUSED.search(message):
        return re.sub(r"\(?\[?[\d.]+(, ?[\d.]*)*\]?\)?", "…", found[1])
    return next((reason for part, reason in _REASONS if part in message), "other")


def rows(found: list[Outcome]) -> list[Row]:
    """Return the tests of each operator, counted."""
    made = []
    for operator in sorted({outcome.operator for outcome in found}):
        own = [outcome.outcome for outcome in found if outcome.operator == operator]
        others = Counter(outcome for outcome in own if outcome != PASSED)
        reasons = "; ".join(f"{count}: {reason}" for reason, count in sorted(others.items()))
        made.append(Row(operator, own.count(PASSED), len(own), reasons))
    return made


def markdown(table: list[Row]) -> str:
    """Return the table for docs/onnx.md."""
    lines = ["| operator | passed | of | the others |", "|---|--:|--:|---|"]
    lines += [f"| {row.operator} | {row.passed} | {row.tests} | {row.reasons} |" for row in table]
    return "\n".join(lines)


def main() -> None:
    """Try all tests, print the table and record it."""
    found = list(outcomes())
    table = rows(found)
    print(markdown(table))
    wrong = [outcome.test for outcome in found if outcome.outcome == WRONG]
    passed = [outcome.test for outcome in found if outcome.outcome == PASSED]
    print(
        write_result("onnx_nodes", {"rows": [asdict(row) for row in table], "passed": passed, "wrong": wrong}, "onnx")
    )


if __name__ == "__main__":
    main()
