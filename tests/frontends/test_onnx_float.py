"""Float ONNX files against the node tests of ONNX, ONNX Runtime, and the same network through torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import twoscale
from benchmarks import onnx_nodes
from tests import sweep
from tests.formats.test_onnx_foreign import float_classifier, some_images
from twoscale import models
from twoscale._frontends import float_graph
from twoscale._ir.float_graph import Input, Normalize, Permute, Reshape
from twoscale._ir.float_module import GraphModule
from twoscale._runtimes import create
from twoscale.errors import CaptureError, TwoscaleError, UnsupportedOperatorError

ROOT = Path(__file__).parents[2]
node: Any = helper.make_node


def model_of(
    nodes: list[onnx.NodeProto], shape: list[Any], constants: dict[str, Any], opset: int = 18
) -> onnx.ModelProto:
    images = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", [images], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def agrees(model: onnx.ModelProto, path: Path, images: np.ndarray) -> None:
    onnx.save(model, path)
    (expected,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": images})
    found = GraphModule(float_graph(str(path), images))(torch.from_numpy(images)).numpy()
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def test_logits_are_onnx_runtimes(tmp_path: Path) -> None:
    agrees(float_classifier(), tmp_path / "net.onnx", some_images(8))


def test_a_file_is_quantized_and_verified(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(float_classifier(), path)
    images = some_images()
    source: Any = str(path)
    network = twoscale.quantize(source, [images])
    result = twoscale.verify(network, [images], model=source, executors=("reference", "torch", "onnxruntime"))
    assert network.on_grid
    assert result.mismatches == 0
    assert result.sqnr_db is not None
    assert result.sqnr_db > 30


class Twin(torch.nn.Module):
    """A network that is also written as a file."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.norm = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.BatchNorm2d(6)
        self.fc = torch.nn.Linear(6 * 16, 5)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        self.norm.running_mean = torch.randn(6, generator=generator)
        self.norm.running_var = torch.rand(6, generator=generator) + 0.5

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.fc(y.flatten(1))


def test_the_same_integers_as_through_torch(tmp_path: Path) -> None:
    twin = Twin().eval()
    weights = {name: value.numpy() for name, value in twin.state_dict().items() if "batches" not in name}
    nodes = [
        node("Conv", ["input", "conv.weight", "conv.bias"], ["c"], pads=[1, 1, 1, 1]),
        node(
            "BatchNormalization",
            ["c", *(f"norm.{k}" for k in ("weight", "bias", "running_mean", "running_var"))],
            ["n"],
        ),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["p"], ["whole"]),
        node("Gather", ["whole", "zero"], ["n0"]),
        node("Unsqueeze", ["n0", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["p", "target"], ["flat"]),
        node("Gemm", ["flat", "fc.weight", "fc.bias"], ["scores"], transB=1),
        node("Softmax", ["scores"], ["logits"], axis=1),
    ]
    constants = {"zero": np.int64(0), "axes": np.array([0]), "rest": np.array([-1]), **weights}
    path = tmp_path / "twin.onnx"
    onnx.save(model_of(nodes, ["N", 3, 8, 8], constants), path)
    images = np.random.default_rng(0).normal(0, 1, (32, 3, 8, 8)).astype(np.float32)
    source: Any = path
    ours, theirs = twoscale.quantize(source, [images]), twoscale.quantize(twin, [images])
    batch = {"reference": ours(images), "torch": theirs(images)}
    assert np.array_equal(batch["reference"], batch["torch"])
    assert [layer.op for layer in ours] == [layer.op for layer in theirs]


WHOLE = pytest.mark.skipif(not sweep.whole(), reason="needs --sweep all")


@pytest.mark.parametrize(
    "name", ["resnet8", pytest.param("resnet20", marks=WHOLE), pytest.param("mobilenetv2", marks=WHOLE)]
)
def test_a_model_and_its_export_give_the_same_network(name: str, tmp_path: Path) -> None:
    """torch's exporter writes the file, batch norms and all; both front-ends quantize with the same images."""
    torch.manual_seed(0)
    model = models.create(name).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    images = np.random.default_rng(0).normal(0, 1, (4, 3, 32, 32)).astype(np.float32)
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's other exporter needs packages that are not installed
        torch.onnx.export(
            model, (torch.from_numpy(images[:1]),), path, dynamo=False, input_names=["input"],
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, dynamic_axes={"input": {0: "N"}},
        )  # fmt: skip
    source: Any = path
    from_torch, from_file = twoscale.quantize(model, [images]), twoscale.quantize(source, [images])
    assert [layer.op for layer in from_file] == [layer.op for layer in from_torch]
    ours, theirs = (create("torch", network).run(images) for network in (from_torch, from_file))
    for one, other in zip(from_torch, from_file, strict=True):
        assert one.output == other.output
        for field, value in vars(one).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, getattr(other, field)), (one.name, field)
    assert np.array_equal(ours[from_torch.output], theirs[from_file.output])


OPSETS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int]] = {
    "attributes of old operator sets": (
        [
            node("Clip", ["input"], ["a"], min=0.0, max=6.0),
            node("Squeeze", ["a"], ["b"], axes=[3]),
            node("Unsqueeze", ["b"], ["c"], axes=[3]),
            node("Pad", ["c"], ["d"], pads=[0, 0, 1, 0, 0, 0, 0, 1], value=0.5),
            node("Slice", ["d"], ["e"], starts=[1], ends=[9], axes=[2]),
            node("Dropout", ["e"], ["f"]),
            node("Flatten", ["f"], ["logits"]),
        ],
        {},
        9,
    ),
    "a mean without its padding": (
        [
            node("AveragePool", ["input"], ["a"], kernel_shape=[3, 1], pads=[1, 0, 1, 0], strides=[2, 1], ceil_mode=1),
            node("Flatten", ["a"], ["logits"]),
        ],
        {},
        18,
    ),
    "SAME_LOWER": (
        [
            node("Conv", ["input", "w"], ["a"], auto_pad="SAME_LOWER", strides=[2, 1]),
            node("Flatten", ["a"], ["logits"]),
        ],
        {"w": np.ones((2, 4, 2, 1), np.float32)},
        18,
    ),
    "channels last": (
        [
            node("Transpose", ["input"], ["a"], perm=[0, 2, 3, 1]),
            node("MatMul", ["a", "w"], ["b"]),
            node("Add", ["bias", "b"], ["c"]),
            node("ReduceMean", ["c", "axes"], ["logits"], keepdims=0),
        ],
        {"w": np.arange(12, dtype=np.float32).reshape(4, 3) / 9, "bias": np.arange(3, dtype=np.float32),
         "axes": np.array([1, 2])},
        18,
    ),
    "local response norms": (
        [
            node("LRN", ["input"], ["a"], size=3, alpha=0.3, beta=0.75, bias=1.0),
            node("LRN", ["a"], ["b"], size=5, alpha=0.5, beta=0.6, bias=2.0),
            node("Flatten", ["b"], ["logits"]),
        ],
        {},
        18,
    ),
    "quotients of activations": (
        [
            node("Exp", ["input"], ["e"]),
            node("ReduceSum", ["e", "axes"], ["s"]),
            node("Div", ["e", "s"], ["p"]),
            node("Div", ["one", "s"], ["q"]),
            node("Mul", ["p", "q"], ["r"]),
            node("Flatten", ["r"], ["logits"]),
        ],
        {"axes": np.array([1]), "one": np.array([[[2.0]]], np.float32)},
        18,
    ),
    "extremes of several": (
        [
            node("Max", ["input", "low", "input", "rows"], ["a"]),
            node("Min", ["high", "a"], ["b"]),
            node("PRelu", ["b", "slopes"], ["c"]),
            node("Flatten", ["c"], ["logits"]),
        ],
        {"low": np.array(-1.0, np.float32), "high": np.array(1.5, np.float32),
         "rows": np.linspace(-2, 1, 9, dtype=np.float32).reshape(9, 1),
         "slopes": np.linspace(-1, 2, 9, dtype=np.float32).reshape(9, 1)},
        18,
    ),
    "copies": (
        [
            node("Shape", ["input"], ["whole"]),
            node("Gather", ["whole", "zero"], ["n"]),
            node("Concat", ["n", "rest"], ["target"], axis=0),
            node("Expand", ["input", "target"], ["a"]),
            node("Tile", ["a", "times"], ["b"]),
            node("Flatten", ["b"], ["logits"]),
        ],
        {"zero": np.array([0]), "rest": np.array([1, 9, 3]), "times": np.array([1, 1, 2, 1])},
        18,
    ),
    "clip to one value": (
        [
            node("Clip", ["input", "large", "six"], ["a"]),
            node("Clip", ["input", "", "low"], ["b"]),
            node("Sub", ["a", "b"], ["c"]),
            node("Flatten", ["c"], ["logits"]),
        ],
        {"large": np.array(3.2e38, np.float32), "six": np.array(6, np.float32), "low": np.array(-0.5, np.float32)},
        18,
    ),
    "resize": (
        [
            node("Resize", ["input", "", "scales"], ["a"], mode="nearest"),
            node("HardSwish", ["a"], ["b"]),
            node("Flatten", ["b"], ["logits"]),
        ],
        {"scales": np.array([1, 1, 2, 3], np.float32)},
        18,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OPSETS)
def test_forms_of_operators(what: str, tmp_path: Path) -> None:
    nodes, constants, opset = OPSETS[what]
    images = np.random.default_rng(0).normal(0, 2, (3, 4, 9, 1)).astype(np.float32)
    agrees(model_of(nodes, ["N", 4, 9, 1], constants, opset), tmp_path / "net.onnx", images)


def transformer(opset: int) -> onnx.ModelProto:
    """One head of attention and a layer norm, over the four rows of an image as tokens."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Squeeze", ["input", "two"], ["x"]),
        node("LayerNormalization", ["x", "gain", "bias"], ["y"], axis=-1),
        node("MatMul", ["y", "w"], ["q"]),
        node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], ["scores"]),
        node("Mul", ["scores", "factor"], ["scaled"]),
        node("Softmax", ["scaled"], ["weights"], axis=2),
        node("MatMul", ["weights", "x"], ["z"]),
        node("Flatten", ["z"], ["logits"]),
    ]
    constants = {
        "two": np.array([3], np.int64), "factor": np.array(0.3, np.float32),
        "gain": rng.normal(1, 0.5, 9).astype(np.float32), "bias": rng.normal(1, 0.5, 9).astype(np.float32),
        "w": rng.normal(0, 0.5, (9, 6)).astype(np.float32),
    }  # fmt: skip
    return model_of(nodes, ["N", 4, 9, 1], constants, opset)


@dataclasses.dataclass(frozen=True)
class Written:
    """A norm of rows as exporters write it."""

    square: str
    by_reciprocal: bool
    centered: bool


def decomposed(written: Written, axes: list[int]) -> onnx.ModelProto:
    d = "d" if written.centered else "x"
    nodes = [
        node("Squeeze", ["input", "last"], ["x"]),
        node("ReduceMean", ["x", "axes"], ["m"]),
        node("Sub", ["x", "m"], ["d"]),
        node("Pow", [d, "two"], ["q"]) if written.square == "Pow" else node("Mul", [d, d], ["q"]),
        node("ReduceMean", ["q", "axes"], ["v"]),
        # ONNX Runtime 1.31 fuses the usual form, and takes 1e-5 for an eps that is the first operand.
        node("Add", ["eps", "v"] if written.by_reciprocal else ["v", "eps"], ["e"]),
        node("Sqrt", ["e"], ["s"]),
        *(
            [node("Reciprocal", ["s"], ["r"]), node("Mul", ["r", d], ["y"])]
            if written.by_reciprocal
            else [node("Div", [d, "s"], ["y"])]
        ),
        node("Mul", ["gain", "y"], ["z"]),
        node("Add", ["z", "bias"], ["w"]),
        node("Flatten", ["w"], ["logits"]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "last": np.array([3]), "axes": np.array(axes), "two": np.array([2.0], np.float32),
        "eps": np.array(1e-3, np.float32), "gain": rng.normal(1, 0.5, 9).astype(np.float32),
        "bias": rng.normal(0, 1, 9).astype(np.float32),
    }  # fmt: skip
    return model_of(nodes, ["N", 4, 9, 1], constants)


@pytest.mark.parametrize(
    "written",
    [Written("Pow", False, True), Written("Mul", True, True), Written("Pow", False, False)],
    ids=["a layer norm", "by a reciprocal", "without a mean"],
)
def test_norms_in_parts_are_one_layer(written: Written, tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(1, 2, (16, 4, 9, 1)).astype(np.float32)
    path = tmp_path / "net.onnx"
    agrees(decomposed(written, [-1]), path, images)
    graph = float_graph(str(path), images)
    (norm,) = [found for found in graph.nodes if isinstance(found, Normalize)]
    assert norm.centered == written.centered
    assert norm.gain.shape[-1] == 9
    others = [found for found in graph.nodes if not isinstance(found, Reshape | Permute)]
    assert [type(found) for found in others] == [Input, Normalize]
    source: Any = str(path)
    result = twoscale.verify(twoscale.quantize(source, [images]), [images], model=source)
    assert result.mismatches == 0
    assert result.sqnr_db is not None
    assert result.sqnr_db > 30


def test_a_quotient_that_is_no_norm_is_none(tmp_path: Path) -> None:
    """The mean of another dimension than the variance's."""
    model = decomposed(Written("Pow", False, True), [-1])
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "other"))
    mean = next(found for found in model.graph.node if found.op_type == "ReduceMean")
    mean.input[1] = "other"
    images = np.random.default_rng(1).normal(1, 2, (4, 4, 9, 1)).astype(np.float32)
    agrees(model, tmp_path / "net.onnx", images)
    nodes = float_graph(str(tmp_path / "net.onnx"), images).nodes
    assert [found.centered for found in nodes if isinstance(found, Normalize)] == [False]


class LocalNorm(torch.nn.Module):
    """Krizhevsky's local response norm between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.nn.functional.local_response_norm(torch.relu(self.first(x)), 5, alpha=1.0, k=2.0)
        return self.last(y.mean((2, 3)))


def test_a_local_response_norm_is_quantized_from_torch_too() -> None:
    images = some_images(8)
    model = LocalNorm().eval()
    network = twoscale.quantize(model, [images])
    result = twoscale.verify(network, [images], model=model, executors=("reference", "torch", "onnxruntime"))
    assert result.mismatches == 0
    assert result.sqnr_db is not None
    assert result.sqnr_db > 30


@pytest.mark.parametrize("opset", [17, 21])
def test_attention_is_read_and_quantized(opset: int, tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(0, 2, (16, 4, 9, 1)).astype(np.float32)
    path = tmp_path / "net.onnx"
    agrees(transformer(opset), path, images)
    source: Any = str(path)
    network = twoscale.quantize(source, [images])
    result = twoscale.verify(network, [images], model=source, executors=("reference", "torch", "onnxruntime"))
    assert result.mismatches == 0


SEQUENCES = {
    "means": [node("AveragePool", ["input"], ["a"], kernel_shape=[3], strides=[2], pads=[1, 0])],
    "means of values": [node("AveragePool", ["input"], ["a"], kernel_shape=[3], pads=[1, 1], count_include_pad=0)],
    "maxima": [node("MaxPool", ["input"], ["a"], kernel_shape=[2], dilations=[2], ceil_mode=1, strides=[3])],
    "padded maxima": [node("MaxPool", ["input"], ["a"], kernel_shape=[4], auto_pad="SAME_UPPER", strides=[2])],
    "enlarged": [node("Resize", ["input", "", "scales"], ["a"], mode="linear")],
}


@pytest.mark.parametrize("what", SEQUENCES)
def test_pools_and_interpolation_of_sequences(what: str, tmp_path: Path) -> None:
    nodes = [*SEQUENCES[what], node("Flatten", ["a"], ["logits"])]
    constants = {"scales": np.array([1, 1, 1.5], np.float32)} if what == "enlarged" else {}
    images = np.random.default_rng(0).normal(0, 2, (3, 4, 11)).astype(np.float32)
    agrees(model_of(nodes, ["N", 4, 11], constants, 18), tmp_path / "net.onnx", images)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners"]
)
def test_resizing(mode: str, coordinates: str, tmp_path: Path) -> None:
    """By factors and to sizes, larger and smaller, with every rule for ties."""
    images = np.random.default_rng(0).normal(0, 2, (2, 2, 5, 6)).astype(np.float32)
    rules = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] if mode == "nearest" else ["floor"]
    for index, (rows, columns) in enumerate([(2.0, 3.0), (0.6, 1.5), (1.4, 0.5), (0.2, 2.5)]):
        rule = rules[index % len(rules)]
        options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rule}
        if mode == "cubic":
            options.update(cubic_coeff_a=-0.5 if index % 2 else -0.75, exclude_outside=int(index > 1))
        sizes = index == 3 or coordinates == "align_corners"
        given = (
            np.array([2, 2, rows * 5, columns * 6], np.int64) if sizes else np.array([1, 1, rows, columns], np.float32)
        )
        names = ["input", "", "", "given"] if sizes else ["input", "", "given"]
        nodes = [node("Resize", names, ["a"], **options), node("Flatten", ["a"], ["logits"])]
        agrees(model_of(nodes, ["N", 2, 5, 6], {"given": given}, 19), tmp_path / "net.onnx", images)


def test_spaces_to_depths(tmp_path: Path) -> None:
    nodes = [node("SpaceToDepth", ["input"], ["a"], blocksize=3), node("Flatten", ["a"], ["logits"])]
    images = np.random.default_rng(0).normal(0, 2, (2, 2, 6, 9)).astype(np.float32)
    agrees(model_of(nodes, ["N", 2, 6, 9], {}, 18), tmp_path / "net.onnx", images)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"mode": "linear", "antialias": 1}, [1, 1, 0.5, 0.5], "without antialiasing"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, [1, 1, 2, 2], "resizing by nearest"),
        ({}, [2, 1, 1, 1], "resizes the batch by 2; expected images to stay apart"),
        ({}, [1, 1, 0.1, 1], "which leaves nothing"),
        ({"mode": "linear"}, [1, 1, 5e3, 1], "expected at most 16384 along each dimension"),
        ({}, [1, 1, -1, 1], "expected positive factors or sizes"),
        ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, [1, 1, 1.5, 1], "give sizes"),
    ],
)
def test_resizing_that_is_refused(options: dict[str, Any], given: list[float], message: str, tmp_path: Path) -> None:
    nodes = [node("Resize", ["input", "", "given"], ["a"], **options), node("Flatten", ["a"], ["logits"])]
    model = model_of(nodes, ["N", 2, 5, 6], {"given": np.array(given, np.float32)}, 19)
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(TwoscaleError, match=message):
        float_graph(str(tmp_path / "net.onnx"), np.zeros((2, 2, 5, 6), np.float32))


@pytest.fixture(scope="module")
def node_tests() -> list[onnx_nodes.Outcome]:
    return list(onnx_nodes.outcomes())


def test_onnxs_own_node_tests(node_tests: list[onnx_nodes.Outcome]) -> None:
    """Every node test of an operator that is read, whose first input can be images and the rest constants."""
    assert [outcome.test for outcome in node_tests if outcome.outcome == onnx_nodes.WRONG] == []
    passed = {outcome.operator for outcome in node_tests if outcome.outcome == onnx_nodes.PASSED}
    assert len(passed) >= 25, sorted(passed)


def test_node_tests_that_were_recorded_as_passed_still_pass(node_tests: list[onnx_nodes.Outcome]) -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "onnx_nodes.json").read_text())
    assert record["wrong"] == []
    passed = {outcome.test for outcome in node_tests if outcome.outcome == onnx_nodes.PASSED}
    assert set(record["passed"]) <= passed
    table = onnx_nodes.markdown([onnx_nodes.Row(**row) for row in record["rows"]])
    assert table in (ROOT / "docs" / "onnx.md").read_text()


def test_a_wrong_node_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from twoscale._frontends.onnx_float import operators

    monkeypatch.setitem(operators.OPERATORS, "Sum", operators.OPERATORS["Max"])
    found = list(onnx_nodes.outcomes({"test_sum_two_inputs"}))
    assert [outcome.outcome for outcome in found] == [onnx_nodes.WRONG]


@pytest.mark.parametrize("inputs", [["input", "c"], ["c", "input", "c"], ["input", "input"], ["input"]], ids=str)
def test_sums_of_any_number_of_tensors(inputs: list[str], tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(0, 2, (3, 4, 9, 1)).astype(np.float32)
    nodes = [node("Sum", inputs, ["a"]), node("Flatten", ["a"], ["logits"])]
    agrees(
        model_of(nodes, ["N", 4, 9, 1], {"c": np.arange(4, dtype=np.float32)[:, None, None]}),
        tmp_path / "n.onnx",
        images,
    )


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.5), (1 / 6, 0.5), (-0.4, 0.1)])
def test_hard_sigmoids_of_any_slope(alpha: float, beta: float, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(0, 4, (3, 4, 9, 1)).astype(np.float32)
    nodes = [node("HardSigmoid", ["input"], ["a"], alpha=alpha, beta=beta), node("Flatten", ["a"], ["logits"])]
    agrees(model_of(nodes, ["N", 4, 9, 1], {}), tmp_path / "n.onnx", images)


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    images = np.zeros((2, 4, 9, 1), np.float32)
    onnx.save(model_of([node("Flatten", ["input"], ["a"]), node("Acos", ["a"], ["logits"])], ["N", 4, 9, 1], {}), path)
    with pytest.raises(UnsupportedOperatorError, match=r"Acos at .*net\.onnx: node .* has no integer form here"):
        float_graph(path, images)
    onnx.save(model_of([node("Flatten", ["input"], ["logits"], axis=0)], ["N", 4, 9, 1], {}), path)
    with pytest.raises(CaptureError, match="expected the first dimension to stay the batch"):
        float_graph(path, images)
    with pytest.raises(CaptureError, match=r"takes images of shape \(4, 9, 1\), got \(4, 9, 2\)"):
        float_graph(path, np.zeros((2, 4, 9, 2), np.float32))


# Numbers at the ends of their range.

EXTREMES = [float("inf"), float("-inf"), float("nan"), 3e38, -3e38, 0.0]
ATTRIBUTES = [
    ("LeakyRelu", "alpha"), ("Elu", "alpha"), ("Celu", "alpha"), ("HardSigmoid", "alpha"), ("HardSigmoid", "beta"),
    ("BatchNormalization", "epsilon"),
]  # fmt: skip
OPERANDS = {
    "Clip, lower": node("Clip", ["input", "value"], ["z"]),
    "Clip, upper": node("Clip", ["input", "", "value"], ["z"]),
    "Pad": node("Pad", ["input", "pads", "value"], ["z"]),
    **{operator: node(operator, ["input", "value"], ["z"]) for operator in ("Add", "Mul", "Div", "Max", "Min", "Pow")},
    "BatchNormalization": node("BatchNormalization", ["input", "ones", "ones", "ones", "values"], ["z"]),
    "Conv": node("Conv", ["input", "weights"], ["z"]),
}
CASES = [
    *(
        (node(operator, ["input", *(["ones"] * 4 if operator[0] == "B" else [])], ["z"], **{key: value}), value)
        for operator, key in ATTRIBUTES
        for value in EXTREMES
    ),
    *((made, value) for made in OPERANDS.values() for value in EXTREMES),
]


@pytest.mark.parametrize(("made", "value"), CASES, ids=lambda v: v.op_type if isinstance(v, onnx.NodeProto) else str(v))
def test_extreme_numbers_are_computed_as_onnx_runtime_does_or_refused(
    made: onnx.NodeProto, value: float, tmp_path: Path
) -> None:
    number = np.float32(value)
    constants = {
        "value": number, "values": np.full(3, number), "ones": np.ones(3, np.float32), "pads": [0, 0, 1, 1] * 2,
        "weights": np.full((3, 3, 1, 1), number),
    }  # fmt: skip
    used = {name: constants[name] for name in constants if name in made.input}
    model = model_of([made, node("Flatten", ["z"], ["logits"])], ["N", 3, 4, 4], used, opset=15)
    images = some_images(4)[:, :, :4, :4].copy()
    path = tmp_path / "net.onnx"
    source: Any = str(path)
    onnx.save(model, path)
    (expected,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": images})
    if not np.isfinite(expected).all():
        with pytest.raises(TwoscaleError, match=r"^[^\n]*$"):
            twoscale.quantize(source, images)
        return
    with contextlib.suppress(TwoscaleError):
        agrees(model, path, images)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 6), (6, 3, 1, 1)], ids=str)
def test_biases_that_are_not_one_per_channel_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    """The checker and shape inference of ONNX let them pass."""
    nodes = [node("Conv", ["input", "weights", "biases"], ["z"]), node("Flatten", ["z"], ["logits"])]
    constants = {"weights": np.ones((6, 3, 1, 1), np.float32), "biases": np.ones(shape, np.float32)}
    onnx.save(model_of(nodes, ["N", 3, 4, 4], constants), tmp_path / "net.onnx")
    with pytest.raises(CaptureError, match=r"Conv at .* has biases of shape \(.*\); expected \(6,\), one per output"):
        float_graph(str(tmp_path / "net.onnx"), np.zeros((2, 3, 4, 4), np.float32))
