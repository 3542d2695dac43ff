"""Files of other tools: those of ONNX Runtime's quantizer are read; nodes that do not fit are refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.formats.onnx_running import reference, run_model
from twoscale._formats import load
from twoscale._frontends.onnx_integer import OPERATORS
from twoscale._ir import layers as n
from twoscale.errors import NetworkFileError

CLASSES = 10


def initializer(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def float_classifier() -> onnx.ModelProto:
    """Return a small CNN with one of everything that the quantizer has an integer operator for."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return initializer(name, rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape))

    node = helper.make_node
    nodes = [
        node("Conv", ["input", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["c2", "p1"], ["a2"]),
        node("Relu", ["a2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["c3"], pads=[0, 1, 1, 1], strides=[2, 2], dilations=[1, 2]),
        node("Clip", ["c3", "zero", "six"], ["r3"]),
        node("Conv", ["r3", "wd"], ["cd"], pads=[1, 1, 1, 1], group=16),
        node("Sigmoid", ["cd"], ["gate"]),
        node("Mul", ["r3", "gate"], ["m3"]),
        node("LeakyRelu", ["m3"], ["l3"], alpha=0.2),
        node("Concat", ["l3", "r3"], ["joined"], axis=1),
        node("Transpose", ["joined"], ["turned"], perm=[0, 1, 3, 2]),
        node("GlobalAveragePool", ["turned"], ["mean"]),
        node("Reshape", ["mean", "shape"], ["flat"]),
        node("Slice", ["flat", "from", "to", "axes"], ["part"]),
        node("Gemm", ["part", "wf", "bf"], ["hidden"], transB=1),
        node("MatMul", ["hidden", "wm"], ["logits"]),
    ]
    for i, each in enumerate(nodes):
        each.name = f"{each.op_type}_{i}"
    constants = [
        weights("w1", 8, 3, 3, 3),
        initializer("b1", rng.normal(0, 0.1, 8)),
        weights("w2", 8, 8, 3, 3),
        initializer("b2", rng.normal(0, 0.1, 8)),
        weights("w3", 16, 8, 3, 3),
        weights("wd", 16, 1, 3, 3),
        weights("wf", 12, 24),
        initializer("bf", rng.normal(0, 0.1, 12)),
        weights("wm", 12, CLASSES),
        initializer("zero", 0),
        initializer("six", 6),
        initializer("from", [4], np.int64),
        initializer("to", [28], np.int64),
        initializer("axes", [1], np.int64),
        initializer("shape", [-1, 32], np.int64),
    ]
    images = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "small", [images], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """A few batches of noise."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._batches: Iterator[NDArray[np.float32]] = iter(rng.normal(0, 1, (4, 4, 3, 16, 16)).astype(np.float32))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


KINDS = {
    "uint8, int8 per channel": (QuantType.QUInt8, QuantType.QInt8, True),
    "uint8, int8": (QuantType.QUInt8, QuantType.QInt8, False),
    "uint8, uint8": (QuantType.QUInt8, QuantType.QUInt8, False),
    "int8, int8 per channel": (QuantType.QInt8, QuantType.QInt8, True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the classifier, quantized in all ways."""
    folder = tmp_path_factory.mktemp("foreign")
    onnx.save(float_classifier(), folder / "float.onnx")
    logging.disable(logging.WARNING)  # "please consider pre-processing before quantization"
    try:
        for kind, (activations, weights, per_channel) in KINDS.items():
            quantize_static(
                folder / "float.onnx",
                folder / f"{kind}.onnx",
                Calibration(),
                quant_format=QuantFormat.QOperator,
                activation_type=activations,
                weight_type=weights,
                per_channel=per_channel,
                extra_options={"WeightSymmetric": True},
            )
    finally:
        logging.disable(logging.NOTSET)
    return folder


def some_images(count: int = 64) -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(0, 1, (count, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_by_onnx_runtime(folder: Path, kind: str, tmp_path: Path) -> None:
    """Every integer tensor of the file against ONNX Runtime on the file.

    Nothing is promised off the grid. Measured on 500 images with ONNX Runtime 1.31 and AVX-512: of 3,083,000 integers
    none differs, in any of these files.
    """
    path = folder / f"{kind}.onnx"
    network = load(path)
    assert (network.scheme, network.name) == ("foreign", "small")
    assert network.metadata == {"file": path.name, "producer": "onnx.quantize 0.1.0"}
    assert not network.on_grid
    assert network.classes == CLASSES
    assert {layer.op for layer in network} >= {"Conv2d", "Linear", "Add", "Mul", "Concat", "AveragePool2d", "Table"}

    model = onnx.load(path)
    images = some_images()
    expected = reference(network, images)
    made = {name for node in model.graph.node for name in node.output if node.op_type != "DequantizeLinear"}
    names = [layer.name for layer in network if layer.name in made and layer.name.endswith("_quantized")]
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, tensor_type(network.spec(name)), None) for name in names
    )
    for level in ("none", "all"):
        found = run_model(model, images, [*names, "logits"], level)
        differing = sum(int((found[name] != expected[name]).sum()) for name in names)
        assert differing <= 0.001 * sum(expected[name].size for name in names)
        logits = network.logits(expected[network.output])
        assert (found["logits"].argmax(1) == logits.argmax(1)).mean() > 0.95

    # It is a network like any other: saved in our form, it is loaded as an equal one.
    network.save(tmp_path / "ours.onnx")
    assert load(tmp_path / "ours.onnx").fingerprint == network.fingerprint


def tensor_type(spec: n.TensorSpec) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)))


# Hand-made graphs.


class Draft:
    """A graph of QLinear operators that tests modify."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.input_shape: tuple[int | str, ...] = ("N", 2, 4, 4)
        self.constant("s", 0.5)
        self.constant("z", 128, np.uint8)
        self.node("QuantizeLinear", ["images", "s", "z"], "x")

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = initializer(name, values, dtype)
        return name

    def node(self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=f"the_{output}", domain=domain, **attributes)
        )
        return output

    def conv(self, x: str = "x", output: str = "y", **attributes: Any) -> str:
        if "w" not in self.constants:
            self.constant("w", np.random.default_rng(0).integers(-127, 128, (3, 2, 3, 3)), np.int8)
        self.constant("ws", [0.01, 0.02, 0.03])
        self.constant("wz", [0, 0, 0], np.int8)
        return self.node("QLinearConv", [x, "s", "z", "w", "ws", "wz", "s", "z"], output, **attributes)

    def microsoft(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        return self.node(operator, inputs, output, "com.microsoft", **attributes)

    def finish(self, q: str, scale: str = "s", zero: str = "z") -> None:
        self.node("Flatten", [q], "flat")
        self.node("DequantizeLinear", ["flat", scale, zero], "logits")

    def save(self, path: Path) -> Path:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, self.input_shape)
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None])
        graph = helper.make_graph(self.nodes, "draft", [images], [logits], list(self.constants.values()))
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


def agrees(path: Path, shape: tuple[int, ...] = (5, 2, 4, 4)) -> None:
    network = load(path)
    images = np.random.default_rng(3).normal(0, 40, shape).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": images})
    assert np.array_equal(network(images), expected)


def test_multipliers_on_the_grid_are_recognized(tmp_path: Path) -> None:
    draft = Draft()
    draft.constant("s", 1)
    draft.conv()
    draft.constant("ws", np.array([100, 200, 301]) / 2**16)
    draft.finish("y")
    path = draft.save(tmp_path / "a.onnx")
    network = load(path)
    assert network.on_grid
    (conv,) = (layer for layer in network if isinstance(layer, n.Conv2d))
    assert conv.multiplier is not None
    assert conv.multiplier.integers.tolist() == [100, 200, 301]
    agrees(path)


def test_moving_operators_are_read_on_real_numbers_too(tmp_path: Path) -> None:
    draft = Draft()
    draft.node("DequantizeLinear", ["x", "s", "z"], "r")
    draft.node("Transpose", ["r"], "t", perm=[0, 2, 1, 3])
    draft.node("MaxPool", ["t"], "m", kernel_shape=[2, 1], strides=[2, 1])
    draft.node("Constant", [], "target", value=initializer("target", [0, -1, 8], np.int64))
    draft.node("Reshape", ["m", "target"], "b")
    draft.node("Identity", ["b"], "i")
    draft.node("QuantizeLinear", ["i", "s", "z"], "q")
    draft.finish("q")
    path = draft.save(tmp_path / "a.onnx")
    assert [layer.op for layer in load(path)] == ["QuantizeInput", "Permute", "MaxPool2d", "Reshape", "Reshape"]
    agrees(path)


def test_integers_of_all_operators(tmp_path: Path) -> None:
    draft = Draft()
    draft.constant("s2", 0.7)
    draft.constant("z2", 100, np.uint8)
    draft.conv(pads=[1, 1, 1, 1])
    draft.node("Clip", ["y", draft.constant("lo", 100, np.uint8), draft.constant("hi", 200, np.uint8)], "c")
    draft.microsoft("QLinearAveragePool", ["c", "s", "z", "s2", "z2"], "p", kernel_shape=[2, 2], strides=[2, 2])
    draft.node("Squeeze", [draft.microsoft("QLinearGlobalAveragePool", ["p", "s2", "z2", "s", "z"], "g"),
                           draft.constant("two", [2, 3], np.int64)], "v")  # fmt: skip
    draft.constant("b", [[1, -2, 3, 4], [5, 6, 7, 8], [9, 1, 2, 3]], np.int8)
    draft.constant("bz", 0, np.int8)
    draft.constant("bs", 0.1)
    draft.microsoft("QGemm", ["v", "s", "z", "b", "bs", "bz"], "logits")
    path = draft.save(tmp_path / "a.onnx")
    network = load(path)
    assert network.spec(network.output).dtype == "int32"
    agrees(path)


def refused(draft: Draft, tmp_path: Path) -> str:
    path = draft.save(tmp_path / "a.onnx")
    with pytest.raises(NetworkFileError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def of_node(change: Callable[[Draft], None], tmp_path: Path, output: str = "y") -> str:
    """Return why the node that makes ``output`` is refused."""
    draft = Draft()
    change(draft)
    message = refused(draft, tmp_path)
    assert f"node the_{output} (" in message
    return message


def test_a_float_operator(tmp_path: Path) -> None:
    def softmax(draft: Draft) -> None:
        draft.node("DequantizeLinear", ["x", "s", "z"], "r")
        draft.node("Softmax", ["r"], "y")

    message = of_node(softmax, tmp_path)
    assert "(Softmax): not an operator on integers that twoscale reads" in message
    assert "QuantFormat.QOperator" in message
    assert all(operator in message for operator in OPERATORS)


def test_a_float_model(tmp_path: Path) -> None:
    onnx.save(float_classifier(), tmp_path / "a.onnx")
    with pytest.raises(NetworkFileError, match=r"a\.onnx is a float network: .* with twoscale quantize, or"):
        load(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.conv(auto_pad="SAME_UPPER"), "auto_pad = SAME_UPPER is not supported; write the pads"),
        (lambda d: (d.constant("w", np.zeros((3, 2, 3)), np.int8), d.conv()), "only two-dimensional convolutions"),
        (lambda d: (d.conv(), d.constant("ws", [0.1, 0.2])), "it has 2 weight scales, expected 1 or 3"),
        (lambda d: (d.conv(), d.constant("wz", [100, 0, 0], np.int8)), "beyond 8 signed bits"),
        (lambda d: (d.conv(), d.constant("w", np.zeros((3, 2, 3, 3)))), "its weights are float32, expected int8"),
        (lambda d: (d.conv(), d.constants.pop("ws")), "its input 4 (ws) must be a constant"),
        (lambda d: d.node("MaxPool", ["x"], "y", kernel_shape=[2, 2], ceil_mode=2), "ceil_mode = 2; expected 0 or 1"),
        (lambda d: d.node("MaxPool", ["x"], "y", kernel_shape=[2]), "expected height and width"),
        (lambda d: d.node("MaxPool", ["elsewhere"], "y", kernel_shape=[2, 2]), "its input 0 (elsewhere) is not made"),
        (lambda d: d.node("Transpose", ["x"], "y", perm=[1, 0, 2, 3]), "perm = [1, 0, 2, 3] moves the batch"),
        (lambda d: d.node("Flatten", ["x"], "y", axis=2), "axis = 2 is not supported, only 1"),
        (
            lambda d: d.node("Reshape", ["x", d.constant("t", [2, 2, 2, 4], np.int64)], "y"),
            "it reshapes ('N', 2, 4, 4) to (2, 2, 2, 4); the batch must stay",
        ),
        (
            lambda d: d.node("QLinearConv", ["x", d.constant("s2", 0.25), "z", "w", "ws", "wz", "s", "z"], "y"),
            "it reads x with scale 0.25 and zero point 128, but that was written with 0.5 and 128",
        ),
        (
            lambda d: d.microsoft(
                "QLinearAveragePool", ["x", "s", "z", "s", "z"], "y", kernel_shape=[2, 2], pads=[1, 1, 0, 0]
            ),
            "padding that does not count in the mean",
        ),
        (
            lambda d: d.node("QuantizeLinear", ["x", "s", d.constant("z16", 0, np.uint16)], "y"),
            "its output must be 8 bits wide",
        ),
        (lambda d: d.node("Squeeze", ["x", d.constant("t", [1], np.int64)], "y"), "axes [1] are not all of size 1"),
        (
            lambda d: d.node("Slice", ["x", *(d.constant(k, [0, 0], np.int64) for k in "abc")], "y"),
            "only one dimension, not the batch",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change: Callable[[Draft], None], reason: str, tmp_path: Path) -> None:
    assert reason in of_node(change, tmp_path)


def test_a_residual_of_another_shape(tmp_path: Path) -> None:
    draft = Draft()
    draft.conv()
    draft.microsoft("QLinearAdd", ["x", "s", "z", "y", "s", "z", "s", "z"], "sum")
    draft.finish("sum")
    message = refused(draft, tmp_path)
    assert "does not make an integer network: layer sum: Add does not fit its inputs (2, 4, 4), (3, 2, 2)" in message


@pytest.mark.parametrize("shape", [("N", "C", 4, 4), ("N", 8), ("N", 2, 0, 4)])
def test_images_of_unknown_size(shape: tuple[int | str, ...], tmp_path: Path) -> None:
    draft = Draft()
    draft.input_shape = shape
    draft.finish("x")
    assert "the input images is not float32 images (N, C, H, W) of known size" in refused(draft, tmp_path)


def test_an_output_without_integers(tmp_path: Path) -> None:
    draft = Draft()
    draft.node("Constant", [], "logits", value=initializer("logits", [1, 2]))
    assert "no integers lead to the output logits" in refused(draft, tmp_path)


def test_several_inputs(tmp_path: Path) -> None:
    path = Draft().save(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    onnx.save(model, path)
    with pytest.raises(NetworkFileError, match="has 2 inputs and 1 outputs; expected one input and an output"):
        load(path)


def test_an_invalid_graph(tmp_path: Path) -> None:
    draft = Draft()
    draft.node("MaxPool", [], "y", kernel_shape=[2, 2])
    assert "node the_y (MaxPool): its input 0 (missing) is not made of the quantized images" in refused(draft, tmp_path)
