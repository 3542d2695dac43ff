"""Files in QDQ form, and operators of other tools: ONNX Runtime's integers on the same file, tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

import twoscale
from tests.formats.test_onnx_foreign import Calibration, Draft, float_classifier, initializer, refused, some_images
from twoscale._ir import layers as n
from twoscale.errors import NetworkFileError

U8, S8 = QuantType.QUInt8, QuantType.QInt8
KINDS: dict[str, tuple[QuantType, QuantType, bool, bool]] = {
    "u8 s8 per channel": (U8, S8, True, False),
    "u8 s8": (U8, S8, False, False),
    "u8 u8": (U8, U8, False, False),
    "s8 s8 per channel": (S8, S8, True, False),
    "s8 s8 symmetric per channel": (S8, S8, True, True),
    "s8 s8 symmetric": (S8, S8, False, True),
}


def quantized(folder: Path, kind: str, form: QuantFormat, model: onnx.ModelProto | None = None) -> Path:
    activations, weights, per_channel, symmetric = KINDS[kind]
    onnx.save(float_classifier() if model is None else model, folder / "float.onnx")
    logging.disable(logging.WARNING)  # "please consider pre-processing before quantization"
    try:
        quantize_static(
            folder / "float.onnx",
            folder / "quantized.onnx",
            Calibration(),
            quant_format=form,
            activation_type=activations,
            weight_type=weights,
            per_channel=per_channel,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": symmetric},
        )
    finally:
        logging.disable(logging.NOTSET)
    return folder / "quantized.onnx"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["qdq", "qoperator"])
def test_what_onnx_runtimes_quantizer_writes(kind: str, form: QuantFormat, tmp_path: Path) -> None:
    """Every integer tensor and the logits of the file as it is, and the same tensors in our own saved form.

    Of symmetric int8 in QDQ form ONNX Runtime computes some convolutions in floating point on x86: 25 of 572,928
    integers differ, each where a sum lies next to a tie, or behind one.
    """
    path = quantized(tmp_path, kind, form)
    network = twoscale.load(path)
    assert network.metadata.get("form") == ("qdq" if form == QuantFormat.QDQ else None)
    result = twoscale.verify(network, some_images(), executors=["reference", "torch", "onnxruntime"])
    assert result.original == path.name
    of_file = f"onnxruntime on {path.name}"
    assert result.compared_by_executor[of_file] >= 6000 * 64
    floating = form == QuantFormat.QDQ and kind == "s8 s8 symmetric per channel"
    assert result.mismatches_by_executor[of_file] <= (1e-4 * result.compared_by_executor[of_file] if floating else 0)
    assert result.mismatches_by_executor["torch"] == 0
    network.save(tmp_path / "ours.onnx")
    assert twoscale.load(tmp_path / "ours.onnx").fingerprint == network.fingerprint


def agrees(draft: Draft, tmp_path: Path, shape: tuple[int, ...] = (40, 2, 4, 4)) -> twoscale.IntegerNetwork:
    """Check every tensor of a file, and return what was read."""
    network = twoscale.load(draft.save(tmp_path / "a.onnx"))
    images = np.random.default_rng(3).normal(0, 40, shape).astype(np.float32)
    result = twoscale.verify(network, images, executors=["reference", "onnxruntime"])
    assert result.original == "a.onnx"
    assert result.ok, result.divergence_by_executor
    return network


def ops(network: twoscale.IntegerNetwork) -> list[str]:
    return [layer.op for layer in network]


class QdqDraft(Draft):
    """A graph in QDQ form."""

    def real(self, q: str, scale: str = "s", zero: str = "z") -> str:
        name = f"{q}_real{len(self.nodes)}"
        return self.node("DequantizeLinear", [q, scale, zero], name)

    def weight(self, name: str, shape: tuple[int, ...], axis: int | None = None) -> str:
        rng = np.random.default_rng(len(self.nodes))
        self.constant(name, rng.integers(-127, 128, shape), np.int8)
        scales: Any = 0.01 if axis is None else rng.uniform(0.005, 0.02, shape[axis])
        self.constant(f"{name}_s", scales)
        self.constant(f"{name}_z", np.zeros(np.shape(scales)), np.int8)
        more: dict[str, Any] = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", [name, f"{name}_s", f"{name}_z"], f"{name}_real", **more)

    def end(self, value: str) -> None:
        self.node("QuantizeLinear", [value, "s", "z"], "q")
        self.finish("q")


def written_as_nncf_does(per_channel: bool = False, per_class: bool = False) -> QdqDraft:
    """Biases in float32, moves between DequantizeLinear and an operator, bounds from Constant nodes, real logits.

    NNCF 3.4 writes this for a convolution, a depthwise one behind it, a mean and a linear layer, and so does torch's
    exporter for modules that torchao prepared. By default NNCF gives the depthwise convolution's input one scale for
    each channel (``per_channel``), and the logits one for each class (``per_class``).
    """
    draft = QdqDraft()
    rng = np.random.default_rng(0)
    for name, size in (("b1", 6), ("b2", 6), ("b3", 5)):
        draft.constant(name, rng.normal(0, 0.5, size))
    draft.constant("z0", 0, np.uint8)
    scales = np.linspace(0.2, 0.3, 6) if per_channel else 0.25
    zeros = np.zeros(np.shape(scales))
    draft.constant("s1", scales)
    draft.constant("z1", zeros, np.uint8)
    more: dict[str, Any] = {"axis": 1} if per_channel else {}
    conv = draft.node("Conv", [draft.real("x"), draft.weight("w1", (6, 2, 3, 3), 0), "b1"], "c1", pads=[1, 1, 1, 1])
    draft.node("Relu", [conv], "r1")
    draft.node("QuantizeLinear", ["r1", "s1", "z1"], "q1", **more)
    real = draft.node("DequantizeLinear", ["q1", "s1", "z1"], "d1", **more)
    depthwise = draft.node("Conv", [real, draft.weight("w2", (6, 1, 3, 3), 0), "b2"], "c2", group=6, pads=[1, 1, 1, 1])
    for name, value in (("lo", 0.0), ("hi", 100.0)):
        tensor = numpy_helper.from_array(np.array(value, np.float32), name)
        draft.nodes.append(onnx.helper.make_node("Constant", [], [name], value=tensor))
    draft.node("Clip", [depthwise, "lo", "hi"], "r2")
    draft.constant("s2", 0.2)
    draft.node("QuantizeLinear", ["r2", "s2", "z0"], "q2")
    draft.node("GlobalAveragePool", [draft.real("q2", "s2", "z0")], "a")
    draft.constant("s3", 0.1)
    draft.node("QuantizeLinear", ["a", "s3", "z0"], "q3")
    draft.node("MaxPool", [draft.real("q3", "s3", "z0")], "largest", kernel_shape=[1, 1])
    draft.node("Flatten", ["largest"], "flat")
    weight = draft.weight("w3", (5, 6), -2 if per_class else None)
    draft.node("Gemm", ["flat", weight, "b3"], "logits", transB=1)
    return draft


def test_what_nncf_writes_is_read(tmp_path: Path) -> None:
    """Biases are rounded to steps of the sums, as ONNX Runtime does; but not that of real logits."""
    path = written_as_nncf_does().save(tmp_path / "a.onnx")
    network = twoscale.load(path)
    images = np.random.default_rng(3).normal(0, 40, (40, 2, 4, 4)).astype(np.float32)
    result = twoscale.verify(network, images, executors=["reference", "onnxruntime"])
    assert result.mismatches_by_executor["onnxruntime"] == 0
    divergence = result.divergence_by_executor["onnxruntime on a.onnx"]
    assert divergence is None or divergence.startswith("layer logits ")  # the layers before it are the same
    (logits,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})
    assert np.abs(network(images) - logits).max() < 0.51 * 0.1 * 0.01
    assert [layer.op for layer in network if layer.op in ("Conv2d", "Linear")] == ["Conv2d", "Conv2d", "Linear"]
    assert network.spec(network.output).dtype == "int32"
    assert network.requantize().on_grid
    for option, message in (
        ("per_channel", "it quantizes an activation with 6 scales, expected one"),
        ("per_class", "it has real outputs of several scales"),
    ):
        with pytest.raises(NetworkFileError, match=message):
            twoscale.load(written_as_nncf_does(**{option: True}).save(tmp_path / f"{option}.onnx"))
    draft = written_as_nncf_does()
    draft.constant("b2", np.full(6, np.nan))
    with pytest.raises(NetworkFileError, match=r"the_c2 \(Conv\): not an operator on integers"):
        twoscale.load(draft.save(tmp_path / "nan.onnx"))


def written_as_torchao_does() -> QdqDraft:
    """A sum of a convolution's real result, and one QuantizeLinear behind a max pool and a flattening.

    torch's exporter writes this for modules that torchao's X86InductorQuantizer prepared.
    """
    draft = QdqDraft()
    draft.constant("z0", 0, np.uint8)
    draft.constant("s1", 0.37)
    draft.constant("shape", [-1, 2 * 2 * 2], np.int64)
    conv = draft.node("Conv", [draft.real("x"), draft.weight("w1", (2, 2, 3, 3), 0)], "c1", pads=[1, 1, 1, 1])
    draft.node("Add", [conv, draft.real("x")], "sum")
    draft.node("Relu", ["sum"], "r1")
    draft.node("QuantizeLinear", ["r1", "s1", "z0"], "q1")
    real = draft.real("q1", "s1", "z0")
    draft.node("Conv", [real, draft.weight("w2", (2, 2, 3, 3), 0)], "c2", pads=[1, 1, 1, 1])
    draft.node("Relu", ["c2"], "r2")
    draft.node("MaxPool", ["r2"], "largest", kernel_shape=[2, 2], strides=[2, 2])
    draft.node("Reshape", ["largest", "shape"], "flat", allowzero=1)
    draft.node("QuantizeLinear", ["flat", "s", "z0"], "q2")
    draft.node("Gemm", [draft.real("q2", "s", "z0"), draft.weight("w3", (5, 8))], "logits", transB=1)
    return draft


def test_what_torchao_writes_is_read(tmp_path: Path) -> None:
    """ONNX Runtime leaves the sum in floating point: integers next to a tie may differ by one."""
    network = twoscale.load(written_as_torchao_does().save(tmp_path / "a.onnx"))
    assert ops(network) == ["QuantizeInput", "Conv2d", "Conv2d", "MaxPool2d", "Reshape", "Linear"]
    assert network.layers[1].inputs == (network.layers[0].name,) * 2
    images = np.random.default_rng(3).normal(0, 40, (40, 2, 4, 4)).astype(np.float32)
    result = twoscale.verify(network, images, executors=["reference", "torch", "onnxruntime"])
    assert result.mismatches_by_executor["torch"] == 0
    assert result.mismatches_by_executor["onnxruntime"] == 0
    of_file = "onnxruntime on a.onnx"
    assert result.mismatches_by_executor[of_file] <= 1e-3 * result.compared_by_executor[of_file]
    network.save(tmp_path / "ours.onnx")
    assert twoscale.load(tmp_path / "ours.onnx").fingerprint == network.fingerprint
    assert network.requantize().on_grid


def test_a_sum_that_is_also_read_in_floating_point_is_refused(tmp_path: Path) -> None:
    draft = written_as_torchao_does()
    draft.node("Identity", ["c1"], "more")
    with pytest.raises(NetworkFileError, match=r"the_c1 \(Conv\): not an operator on integers"):
        twoscale.load(draft.save(tmp_path / "a.onnx"))


def test_operators_between_quantizations(tmp_path: Path) -> None:
    draft = QdqDraft()
    draft.constant("z0", 0, np.uint8)
    conv = draft.node("Conv", [draft.real("x"), draft.weight("w", (6, 2, 3, 3), 0)], "c", pads=[1, 1, 1, 1])
    draft.node("Relu", [conv], "r")
    draft.node("QuantizeLinear", ["r", "s", "z0"], "rq")
    draft.node("AveragePool", [draft.real("rq", zero="z0")], "a", kernel_shape=[2, 2], strides=[2, 2])
    draft.constant("s2", 0.37)
    draft.node("QuantizeLinear", ["a", "s2", "z0"], "aq")
    draft.node("HardSwish", [draft.real("aq", "s2", "z0")], "h")
    draft.node("QuantizeLinear", ["h", "s", "z"], "hq")
    draft.node("Mul", [draft.real("hq"), draft.real("aq", "s2", "z0")], "m")
    draft.node("QuantizeLinear", ["m", "s", "z"], "mq")
    draft.node("Concat", [draft.real("mq"), draft.real("hq")], "j", axis=1)
    draft.node("QuantizeLinear", ["j", "s2", "z"], "jq")
    draft.node("GlobalAveragePool", [draft.real("jq", "s2")], "g")
    draft.node("QuantizeLinear", ["g", "s2", "z"], "gq")
    draft.node("Flatten", [draft.real("gq", "s2")], "f")
    draft.node("QuantizeLinear", ["f", "s2", "z"], "fq")
    draft.node("MatMul", [draft.real("fq", "s2"), draft.weight("v", (12, 5), 1)], "l")
    draft.node("QuantizeLinear", ["l", "s", "z"], "lq")
    draft.node("DequantizeLinear", ["lq", "s", "z"], "logits")
    network = agrees(draft, tmp_path)
    assert ops(network) == [
        "QuantizeInput", "Conv2d", "AveragePool2d", "Table", "Mul", "Concat", "AveragePool2d", "Reshape", "Linear",
    ]  # fmt: skip


def test_a_gemm_whose_real_numbers_are_the_logits(tmp_path: Path) -> None:
    draft = QdqDraft()
    draft.node("Flatten", [draft.real("x")], "f")
    draft.node("QuantizeLinear", ["f", "s", "z"], "fq")
    weight = draft.weight("w", (5, 32))
    draft.constant("b", np.arange(5) * 1000, np.int32)
    draft.constant("bs", np.float32(0.5) * np.float32(0.01))
    bias = draft.node("DequantizeLinear", ["b", "bs"], "b_real")
    draft.node("Gemm", [draft.real("fq"), weight, bias], "logits", transB=1)
    network = agrees(draft, tmp_path)
    assert network.spec(network.output).dtype == "int32"


def test_weights_that_are_quantized_in_the_file(tmp_path: Path) -> None:
    """As tools for other runtimes write them: float weights, and constants that are nodes."""
    draft = QdqDraft()
    rng = np.random.default_rng(0)
    draft.constant("w", rng.normal(0, 1, (3, 2, 3, 3)))
    draft.node("Constant", [], "ws", value=initializer("ws", [0.01, 0.02, 0.03]))
    draft.constant("wz", np.zeros(3), np.int8)
    draft.node("QuantizeLinear", ["w", "ws", "wz"], "wq", axis=0)
    draft.node("DequantizeLinear", ["wq", "ws", "wz"], "wr", axis=0)
    draft.node("Conv", [draft.real("x"), "wr"], "c")
    draft.end("c")
    network = agrees(draft, tmp_path)
    (conv,) = (layer for layer in network if isinstance(layer, n.Conv2d))
    expected = np.clip(np.rint(numpy_helper.to_array(draft.constants["w"]) / np.array([0.01, 0.02, 0.03], np.float32)
                               .reshape(3, 1, 1, 1)), -128, 127)  # fmt: skip
    assert np.array_equal(conv.weight, expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # A convolution that ONNX Runtime computes in floating point: its bias is not in steps of the accumulators.
        (lambda d: (d.constant("b", [1, 2, 3], np.int32), d.constant("bs", 0.3),
                    d.node("DequantizeLinear", ["b", "bs"], "br"),
                    d.node("Conv", [d.real("x"), d.weight("w", (3, 2, 3, 3)), "br"], "y")),
         "node the_y (Conv): not an operator on integers"),
        (lambda d: d.node("Conv", [d.real("x"), d.weight("w", (3, 2, 3, 3), 1)], "y"),
         "node the_y (Conv): not an operator on integers"),
        (lambda d: d.node("Softmax", [d.real("x")], "y"), "node the_y (Softmax): not an operator on integers"),
        # Relu before a zero point that is not the least integer: computed in floating point, with the convolution.
        (lambda d: (d.node("Conv", [d.real("x"), d.weight("w", (3, 2, 3, 3))], "c"), d.node("Relu", ["c"], "y")),
         "node the_c (Conv): not an operator on integers"),
    ],
)  # fmt: skip
def test_what_would_be_computed_in_floating_point_is_refused(
    change: Callable[[QdqDraft], object], reason: str, tmp_path: Path
) -> None:
    draft = QdqDraft()
    change(draft)
    draft.end("y")
    assert reason in refused(draft, tmp_path)


# Operators in either form.


@pytest.mark.parametrize("is_real", [False, True])
def test_padding(is_real: bool, tmp_path: Path) -> None:
    draft = QdqDraft()
    draft.constant("widths", [0, 0, 1, 2, 0, 1, 0, 3], np.int64)
    if is_real:
        draft.node("Pad", [draft.real("x"), "widths"], "p")
        draft.end("p")
    else:
        draft.node("Pad", ["x", "widths", "z"], "p")
        draft.finish("p")
    assert "Pad" in ops(agrees(draft, tmp_path))


@pytest.mark.parametrize(
    ("inputs", "attributes", "reason"),
    [
        (["widths"], {}, "it pads with [0.0]; expected what stands for zero (128)"),
        (["widths", "z"], {"mode": "reflect"}, "mode = reflect is not supported"),
        (["negative", "z"], {}, "expected 0 to 65,536"),
        (["batch", "z"], {}, "0 for the batch"),
    ],
)
def test_padding_that_is_no_zero(inputs: list[str], attributes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    draft = Draft()
    for name, widths in (("widths", [0, 0, 1, 1] * 2), ("negative", [0, 0, -1, 0] * 2), ("batch", [1, 0, 0, 0] * 2)):
        draft.constant(name, widths, np.int64)
    draft.node("Pad", ["x", *inputs], "p", **attributes)
    draft.finish("p")
    assert reason in refused(draft, tmp_path)


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("size", [5, 6, 7])
def test_windows_that_are_rounded_up(kernel: int, stride: int, pad: int, size: int, tmp_path: Path) -> None:
    draft = Draft()
    draft.input_shape = ("N", 2, size, 5)
    more: dict[str, Any] = {
        "kernel_shape": [kernel, 2],
        "strides": [stride, 2],
        "pads": [pad, 0, pad, 0],
        "ceil_mode": 1,
    }
    draft.node("MaxPool", ["x"], "y", **more)
    draft.finish("y")
    try:
        agrees(draft, tmp_path, (5, 2, size, 5))
    except NetworkFileError as error:
        begins_in_padding = -(-(size + 2 * pad - kernel) // stride) * stride >= size + pad
        assert begins_in_padding, error  # noqa: PT017
        assert "its last window begins in the padding" in str(error)  # noqa: PT017


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_shapes_that_are_computed(batch: str | int, tmp_path: Path) -> None:
    """``x.reshape(x.shape[0], -1)`` and ``x.reshape(x.shape[0], n)`` as exporters write them."""
    draft = Draft()
    draft.input_shape = (batch, 2, 4, 4)
    draft.conv()
    draft.node("Shape", ["y"], "shape")
    draft.node("Constant", [], "first", value=initializer("first", 0, np.int64))
    draft.node("Gather", ["shape", "first"], "count", axis=0)
    draft.node("Unsqueeze", ["count", draft.constant("zero", [0], np.int64)], "counts")
    draft.node("Concat", ["counts", draft.constant("size", [12], np.int64)], "target", axis=0)
    draft.node("Reshape", ["y", "target"], "f")
    draft.node("DequantizeLinear", ["f", "s", "z"], "logits")
    agrees(draft, tmp_path, (3, 2, 4, 4))


def test_a_bias_that_is_reshaped(tmp_path: Path) -> None:
    draft = Draft()
    draft.conv()
    draft.nodes.pop()
    draft.constant("b", [[100], [-2000], [30]], np.int32)
    draft.node("Reshape", ["b", draft.constant("flat_shape", [-1], np.int64)], "bias")
    draft.node("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "s", "z", "bias"], "y")
    draft.finish("y")
    network = agrees(draft, tmp_path)
    (conv,) = (layer for layer in network if isinstance(layer, n.Conv2d))
    assert conv.bias_o.tolist() == [100, -2000, 30]


@pytest.mark.parametrize("shape", [(), (2, 1, 1), (1, 2, 1, 1), (4,), (2, 4, 4)])
@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("first", [False, True])
def test_a_constant_operand(shape: tuple[int, ...], operator: str, first: bool, tmp_path: Path) -> None:
    draft = Draft()
    draft.constant("c", np.random.default_rng(1).integers(0, 256, shape), np.uint8)
    draft.constant("cs", 0.0313)
    draft.constant("cz", 77, np.uint8)
    draft.constant("so", 0.61)
    draft.constant("zo", 120, np.uint8)
    operands = [["x", "s", "z"], ["c", "cs", "cz"]]
    draft.microsoft(operator, [*operands[first], *operands[not first], "so", "zo"], "y")
    draft.finish("y", "so", "zo")
    agrees(draft, tmp_path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first", [False, True])
def test_all_pairs_of_a_tensor_and_one_number_per_channel(first: bool, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    draft = Draft()
    draft.input_shape = ("N", 2, 1, 256)
    draft.constant("s", 1.0)
    draft.constant("z", int(rng.integers(0, 256)), np.uint8)
    for i in range(2):
        for what, value in (("from", i), ("to", i + 1), ("axes", 1)):
            draft.constant(f"{what}{i}", [value], np.int64)
        draft.node("Slice", ["x", f"from{i}", f"to{i}", f"axes{i}"], f"x{i}")
    draft.node("MaxPool", ["x1"], "p", kernel_shape=[1, 256])
    draft.constant("so", float(np.float32(rng.uniform(50, 300))))
    draft.constant("zo", int(rng.integers(0, 256)), np.uint8)
    operands = [["x0", "s", "z"], ["p", "s", "z"]]
    draft.microsoft("QLinearMul", [*operands[first], *operands[not first], "so", "zo"], "y")
    draft.finish("y", "so", "zo")
    network = twoscale.load(draft.save(tmp_path / "a.onnx"))
    q = np.arange(256, dtype=np.float32)
    pairs = np.stack(np.broadcast_arrays(q, q[:, None]), 1).reshape(256, 2, 1, 256)
    images = pairs - np.float32(numpy_helper.to_array(draft.constants["z"]))
    result = twoscale.verify(network, images, executors=["reference"])
    assert result.ok, result.divergence_by_executor


def test_a_constant_is_added_to_a_vector(tmp_path: Path) -> None:
    draft = QdqDraft()
    draft.node("Flatten", [draft.real("x")], "f")
    draft.node("QuantizeLinear", ["f", "s", "z"], "fq")
    draft.constant("c", np.random.default_rng(1).integers(0, 256, 32), np.uint8)
    draft.node("Add", [draft.real("fq"), draft.real("c")], "a")
    draft.node("QuantizeLinear", ["a", "s", "z"], "aq")
    draft.node("DequantizeLinear", ["aq", "s", "z"], "logits")
    assert "Add" in ops(agrees(draft, tmp_path))


def test_a_float_relu_between_integers(tmp_path: Path) -> None:
    draft = Draft()
    draft.node("DequantizeLinear", ["x", "s", "z"], "r")
    draft.node("Relu", ["r"], "a")
    draft.node("MaxPool", ["a"], "m", kernel_shape=[2, 2], strides=[2, 2])
    draft.node("QuantizeLinear", ["m", draft.constant("s2", 0.3), "z"], "q")
    draft.node("DequantizeLinear", ["q", "s2", "z"], "r2")
    draft.node("Relu", ["r2"], "a2")
    draft.node("QuantizeLinear", ["a2", draft.constant("s3", 0.2), "z"], "y")
    draft.finish("y", "s3")
    assert ops(agrees(draft, tmp_path)) == ["QuantizeInput", "Table", "MaxPool2d", "Table", "Reshape"]


def test_an_unsqueeze(tmp_path: Path) -> None:
    draft = Draft()
    draft.node("Flatten", ["x"], "f")
    draft.node("Unsqueeze", ["f", draft.constant("axes", [2, -1], np.int64)], "u")
    draft.node("Squeeze", ["u", "axes"], "v")
    draft.node("DequantizeLinear", ["v", "s", "z"], "logits")
    agrees(draft, tmp_path)
