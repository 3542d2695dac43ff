"""Files of other tools: each gives ONNX Runtime's integers on the same file, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.formats.test_onnx_foreign import Draft, of_node, refused
from twoscale._formats import load
from twoscale._frontends.onnx_integer import pools, settling
from twoscale._ir import layers as n
from twoscale.errors import NetworkFileError

SEEDS = range(6)


def equals_onnx_runtime(path: Path, images: np.ndarray) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": images})
    assert np.array_equal(load(path)(images), expected)


def all_values(scale: float, zero_point: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return images whose integers are all pairs of two channels."""
    q = np.arange(256)
    a, b = np.meshgrid(q, q, indexing="ij")
    pairs = np.stack([a.reshape(-1), b.reshape(-1)], 1).astype(np.float32)
    return ((pairs - zero_point) * np.float32(scale)).astype(np.float32).reshape(-1, *shape)


def two_operands(seed: int) -> tuple[Draft, np.ndarray]:
    """Return a graph with two tensors x0 and x1 of different scales, and images with all pairs of their integers."""
    rng = np.random.default_rng(seed)
    draft = Draft()
    draft.input_shape = ("N", 2, 1, 1)
    scale = float(np.float32(rng.uniform(0.01, 0.1)))
    zero = int(rng.integers(0, 256))
    draft.constant("s", scale)
    draft.constant("z", zero, np.uint8)
    for i in range(2):
        for what, value in (("from", i), ("to", i + 1), ("axes", 1)):
            draft.constant(f"{what}{i}", [value], np.int64)
        draft.node("Slice", ["x", f"from{i}", f"to{i}", f"axes{i}"], f"x{i}")
    draft.constant("so", float(np.float32(rng.uniform(0.02, 0.2))))
    draft.constant("zo", int(rng.integers(0, 256)), np.uint8)
    return draft, all_values(scale, zero, (2, 1, 1))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
def test_all_operand_pairs(operator: str, seed: int, tmp_path: Path) -> None:
    draft, images = two_operands(seed)
    draft.microsoft(operator, ["x0", "s", "z", "x1", "s", "z", "so", "zo"], "y")
    draft.finish("y", "so", "zo")
    equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), images)


def test_sums_that_no_multipliers_give_are_refused(tmp_path: Path) -> None:
    """Every other sum is a tie, and ONNX Runtime adds the odd zero point before it rounds."""
    draft, _ = two_operands(0)
    draft.constant("s", 0.25)
    draft.constant("so", 0.5)
    draft.constant("zo", 101, np.uint8)
    draft.microsoft("QLinearAdd", ["x0", "s", "z", "x1", "s", "z", "so", "zo"], "y")
    draft.finish("y", "so", "zo")
    assert "no float32 multipliers give the integers of ONNX Runtime" in refused(draft, tmp_path)


def near_ties(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return accumulators whose products with the factors lie next to a tie, or beyond the type."""
    ties = rng.integers(-300, 300, factors.shape) + 0.5
    accumulators: np.ndarray = np.rint(ties / factors).astype(np.int64) + rng.integers(-1, 2, factors.shape)
    return accumulators


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("operator", ["QLinearConv", "QLinearConv int8", "QGemm", "QLinearMatMul"])
def test_accumulators_next_to_ties(operator: str, seed: int, tmp_path: Path) -> None:
    """2,000 channels, each with its scale and a bias that takes one of the images next to a tie."""
    rng = np.random.default_rng(seed)
    dtype = np.int8 if "int8" in operator else np.uint8
    limits, channels, count = np.iinfo(dtype), 2000, 50
    draft = Draft()
    draft.nodes.clear()
    draft.input_shape = ("N", 4, 1, 1)
    s_x, s_y = (np.float32(value) for value in rng.uniform(1e-3, 1e-1, 2))
    z_x, z_y = (int(value) for value in rng.integers(limits.min, limits.max + 1, 2))
    for name, value, kind in (("s", s_x, np.float32), ("so", s_y, np.float32), ("z", z_x, dtype), ("zo", z_y, dtype)):
        draft.constant(name, value, kind)
    draft.node("QuantizeLinear", ["images", "s", "z"], "x")
    scales = rng.uniform(1e-5, 3e-2, channels).astype(np.float32)
    alpha = np.float32(rng.choice([1, 0.3])) if operator == "QGemm" else np.float32(1)
    x = rng.integers(limits.min, limits.max + 1, (count, 4))
    weight = rng.integers(-127, 128, (channels, 4)).astype(np.int8)
    products = (x - z_x) @ weight.T.astype(np.int64)
    bias = near_ties(alpha * s_x * scales.astype(np.float64) / s_y, rng) - products[
        rng.integers(0, count, channels), np.arange(channels)
    ]  # fmt: skip
    draft.constant("b", bias, np.int32)
    draft.constant("wz", np.zeros(channels), np.int8)
    draft.constant("ws", scales)
    if operator.startswith("QLinearConv"):
        draft.constant("w", weight.reshape(channels, 4, 1, 1), np.int8)
        draft.node("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "so", "zo", "b"], "y")
    elif operator == "QGemm":
        draft.node("Flatten", ["x"], "v")
        draft.constant("w", weight, np.int8)
        names = ["v", "s", "z", "w", "ws", "wz", "b", "so", "zo"]
        draft.microsoft("QGemm", names, "y", transB=1, alpha=float(alpha))
    else:
        draft.node("Flatten", ["x"], "v")
        draft.constant("w", weight.T, np.int8)
        draft.constant("wz", 0, np.int8)
        draft.constant("ws", (rng.integers(0, 255) + 0.5) * s_y / (s_x * np.abs(products[products != 0])[0]))
        draft.node("QLinearMatMul", ["v", "s", "z", "w", "ws", "wz", "so", "zo"], "y")
    draft.finish("y", "so", "zo")
    images = ((x - z_x) * s_x).astype(np.float32).reshape(count, 4, 1, 1)
    equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), images)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("operator", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_all_values_of_tables(operator: str, seed: int, tmp_path: Path) -> None:
    draft, images = two_operands(seed)
    draft.microsoft(operator, ["x", "s", "z", "so", "zo"], "y")
    draft.finish("y", "so", "zo")
    equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), images)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_values_of_concatenations(seed: int, tmp_path: Path) -> None:
    draft, images = two_operands(seed)
    draft.microsoft("QLinearConcat", ["so", "zo", "x1", "s", "z", "x0", "s", "z"], "y", axis=1)
    draft.finish("y", "so", "zo")
    equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), images)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_values_of_a_requantization(seed: int, tmp_path: Path) -> None:
    draft, images = two_operands(seed)
    draft.node("DequantizeLinear", ["x", "s", "z"], "r")
    draft.node("QuantizeLinear", ["r", "so", "zo"], "y")
    draft.finish("y", "so", "zo")
    equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), images)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kernel", "pads"), [(2, 0), (3, 0), (3, 1), (7, 0)])
def test_means_over_windows(kernel: int, pads: int, seed: int, tmp_path: Path) -> None:
    draft, _ = two_operands(seed)
    draft.input_shape = ("N", 2, 14, 14)
    more = {"pads": [pads] * 4, "count_include_pad": 1} if pads else {}
    names = ["x", "s", "z", "so", "zo"]
    draft.microsoft("QLinearAveragePool", names, "y", kernel_shape=[kernel] * 2, strides=[kernel] * 2, **more)
    draft.finish("y", "so", "zo")
    images = np.random.default_rng(seed).normal(0, 4, (1000, 2, 14, 14)).astype(np.float32)
    if (kernel, seed) in ((7, 0), (7, 1), (7, 2), (7, 4)):  # their sums of 49 float32 products differ too much
        assert "depends on the order of the values" in refused(draft, tmp_path)
    else:
        equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), images)


@pytest.mark.parametrize("zero", [100, 101])
def test_means_that_are_ties(zero: int, tmp_path: Path) -> None:
    """With powers of two all sums are exact; an odd zero point, added first, turns the ties round."""
    draft = Draft()
    draft.input_shape = ("N", 1, 1, 2)
    draft.constant("s", 0.125)
    draft.constant("so", 0.125)
    draft.constant("z", 0, np.uint8)
    draft.constant("zo", zero, np.uint8)
    draft.microsoft("QLinearAveragePool", ["x", "s", "z", "so", "zo"], "y", kernel_shape=[1, 2])
    draft.finish("y", "so", "zo")
    if zero % 2:
        assert "no float32 multipliers give the integers of ONNX Runtime" in refused(draft, tmp_path)
    else:
        equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), all_values(0.125, 0, (1, 1, 2)))


def test_means_whose_float_sums_fall_to_both_sides_of_a_tie(tmp_path: Path) -> None:
    """The scale is no power of two: sums of 2 modulo 4 are ties in real numbers, and float32 errors decide them."""
    draft, _ = two_operands(0)
    draft.input_shape = ("N", 2, 8, 8)
    draft.constant("s", 0.1)
    draft.constant("so", 0.1)
    draft.microsoft("QLinearAveragePool", ["x", "s", "z", "so", "zo"], "y", kernel_shape=[2, 2], strides=[2, 2])
    draft.finish("y", "so", "zo")
    assert "depends on the order of the values" in refused(draft, tmp_path)


def test_the_least_and_greatest_float_sums() -> None:
    """Against every pair and triple of values."""
    scale = float(np.float32(0.0371))
    layer = n.QuantizeInput(name="x", inputs=(), output=n.TensorSpec((1,), "uint8", scale, 100, 0, 255))
    d = np.arange(-100, 156)
    f = d.astype(np.float32) * np.float32(scale)
    for count in (2, 3):
        integers, floats = d, f
        for _ in range(count - 1):
            integers = (integers[:, None] + d).reshape(-1)
            floats = (floats[:, None] + f).reshape(-1)
        every, least, greatest = pools._float_sums(layer, count, padded=False)
        order = np.lexsort((floats, integers))
        first = np.searchsorted(integers[order], every, "left")
        last = np.searchsorted(integers[order], every, "right") - 1
        assert np.array_equal(floats[order][first], least)
        assert np.array_equal(floats[order][last], greatest)
        assert (least < greatest).any()


def test_a_multiplier_that_rounds_otherwise_is_moved_or_refused() -> None:
    """Planted: the expected integer of one operand is off by one, so that no multiplier gives it."""
    from twoscale._ir.layers import TensorSpec

    spec = TensorSpec((1,), "uint8", 1.0, 0, 0, 255)
    q = np.arange(256, dtype=np.float32)
    expected = np.clip(np.rint(q * np.float32(0.5)), 0, 255)
    assert settling.settle([np.float32(0.5)], lambda m: q * m[0], spec, expected) == (np.float32(0.5),)
    near = np.nextafter(np.float32(0.5), np.float32(1))
    assert settling.settle([near], lambda m: q * m[0], spec, expected) == (np.float32(0.5),)
    expected[100] += 1
    assert settling.settle([np.float32(0.5)], lambda m: q * m[0], spec, expected) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.node("MaxPool", ["x"], "y", kernel_shape=[2, 2], auto_pad="VALID", pads=[1, 0, 0, 0]),
         "pads beside auto_pad = VALID"),
        (lambda d: d.node("MaxPool", ["x"], "y", kernel_shape=[2, 2], auto_pad=1), "auto_pad is int, expected bytes"),
        (lambda d: d.node("MaxPool", ["x"], "y", kernel_shape=[2, 2], pads=[10**12, 0, 0, 0]), "numbers from 0 to"),
        (lambda d: d.conv(pads=[0, 2**62, 0, 0]), "numbers from 0 to 65,536"),
        (lambda d: d.node("Squeeze", ["x", d.constant("t", [9], np.int64)], "y"), "dimension 9 of a tensor of 4"),
        (lambda d: d.node("Slice", ["x", d.constant("a", [0], np.int64), d.constant("b", [1], np.int64),
                                    d.constant("c", [5], np.int64)], "y"),
         "dimension 5 of a tensor of 4"),
        (lambda d: d.node("Reshape", ["x", d.constant("t", [1, -1], np.int64)], "y"), "the batch may be larger"),
        (lambda d: d.node("Clip", ["x", d.constant("a", [1, 2], np.uint8)], "y"), "its bounds are not single numbers"),
        (lambda d: (d.conv(), d.constant("ws", [1e30, 1, 1])), "is not a positive float32 below 2**31"),
        (lambda d: d.node("QuantizeLinear", ["images", d.constant("s2", [[0.5]]), "z"], "y"),
         "must be one float32 scale, got float32 (1, 1)"),
        (lambda d: (d.conv(), d.constant("wz", [0, 1, 0], np.int8)), "which ONNX Runtime does not run"),
        (lambda d: d.node("QuantizeLinear", ["images", "s", "z"], "y", output_dtype=int(TensorProto.INT8)),
         "it makes uint8 of int8"),
        (lambda d: d.node("QuantizeLinear", ["images", "s"], "y", output_dtype=int(TensorProto.UINT16)),
         "is not 8 bits wide"),
        (lambda d: d.microsoft("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "s", "z"], "y"),
         "not an operator on integers that twoscale reads"),
    ],
)  # fmt: skip
def test_what_onnx_runtime_reads_otherwise_is_refused(
    change: Callable[[Draft], object], reason: str, tmp_path: Path
) -> None:
    def of(draft: Draft) -> None:
        change(draft)

    assert reason in of_node(of, tmp_path)


def changed(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.int8), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2, 3, 3]))


def of_another_type(model: onnx.ModelProto) -> None:
    """The values are in the field of another type: for its own type the constant is empty."""
    model.graph.initializer.append(onnx.TensorProto(name="i", data_type=TensorProto.INT64, dims=[2], int32_data=[1, 2]))


def external(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (sparse, "its constant w is sparse"),
        (external, "is in another file"),
        (of_another_type, "the constant i has 0 values, expected 2"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two things are the initializer"),
        (lambda m: m.graph.node.append(m.graph.node[1]), "two things are the tensor"),
        (
            lambda m: m.graph.node[1].attribute.extend([helper.make_attribute("group", 1)] * 2),
            "the attribute group twice",
        ),
        (lambda m: setattr(m.graph.node[1], "domain", "elsewhere"), "is of the operator set 'elsewhere'"),
        (lambda m: setattr(m.opset_import[0], "version", 99), "uses version 99 of the operator set ai.onnx"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 77), "has the type 77"),
        (lambda m: m.graph.initializer[0].dims.extend([2**40]), "values, expected"),
        (lambda m: m.graph.node[1].input.extend(["", "s"]), "is not valid ONNX"),
    ],
)
def test_ambiguous_files_are_refused(change: Callable[[onnx.ModelProto], object], reason: str, tmp_path: Path) -> None:
    draft = Draft()
    draft.conv()
    draft.finish("y")
    path = changed(draft.save(tmp_path / "a.onnx"), change)
    with pytest.raises(NetworkFileError) as caught:
        load(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["Flatten", "com.microsoft", "the_y", "group", "images", "draft"])
def test_names_that_are_not_utf8(name: str, tmp_path: Path) -> None:
    """Protobuf gives bytes for them, which neither compare with text nor can be printed."""
    draft = Draft()
    draft.conv(group=1)
    draft.finish("y")
    path = draft.save(tmp_path / "a.onnx")
    content = path.read_bytes()
    assert name.encode() in content
    path.write_bytes(content.replace(name.encode(), b"\xff" + name.encode()[1:]))
    with pytest.raises(NetworkFileError, match="a name in it is not UTF-8"):
        load(path)


def test_integers_as_the_output(tmp_path: Path) -> None:
    draft = Draft()
    draft.node("Flatten", ["x"], "logits")
    assert "the output logits is the integers themselves" in refused(draft, tmp_path)


def test_one_image_may_be_reshaped_to_one(tmp_path: Path) -> None:
    draft = Draft()
    draft.input_shape = (1, 2, 4, 4)
    draft.node("Reshape", ["x", draft.constant("t", [1, -1], np.int64)], "flat")
    draft.node("DequantizeLinear", ["flat", "s", "z"], "logits")
    images = np.random.default_rng(0).normal(0, 20, (1, 2, 4, 4)).astype(np.float32)
    equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), images)


def test_squeeze_without_axes(tmp_path: Path) -> None:
    draft = Draft()
    draft.microsoft("QLinearGlobalAveragePool", ["x", "s", "z", "s", "z"], "g")
    draft.node("Squeeze", ["g"], "v")
    draft.node("DequantizeLinear", ["v", "s", "z"], "logits")
    images = np.random.default_rng(0).normal(0, 20, (5, 2, 4, 4)).astype(np.float32)
    equals_onnx_runtime(draft.save(tmp_path / "a.onnx"), images)
