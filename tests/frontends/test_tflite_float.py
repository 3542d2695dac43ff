"""Float `.tflite` files: the outputs of LiteRT's reference kernels, operator by operator and in whole networks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import twoscale
from tests import sweep
from twoscale import data, models
from twoscale._formats.tflite.graph_builder import GraphBuilder
from twoscale._frontends import as_module, float_graph
from twoscale._frontends.tflite.model import parse
from twoscale._frontends.tflite_float import OPERATORS
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale.errors import CaptureError, NetworkFileError, TwoscaleError, UnsupportedOperatorError

litert = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")


Shape = tuple[int, ...]


def interpreter(content: bytes) -> Any:
    kinds = litert.OpResolverType
    kernels = kinds.BUILTIN if parse(content).operators[-1].name == "ELU" else kinds.BUILTIN_REF  # which has no ELU
    found = litert.Interpreter(model_content=content, experimental_op_resolver_type=kernels, num_threads=1)
    found.allocate_tensors()
    return found


def run_litert(content: bytes, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the outputs for one input in the file's order."""
    runtime = interpreter(content)
    runtime.set_tensor(runtime.get_input_details()[0]["index"], image)
    runtime.invoke()
    return [runtime.get_tensor(details["index"]) for details in runtime.get_output_details()]


def nchw(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if values.ndim == 4 else values


class Maker:
    """Appends float operators; LiteRT says which shapes they give."""

    def __init__(self, shape: tuple[int, ...] = (1, 6, 7, 4), seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = GraphBuilder("float")
        self.count = 0
        self.x = self.last = self.graph.tensor("images", shape, "float32", batch=False)
        self.shape = shape
        self.outputs: list[int] = []

    def c(self, *values: Any, dtype: Any = np.int32) -> int:
        self.count += 1
        return self.graph.constant(f"c{self.count}", np.array(values, dtype))

    def w(self, *shape: int, dtype: Any = np.float32) -> int:
        self.count += 1
        values = self.rng.normal(0, 0.5, shape).astype(dtype)
        return self.graph.constant(f"c{self.count}", values)

    def op(
        self, name: str, *inputs: int, options: str = "", shape: tuple[int, ...] | None = None, **fields: Any
    ) -> int:
        """Append an operator on tensors, by default on the last one. LiteRT needs the ``shape`` of some results."""
        self.count += 1
        y = self.graph.tensor(f"made{self.count};merged", shape or [1], "float32", batch=False)
        self.graph.operator(name, inputs or [self.last], y, options, **fields)
        if shape is None:
            details = interpreter(self.graph.to_bytes([self.x], [y])).get_output_details()[0]
            shape = tuple(int(size) for size in details["shape"])
        self.graph._graph.tensors[y].shape = np.array(shape, np.int32)
        self.shape = shape
        self.last = y
        return y

    def content(self) -> bytes:
        return self.graph.to_bytes([self.x], self.outputs or [self.last])

    def image(self) -> NDArray[np.float32]:
        shape = self.graph._graph.tensors[self.x].shape
        return np.asarray(self.rng.normal(0, 1.5, shape), np.float32)


def agrees(made: Maker, path: Path) -> g.FloatGraph:
    """Compare with LiteRT, also for several images at once."""
    content, images = made.content(), [made.image() for _ in range(2)]
    path.write_bytes(content)
    expected = [run_litert(content, image) for image in images]
    batch = nchw(np.concatenate(images))
    graph = float_graph(path, batch)
    found = GraphModule(graph).run(torch.from_numpy(batch))
    for index, name in enumerate(graph.outputs):
        wanted = nchw(np.concatenate([outputs[index] for outputs in expected]))
        assert np.allclose(found[name].numpy(), wanted, rtol=1e-5, atol=2e-5 * max(1.0, float(np.abs(wanted).max())))
    return graph


def window(m: Maker, name: str, padding: int, activation: int = 0) -> int:
    return m.op(
        name, options="Pool2DOptions", padding=padding, strideH=2, strideW=1, filterHeight=3, filterWidth=2,
        fusedActivationFunction=activation,
    )  # fmt: skip


def conv(m: Maker, padding: int, stride: int = 1, dilation: int = 1, activation: int = 0, groups: int = 1) -> int:
    channels = m.shape[3]
    return m.op(
        "CONV_2D", m.last, m.w(6, 3, 2, channels // groups), m.w(6), options="Conv2DOptions", padding=padding,
        strideH=stride, strideW=1, dilationHFactor=dilation, dilationWFactor=1, fusedActivationFunction=activation,
    )  # fmt: skip


def depthwise(m: Maker, padding: int, times: int, activation: int = 0, bias: bool = True) -> int:
    count = m.shape[3] * times
    inputs = [m.last, m.w(1, 3, 3, count), *([m.w(count)] if bias else [])]
    return m.op(
        "DEPTHWISE_CONV_2D", *inputs, options="DepthwiseConv2DOptions", padding=padding, strideH=2, strideW=2,
        depthMultiplier=times, dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=activation,
    )  # fmt: skip


def reshape(m: Maker, *shape: int) -> int:
    return m.op("RESHAPE", m.last, m.c(*shape), options="ReshapeOptions", newShape=np.array(shape, np.int32))


def fully_connected(m: Maker, features: int, activation: int = 0, keep: bool = False) -> int:
    return m.op(
        "FULLY_CONNECTED", m.last, m.w(5, features), m.w(5), options="FullyConnectedOptions",
        fusedActivationFunction=activation, keepNumDims=keep,
    )  # fmt: skip


def resize(m: Maker, name: str, size: tuple[int, int], corners: bool, centers: bool) -> int:
    options = "ResizeBilinearOptions" if name == "RESIZE_BILINEAR" else "ResizeNearestNeighborOptions"
    return m.op(name, m.last, m.c(*size), options=options, alignCorners=corners, halfPixelCenters=centers)


def reduce(m: Maker, name: str, axes: tuple[int, ...], keep: bool) -> int:
    return m.op(name, m.last, m.c(*axes), options="ReducerOptions", keepDims=keep)


def two(m: Maker, name: str, options: str, *shape: int, swapped: bool = False, activation: int | None = None) -> int:
    pair = [m.last, m.w(*shape)]
    fields: dict[str, Any] = {} if activation is None else {"fusedActivationFunction": activation}
    return m.op(name, *(pair[::-1] if swapped else pair), options=options, **fields)


def dequantized(m: Maker) -> None:
    """Weights of float16 before a convolution, as converters write them."""
    weight = m.op("DEQUANTIZE", m.w(3, 1, 1, 4, dtype=np.float16), options="DequantizeOptions")
    bias = m.op("DEQUANTIZE", m.w(3, dtype=np.float16), options="DequantizeOptions")
    m.op("CONV_2D", m.x, weight, bias, options="Conv2DOptions", strideH=1, strideW=1)


def int8_weights(m: Maker) -> None:
    q = m.rng.integers(-127, 128, (3, 1, 1, 4)).astype(np.int8)
    weight = m.graph.constant("q", q, [0.01, 0.02, 0.03], axis=0)
    weight = m.op("DEQUANTIZE", weight, options="DequantizeOptions")
    m.op("CONV_2D", m.x, weight, m.w(3), options="Conv2DOptions", strideH=1, strideW=1)


def squeeze_and_excite(m: Maker) -> None:
    x = m.last
    reduce(m, "MEAN", (1, 2), keep=False)
    fully_connected(m, 4)
    m.op("FULLY_CONNECTED", m.last, m.w(4, 5), m.w(4), options="FullyConnectedOptions")
    m.op("LOGISTIC")
    m.op("MUL", x, m.last, options="MulOptions")  # (1, C) broadcasts to (1, H, W, C)


def attention(m: Maker) -> None:
    reshape(m, 1, 42, 4)
    x = m.last
    m.op("BATCH_MATMUL", x, x, options="BatchMatMulOptions", adjX=False, adjY=True)
    m.op("SOFTMAX", options="SoftmaxOptions", beta=0.5)
    m.op("BATCH_MATMUL", m.last, x, options="BatchMatMulOptions", adjX=False, adjY=False)
    m.op("BATCH_MATMUL", m.last, m.w(4, 3), options="BatchMatMulOptions", adjX=False, adjY=False)


def shape_arithmetic(m: Maker) -> None:
    """Keras writes Flatten with the batch size at run time."""
    shape = m.graph.tensor("shape", [4], "int32", batch=False)
    m.graph.operator("SHAPE", [m.last], shape, "ShapeOptions", outType=2)
    first = m.graph.tensor("first", [], "int32", batch=False)
    m.graph.operator("STRIDED_SLICE", [shape, m.c(0), m.c(1), m.c(1)], first, "StridedSliceOptions", shrinkAxisMask=1)
    packed = m.graph.tensor("packed", [2], "int32", batch=False)
    rest = m.graph.constant("rest", np.array(168, np.int32))
    m.graph.operator("PACK", [first, rest], packed, "PackOptions", valuesCount=2)
    m.op("RESHAPE", m.last, packed, options="ReshapeOptions", shape=(1, 168))
    m.op("FULLY_CONNECTED", m.last, m.w(5, 168), options="FullyConnectedOptions", shape=(1, 5))


def transposed(m: Maker, padding: int) -> None:
    size = (12, 14) if padding == 0 else (13, 15)
    m.op(
        "TRANSPOSE_CONV", m.c(1, *size, 5), m.w(5, 3, 3, 4), m.last, options="TransposeConvOptions", padding=padding,
        strideH=2, strideW=2,
    )  # fmt: skip


def unary(name: str, options: str = "", **fields: Any) -> Callable[[Maker], Any]:
    return lambda m: m.op(name, options=options, **fields)


CASES: dict[str, Callable[[Maker], Any]] = {
    "abs": unary("ABS"),
    "add": lambda m: (window(m, "MAX_POOL_2D", 0), m.op("ADD", m.last, m.last, options="AddOptions")),
    "add-constant": lambda m: two(m, "ADD", "AddOptions", 4, activation=1),
    "add-map": lambda m: two(m, "ADD", "AddOptions", 6, 7, 1),
    "attention": attention,
    "average-pool-same": lambda m: window(m, "AVERAGE_POOL_2D", 0),
    "average-pool-valid": lambda m: window(m, "AVERAGE_POOL_2D", 1, activation=3),
    "concatenation": lambda m: m.op("CONCATENATION", m.last, m.last, options="ConcatenationOptions", axis=3),
    "concatenation-rows": lambda m: m.op(
        "CONCATENATION", m.last, m.w(1, 2, 7, 4), options="ConcatenationOptions", axis=-3
    ),
    "conv-dilated": lambda m: conv(m, 0, dilation=2, activation=3),
    "conv-grouped": lambda m: conv(m, 1, groups=2),
    "conv-same": lambda m: conv(m, 0, stride=2, activation=1),
    "depth-to-space": unary("DEPTH_TO_SPACE", "DepthToSpaceOptions", blockSize=2),
    "depthwise": lambda m: depthwise(m, 0, 1, activation=2),
    "depthwise-times": lambda m: depthwise(m, 1, 3, bias=False),
    "dequantize-float16": dequantized,
    "dequantize-int8": int8_weights,
    "div": lambda m: two(m, "DIV", "DivOptions", 4),
    "elu": unary("ELU"),
    "exp": unary("EXP"),
    "expand-dims": lambda m: (reduce(m, "MEAN", (1,), keep=False), m.op("EXPAND_DIMS", m.last, m.c(1))),
    "fully-connected": lambda m: (reshape(m, 1, 168), fully_connected(m, 168, activation=1)),
    "fully-connected-each": lambda m: (reshape(m, 1, 42, 4), fully_connected(m, 4, keep=True)),
    "fully-connected-image": lambda m: fully_connected(m, 168),
    "fully-connected-pixels": lambda m: fully_connected(m, 4, keep=True),
    "gelu": unary("GELU", "GeluOptions", approximate=False),
    "gelu-tanh": unary("GELU", "GeluOptions", approximate=True),
    "hard-swish": unary("HARD_SWISH", "HardSwishOptions"),
    "leaky-relu": unary("LEAKY_RELU", "LeakyReluOptions", alpha=0.2),
    "logistic": unary("LOGISTIC"),
    "max-pool": lambda m: window(m, "MAX_POOL_2D", 0, activation=1),
    "maximum": lambda m: two(m, "MAXIMUM", "MaximumMinimumOptions", 4),
    "maximum-two": lambda m: m.op("MAXIMUM", m.op("NEG", options="NegOptions"), m.x, options="MaximumMinimumOptions"),
    "mean": lambda m: reduce(m, "MEAN", (1, 2), keep=False),
    "mean-channels": lambda m: reduce(m, "MEAN", (-1,), keep=True),
    "mean-columns": lambda m: reduce(m, "MEAN", (2,), keep=False),
    "mean-of-channels-first": lambda m: reduce(m, "MEAN", (2, 3), keep=False),
    "minimum": lambda m: two(m, "MINIMUM", "MaximumMinimumOptions", 1),
    "mirror-pad": lambda m: m.op(
        "MIRROR_PAD", m.last, m.c([0, 0], [1, 2], [0, 1], [0, 0]), options="MirrorPadOptions", mode=0
    ),
    "mul": lambda m: m.op("MUL", m.op("LOGISTIC"), m.x, options="MulOptions"),
    "mul-constant": lambda m: two(m, "MUL", "MulOptions", 7, 4, swapped=True, activation=3),
    "neg": unary("NEG", "NegOptions"),
    "pad": lambda m: m.op("PAD", m.last, m.c([0, 0], [1, 0], [0, 2], [1, 1]), options="PadOptions"),
    "pad-value": lambda m: m.op(
        "PADV2", m.last, m.c([0, 0], [1, 0], [0, 2], [0, 0]), m.c(1.5, dtype=np.float32), options="PadV2Options"
    ),
    "prelu": lambda m: m.op("PRELU", m.last, m.w(1, 1, 4)),
    "reduce-max": lambda m: reduce(m, "REDUCE_MAX", (1, 2), keep=True),
    "relu": unary("RELU"),
    "relu6": unary("RELU6"),
    "relu-n1-to-1": unary("RELU_N1_TO_1"),
    "reshape": lambda m: (reshape(m, 1, 7, 4, 6), reshape(m, 1, 12, 14), reshape(m, 1, 2, 2, 42)),
    "bilinear": lambda m: resize(m, "RESIZE_BILINEAR", (11, 5), False, False),
    "bilinear-corners": lambda m: resize(m, "RESIZE_BILINEAR", (11, 5), True, False),
    "bilinear-centers": lambda m: resize(m, "RESIZE_BILINEAR", (12, 14), False, True),
    "nearest": lambda m: resize(m, "RESIZE_NEAREST_NEIGHBOR", (12, 14), False, False),
    "nearest-corners": lambda m: resize(m, "RESIZE_NEAREST_NEIGHBOR", (11, 5), True, False),
    "nearest-centers": lambda m: resize(m, "RESIZE_NEAREST_NEIGHBOR", (11, 5), False, True),
    "rsqrt": lambda m: (m.op("EXP"), m.op("RSQRT")),
    "shape-arithmetic": shape_arithmetic,
    "slice": lambda m: m.op(
        "SLICE", m.last, m.c(0, 1, 0, 2), m.c(1, 3, -1, 2), options="SliceOptions", shape=(1, 3, 7, 2)
    ),
    "softmax-inside": lambda m: (
        m.op("SOFTMAX", options="SoftmaxOptions", beta=1.0),
        m.op("NEG", options="NegOptions"),
    ),
    "space-to-depth": lambda m: (
        m.op("PAD", m.last, m.c([0, 0], [0, 0], [0, 1], [0, 0]), options="PadOptions"),
        m.op("SPACE_TO_DEPTH", options="SpaceToDepthOptions", blockSize=2),
    ),
    "sqrt": lambda m: (m.op("ABS"), m.op("SQRT")),
    "square": unary("SQUARE", "SquareOptions"),
    "squeeze": lambda m: (
        reduce(m, "MEAN", (1,), keep=True),
        m.op("SQUEEZE", options="SqueezeOptions", squeezeDims=np.array([1], np.int32)),
    ),
    "squeeze-and-excite": squeeze_and_excite,
    "strided-slice": lambda m: m.op(
        "STRIDED_SLICE", m.last, m.c(0, 1, 0, 0), m.c(1, 6, 7, 4), m.c(1, 2, 3, 1), options="StridedSliceOptions"
    ),
    "sub": lambda m: m.op("SUB", m.op("TANH"), m.x, options="SubOptions"),
    "sub-constant": lambda m: two(m, "SUB", "SubOptions", 4, swapped=True),
    "sum": lambda m: reduce(m, "SUM", (1, 2), keep=False),
    "tanh": unary("TANH"),
    "tile": lambda m: m.op("TILE", m.last, m.c(1, 2, 1, 3), options="TileOptions"),
    "transpose": lambda m: m.op("TRANSPOSE", m.last, m.c(0, 3, 1, 2), options="TransposeOptions"),
    "transpose-conv-same": lambda m: transposed(m, 0),
    "transpose-conv-valid": lambda m: transposed(m, 1),
}  # fmt: skip


@pytest.mark.sweep(24)
@pytest.mark.parametrize("case", CASES)
def test_every_operator_is_that_of_litert(case: str, tmp_path: Path) -> None:
    made = Maker()
    CASES[case](made)
    agrees(made, tmp_path / "net.tflite")


@pytest.mark.skipif(not sweep.whole(), reason="builds every case again")
def test_every_operator_has_a_case() -> None:
    seen = {"SPLIT"}  # the next test
    for build in CASES.values():
        made = Maker()
        build(made)
        seen |= {operator.name for operator in parse(made.content()).operators}
    assert set(OPERATORS) <= seen


def test_several_outputs(tmp_path: Path) -> None:
    made = Maker()
    axis = made.graph.constant("axis", np.array(3, np.int32))
    parts = [made.graph.tensor(f"part{i}", [1, 6, 7, 2], "float32", batch=False) for i in range(2)]
    made.graph.operator("SPLIT", [axis, made.x], parts[0], "SplitOptions", numSplits=2)
    made.graph._graph.operators[-1].outputs = np.array(parts, np.int32)
    made.outputs = [parts[1], parts[0]]
    assert len(agrees(made, tmp_path / "net.tflite").outputs) == 2


# ---------------------------------------------------------------- networks


def classifier(softmax: bool = True) -> Maker:
    """A small network as a converter writes it, with float16 weights in one layer."""
    made = Maker((1, 8, 8, 3))
    conv(made, 0, stride=2, activation=1)
    x = made.last
    depthwise(made, 0, 1, activation=3)
    reduce(made, "MEAN", (1, 2), keep=True)
    made.op("LOGISTIC")
    made.op("MUL", x, made.last, options="MulOptions")
    window(made, "MAX_POOL_2D", 0)
    fully_connected(made, math.prod(made.shape))
    if softmax:
        made.op("SOFTMAX", options="SoftmaxOptions", beta=1.0)
    return made


def test_a_classifier_returns_its_logits(tmp_path: Path) -> None:
    made = classifier()
    (tmp_path / "net.tflite").write_bytes(made.content())
    image = made.image()
    module = as_module(tmp_path / "net.tflite")
    logits = module(torch.from_numpy(nchw(image)))
    assert np.allclose(torch.softmax(logits, 1).numpy(), run_litert(made.content(), image)[0], atol=1e-5)
    agrees(classifier(softmax=False), tmp_path / "logits.tflite")


def test_a_flatten_costs_no_permutation(tmp_path: Path) -> None:
    """The weights after it are put into the order of the network's values."""
    graph = agrees(classifier(softmax=False), tmp_path / "net.tflite")
    assert not any(isinstance(node, g.Permute) for node in graph)
    made = Maker((1, 8, 8, 3))
    reshape(made, 1, 192)
    fully_connected(made, 192)
    assert [type(node) for node in agrees(made, tmp_path / "flat.tflite")] == [g.Input, g.Reshape, g.Linear]


def test_a_file_is_quantized_and_verified(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(classifier().content())
    images = np.random.default_rng(1).normal(0, 1, (16, 3, 8, 8)).astype(np.float32)
    source: Any = path
    network = twoscale.quantize(source, [images])
    result = twoscale.verify(network, [images], model=source, executors=("reference", "torch"))
    assert network.on_grid
    assert (result.mismatches, result.same_weights) == (0, True)
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25
    with pytest.raises(NetworkFileError, match="is a float network"):
        twoscale.load(path)


def test_several_inputs(tmp_path: Path) -> None:
    made = Maker((1, 5, 5, 2))
    other = made.graph.tensor("others", [1, 5, 5, 2], "float32", batch=False)
    y = made.graph.tensor("sum", [1, 5, 5, 2], "float32", batch=False)
    made.graph.operator("ADD", [made.x, other], y, "AddOptions")
    path = tmp_path / "net.tflite"
    path.write_bytes(made.graph.to_bytes([made.x, other], [y]))
    images = [torch.randn(3, 2, 5, 5) for _ in range(2)]
    module = as_module(path)
    assert module.input_count == 2
    assert torch.equal(module(*images), images[0] + images[1])


def test_the_logits_are_those_of_the_model(tmp_path: Path) -> None:
    """A file with the weights that MLPerf Tiny publishes, as TensorFlow lays them out, against the model in torch."""
    weights = Path(__file__).resolve().parents[3] / "shared" / "models" / "resnet8-cifar10.safetensors"
    if not weights.is_file():
        pytest.skip("needs the published weights of ResNet-8")
    model: Any = models.load("resnet8", weights)
    made = Maker((1, 32, 32, 3))

    def layer(name: str, size: int, channels: int, stride: int, activation: int, x: int) -> int:
        module = model.get_submodule(name)
        weight = module.weight.detach().numpy().transpose(0, 2, 3, 1)
        inputs = [x, made.graph.constant(name, np.ascontiguousarray(weight))]
        inputs.append(made.graph.constant(f"{name}.bias", module.bias.detach().numpy()))
        return made.op(
            "CONV_2D", *inputs, options="Conv2DOptions", padding=0, strideH=stride, strideW=stride,
            fusedActivationFunction=activation, shape=(1, size, size, channels),
        )  # fmt: skip

    x = layer("stem", 32, 16, 1, 1, made.x)
    for index, stack in enumerate(("stack1", "stack2", "stack3")):
        stride, shape = 1 + (index > 0), (32 >> index, 16 << index)
        y = layer(f"{stack}.conv2", *shape, 1, 0, layer(f"{stack}.conv1", *shape, stride, 1, x))
        short = layer(f"{stack}.shortcut", *shape, 2, 0, x) if index else x
        x = made.op(
            "ADD", y, short, options="AddOptions", fusedActivationFunction=1, shape=(1, *shape[:1] * 2, shape[1])
        )
    made.op(
        "AVERAGE_POOL_2D", options="Pool2DOptions", padding=1, strideH=1, strideW=1, filterHeight=8, filterWidth=8,
        shape=(1, 1, 1, 64),
    )  # fmt: skip
    dense = model.get_submodule("dense")
    pair = [dense.weight.detach().numpy(), dense.bias.detach().numpy()]
    inputs = [made.graph.constant(f"dense{i}", np.ascontiguousarray(value)) for i, value in enumerate(pair)]
    made.op("FULLY_CONNECTED", made.last, *inputs, options="FullyConnectedOptions", shape=(1, 10))
    made.op("SOFTMAX", options="SoftmaxOptions", beta=1.0, shape=(1, 10))
    path = tmp_path / "resnet8.tflite"
    path.write_bytes(made.content())
    images = data.load("cifar10").test.images[:2].astype(np.float32)
    logits = as_module(path)(torch.from_numpy(images))
    assert torch.allclose(logits, model(torch.from_numpy(images)), atol=1e-3)


# ---------------------------------------------------------------- refusals


def refused(made: Maker, path: Path, error: type[TwoscaleError], text: str) -> None:
    path.write_bytes(made.content())
    with pytest.raises(error, match=text) as found:
        float_graph(path, nchw(made.image()))
    assert "\n" not in str(found.value)


def test_operators_that_are_not_read_are_named(tmp_path: Path) -> None:
    made = Maker()
    made.op("COS")
    refused(made, tmp_path / "net.tflite", UnsupportedOperatorError, r"COS at .*net\.tflite: operator 0 has no integer")


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(classifier().content())
    with pytest.raises(CaptureError, match=r"takes images of shape \(3, 8, 8\), got \(3, 9, 9\)"):
        float_graph(path, np.zeros((1, 3, 9, 9), np.float32))


def test_batches_stay_apart(tmp_path: Path) -> None:
    made = Maker()
    reshape(made, 42, 4)
    refused(made, tmp_path / "net.tflite", CaptureError, "expected the batch of 1 first")


def test_integers_are_no_float_network(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    graph = GraphBuilder("integers")
    x = graph.tensor("x", [1, 4], "int8", 0.1)
    path.write_bytes(graph.to_bytes([x], [graph.operator("RELU", [x], graph.tensor("y", [1, 4], "int8", 0.1))]))
    with pytest.raises(NetworkFileError, match=r"is quantized already; load it with twoscale\.load"):
        as_module(path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    made = Maker()
    bad = made.graph.constant("bad", np.array([1, np.nan, 1, 1], np.float32))
    made.op("ADD", made.x, bad, options="AddOptions")
    refused(made, tmp_path / "net.tflite", NetworkFileError, "holds NaN or infinity")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    made = classifier()
    content, path = made.content(), tmp_path / "net.tflite"
    images = nchw(made.image())
    rng = np.random.default_rng(5)
    for _ in range(sweep.count(3000, 60)):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), int(rng.integers(1, 6))):
            damaged[place] = int(rng.integers(0, 256))
        path.write_bytes(bytes(damaged[: int(rng.integers(8, len(content)))] if rng.random() < 0.3 else damaged))
        with contextlib.suppress(TwoscaleError):
            float_graph(path, images)
