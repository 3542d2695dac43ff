"""`.tflite` files of others: their networks compute TensorFlow Lite's integers, by every executor.

The oracles are LiteRT's reference kernels, TensorFlow Lite for Microcontrollers where it is installed, and plain loops
over the definition on Python integers. LiteRT's FULLY_CONNECTED rounds once, and its LOGISTIC and TANH are tables of
float numbers, so that these are compared with the other two only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import twoscale
from tests import sweep
from tests.scalar_executor import ScalarExecutor
from tests.tflite_files import KERAS_OPERATORS, OPERATORS, UINT8_OPERATORS, random_file
from twoscale import data
from twoscale._frontends.tflite import Read, read
from twoscale._frontends.tflite.model import parse
from twoscale._ir import fixed_point
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators import vectorized
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes.c import CExecutor
from twoscale.errors import ConfigurationError, NetworkFileError, TwoscaleError

litert = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "models" / "resnet8-cifar10-int8.tflite"
LITERT_DIFFERS = {"fully_connected", "logistic", "tanh"}


def made(seed: int, operators: Sequence[str], length: int, dtype: str = "int8") -> tuple[bytes, Read, NDArray[Any]]:
    """Return a random file, its network, and integer images (N, C, H, W)."""
    rng = np.random.default_rng(seed)
    content = random_file(rng, operators, length, dtype)
    found = read(Path("random.tflite"), content)
    spec = found.network.input.output
    return content, found, rng.integers(spec.lo, spec.hi + 1, (2, *spec.shape)).astype(dtype)


def real(network: IntegerNetwork, integers: NDArray[Any]) -> NDArray[np.float32]:
    """Return the images that the first layer turns into these integers."""
    spec = network.input.output
    return ((integers.astype(np.float64) - spec.zero_point) * spec.scale).astype(np.float32)


def names(network: IntegerNetwork) -> list[str]:
    return [layer.name for layer in network]


def run_litert(content: bytes, found: Read, integers: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the tensors of LiteRT's reference kernels by the network's layers."""
    runtime = litert.Interpreter(
        model_content=content,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    runtime.allocate_tensors()
    entry = runtime.get_input_details()[0]["index"]
    runs = []
    for image in integers:
        runtime.set_tensor(entry, image[None].transpose(0, 2, 3, 1))
        runtime.invoke()
        runs.append({name: runtime.get_tensor(tensor)[0].copy() for name, tensor in found.tensors.items()})
    stacked = {name: np.array([run[name] for run in runs]) for name in found.tensors}
    return {name: v.transpose(0, 3, 1, 2) if v.ndim == 4 else v for name, v in stacked.items()}


def differing(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, int]:
    """Return how many integers differ, for layers where any does."""
    counts = {name: int(np.count_nonzero(values != found[name])) for name, values in expected.items()}
    return {name: count for name, count in counts.items() if count}


CASES = [
    *((operator, "int8") for operator in OPERATORS if operator not in LITERT_DIFFERS),
    *((operator, "uint8") for operator in UINT8_OPERATORS if operator not in LITERT_DIFFERS),
    *((operator, "int8") for operator in KERAS_OPERATORS),
]


@pytest.mark.parametrize(("operator", "dtype"), CASES)
def test_every_operator_is_that_of_litert(operator: str, dtype: str) -> None:
    for seed in range(sweep.count(20, 3)):
        content, found, integers = made(seed, [operator], 1, dtype)
        computed = ReferenceExecutor(found.network).run(real(found.network, integers), names(found.network))
        assert differing(computed, run_litert(content, found, integers)) == {}


@pytest.mark.parametrize("seed", range(sweep.count(100, 8)))
@pytest.mark.parametrize(("dtype", "all_operators"), [("int8", OPERATORS), ("uint8", UINT8_OPERATORS)])
def test_random_networks_are_those_of_litert(dtype: str, all_operators: Sequence[str], seed: int) -> None:
    operators = [operator for operator in all_operators if operator not in LITERT_DIFFERS]
    content, found, integers = made(seed, operators, 6, dtype)
    computed = ReferenceExecutor(found.network).run(real(found.network, integers), names(found.network))
    assert differing(computed, run_litert(content, found, integers)) == {}


def test_litert_rounds_fully_connected_layers_once() -> None:
    """The one layer type of weights where its reference kernels differ from TensorFlow Lite for Microcontrollers."""
    different = 0
    for seed in range(40):
        content, found, integers = made(seed, ["fully_connected"], 1)
        network = found.network
        computed = ReferenceExecutor(network).run(real(network, integers), names(network))
        layer = next(layer for layer in network if isinstance(layer, n.Linear))
        multiplier = layer.multiplier
        assert isinstance(multiplier, n.FixedPoint)
        centred = computed[layer.inputs[0]].astype(np.int64) - network.spec(layer.inputs[0]).zero_point
        acc = centred @ layer.weight.T.astype(np.int64) + layer.bias_o
        shift = 31 - multiplier.exponents.astype(np.int64)
        once = (acc * multiplier.mantissas.astype(np.int64) + (1 << (shift - 1))) >> shift
        once = np.clip(once + layer.output.zero_point, layer.output.lo, layer.output.hi)
        expected = run_litert(content, found, integers)[layer.name]
        assert (once == expected).all()
        different += int((computed[layer.name] != expected).sum())
    assert different < 10


@pytest.mark.parametrize("seed", range(sweep.count(60, 6)))
def test_the_reference_is_the_definition(seed: int) -> None:
    dtype, operators = ("int8", OPERATORS) if seed % 3 else ("uint8", UINT8_OPERATORS)
    _, found, integers = made(100 + seed, operators, 3, dtype)
    images = real(found.network, integers[:1])
    computed = ReferenceExecutor(found.network).run(images, names(found.network))
    assert differing(computed, ScalarExecutor(found.network).run(images)) == {}


@pytest.mark.parametrize("operator", ["fully_connected", "logistic", "tanh", "softmax", "average_pool"])
def test_the_operators_that_litert_has_otherwise_are_their_definition(operator: str) -> None:
    for seed in range(3):
        _, found, integers = made(seed, [operator], 1)
        images = real(found.network, integers[:1])
        computed = ReferenceExecutor(found.network).run(images, names(found.network))
        assert differing(computed, ScalarExecutor(found.network).run(images)) == {}


@pytest.mark.parametrize("scale", [1 / 512, 0.02, 0.1, 1.0])
def test_tables_are_near_the_functions(scale: float) -> None:
    q = np.arange(-255, 256)
    sigmoid = np.array([fixed_point.logistic(int(value), scale) for value in q])
    assert np.abs(sigmoid - np.clip(256 / (1 + np.exp(-scale * q)), 0, 255)).max() <= 0.51
    tanh = np.array([fixed_point.tanh(int(value), scale) for value in q])
    assert np.abs(tanh - np.clip(128 * np.tanh(scale * q), -128, 127)).max() <= 0.51
    mantissa, exponent = fixed_point.quantize_multiplier(scale * 2**26)
    table = np.array(fixed_point.exponential_table(mantissa, exponent)) / 2**31
    assert np.abs(table - np.exp(-scale * np.arange(256))).max() < 1e-6


# ---------------------------------------------------------------- executors


@pytest.mark.parametrize("seed", range(sweep.count(40, 4)))
def test_torch_computes_the_same_integers(seed: int) -> None:
    from twoscale._runtimes.torch import TorchExecutor

    dtype, operators = ("int8", OPERATORS) if seed % 2 else ("uint8", UINT8_OPERATORS)
    _, found, integers = made(300 + seed, operators, 8, dtype)
    images = real(found.network, integers)
    expected = ReferenceExecutor(found.network).run(images, names(found.network))
    assert differing(TorchExecutor(found.network).run(images, names(found.network)), expected) == {}


@pytest.mark.parametrize("form", ["integer", "qdq", "tflite"])
def test_forms_without_this_arithmetic_are_refused(form: str, tmp_path: Path) -> None:
    _, found, _ = made(3, ["conv", "add"], 3)
    with pytest.raises(ConfigurationError, match="has TensorFlow Lite's arithmetic, which rounds twice"):
        found.network.save(tmp_path / "net", form=form)
    assert not list(tmp_path.iterdir())


def test_verify_compares_with_the_file_itself(tmp_path: Path) -> None:
    content, _, integers = made(8, ["conv", "depthwise", "add"], 4)
    path = tmp_path / "net.tflite"
    path.write_bytes(content)
    network = twoscale.load(path)
    images = real(network, integers)
    result = twoscale.verify(network, images, executors=["reference", "torch"])
    assert (result.mismatches, result.exact, result.on_grid) == (0, True, False)
    assert result.executors[-1] == "litert's reference kernels on net.tflite"
    assert result.compared_by_executor[result.executors[-1]] > 0
    path.write_bytes(made(9, ["conv", "depthwise", "add"], 4)[0])
    assert "is not the file that net was read from" in str(twoscale.verify(network, images).original_left_out)


KERAS = {
    "conv1d-float-io": "Conv1D, pools and a mean over one dimension; float32 in and out",
    "conv1d-uint8-io": "the same; uint8 in and out, int8 inside",
    "dilated-int8": "padding, a dilated convolution, ELU in float32, GELU, swish",
    "upsampling-int8": "a transposed convolution, UpSampling2D, LeakyReLU, PReLU",
}
"""Files that TensorFlow 2.21 made of Keras models with random weights."""


@pytest.mark.parametrize("name", list(KERAS))
def test_files_of_keras_models(name: str) -> None:
    path = Path(__file__).parent / "keras" / f"{name}.tflite"
    network = twoscale.load(path)
    images = np.random.default_rng(0).normal(0, 1, (2, *network.input.output.shape)).astype(np.float32)
    result = twoscale.verify(network, images, executors=["reference", "torch"])
    assert result.mismatches == 0
    if name.startswith("conv1d"):
        assert result.compared_by_executor[f"litert's reference kernels on {path.name}"] > 10_000
    else:
        assert "Didn't find op for builtin opcode" in str(result.original_left_out)


@pytest.mark.parametrize("name", ["dilated-int8", "upsampling-int8"])
def test_tables_and_copies_of_keras_models_are_those_of_litert(name: str) -> None:
    """Reference kernels do not run these files; the others round convolutions once and share everything else."""
    path = Path(__file__).parent / "keras" / f"{name}.tflite"
    found = read(path, path.read_bytes())
    network = found.network
    runtime = litert.Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    runtime.allocate_tensors()
    spec = network.input.output
    integers = np.random.default_rng(0).integers(spec.lo, spec.hi + 1, (1, *spec.shape)).astype(np.int8)
    runtime.set_tensor(runtime.get_input_details()[0]["index"], integers.transpose(0, 2, 3, 1))
    runtime.invoke()
    values: dict[str, NDArray[Any]] = {}
    compared = 0
    for layer in network:
        operands = [values[one] for one in layer.inputs]
        specs = [network.spec(one) for one in layer.inputs]
        computing = found.in_litert.get(layer.name, layer)
        values[layer.name] = computing.compute(specs, operands) if operands else integers
        if layer.name in found.tensors:
            tensor = runtime.get_tensor(found.tensors[layer.name])
            tensor = tensor.transpose(0, 3, 1, 2) if tensor.ndim == 4 else tensor
            far = np.abs(tensor.astype(int) - values[layer.name]).max()
            assert far <= (1 if isinstance(layer, n.Conv2d | n.Linear) else 0), layer.name
            values[layer.name] = tensor
            compared += 1
    assert compared >= 10


def test_tables_of_our_own_files_are_read() -> None:
    from twoscale._formats.tflite.graph_builder import GraphBuilder

    graph = GraphBuilder("table")
    x, y = (graph.tensor(name, (1, 4, 4, 3), "int8", 0.5) for name in ("x", "y"))
    wide, index = (graph.tensor(name, (1, 4, 4, 3), "int32") for name in ("wide", "index"))
    values = np.random.default_rng(0).integers(-128, 128, 256).astype(np.int8)
    graph.operator("CAST", [x], wide, "CastOptions", inDataType=9, outDataType=2)
    graph.operator("ADD", [wide, graph.constant("c", np.array(128, np.int32))], index, "AddOptions")
    graph.operator("GATHER", [graph.constant("t", values, 0.5), index], y, "GatherOptions", axis=0)
    content = graph.to_bytes([x], [y])
    found = read(Path("table.tflite"), content)
    integers = np.random.default_rng(1).integers(-128, 128, (2, 3, 4, 4)).astype(np.int8)
    computed = ReferenceExecutor(found.network).run(real(found.network, integers), names(found.network))
    assert differing(computed, run_litert(content, found, integers)) == {}
    assert (computed[found.network.output] == values[integers.astype(int) + 128]).all()


def test_int16_activations_are_refused() -> None:
    from ai_edge_litert import schema_py_generated as schema

    from twoscale._formats.tflite.graph_builder import GraphBuilder

    graph = GraphBuilder("wide")
    x, y = (graph.tensor(name, (1, 4, 4, 3), "int8", 0.5) for name in ("x", "y"))
    graph.operator("RELU", [x], y)
    model = schema.ModelT.InitFromPackedBuf(graph.to_bytes([x], [y]), 0)
    for tensor in model.subgraphs[0].tensors:
        tensor.type = schema.TensorType.INT16
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(NetworkFileError, match=r"wide\.tflite has int16 activations; expected int8 or uint8"):
        read(Path("wide.tflite"), bytes(builder.Output()))


@pytest.mark.parametrize("target", ["portable", "sse41", "native"])
def test_c_computes_the_same_integers(target: str) -> None:
    if target == "native" and not sweep.whole():
        pytest.skip("compiles kernels for every instruction set")
    for seed in range(sweep.count(20, 1)):
        for dtype, operators in (("int8", OPERATORS), ("uint8", UINT8_OPERATORS)):
            _, found, integers = made(200 + seed, operators, 8, dtype)
            network = found.network
            images = real(network, integers)
            expected = ReferenceExecutor(network).run(images, names(network))
            assert differing(CExecutor(network, target=target).run(images, names(network)), expected) == {}


# ---------------------------------------------------------------- planted faults


def planted(found: Read, content: bytes, integers: NDArray[Any]) -> int:
    computed = ReferenceExecutor(found.network).run(real(found.network, integers), names(found.network))
    return sum(differing(computed, run_litert(content, found, integers)).values())


def once(value: Any, shift: Any) -> Any:
    """Round half a step up, as a second rounding would if it were the first."""
    return (value + ((np.int64(1) << np.asarray(shift, np.int64)) >> 1)) >> shift


@pytest.mark.parametrize("fault", ["one rounding", "no left shift", "half up"])
def test_a_planted_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from twoscale._ir.operators import sums

    operators = ["add"] if fault == "no left shift" else ["conv", "add"]
    cases = [made(seed, operators, 3) for seed in range(6)]
    assert sum(planted(found, content, integers) for content, found, integers in cases) == 0
    if fault == "one rounding":
        monkeypatch.setattr(
            vectorized,
            "fixed_point",
            lambda acc, m: once(
                acc * vectorized.per_channel(m.mantissas.astype(np.int64), acc.ndim),
                31 - vectorized.per_channel(m.exponents.astype(np.int64), acc.ndim),
            ),
        )
    elif fault == "half up":
        monkeypatch.setattr(vectorized, "rounding_shift", once)
    else:  # right in real numbers, but without the 20 bits
        monkeypatch.setattr(sums, "LEFT_SHIFT", 0)
        monkeypatch.setattr(
            sums, "requantize", lambda total, *rest: vectorized.requantize(total << fixed_point.LEFT_SHIFT, *rest)
        )
    assert sum(planted(found, content, integers) for content, found, integers in cases) > 0


# ---------------------------------------------------------------- the published network


@pytest.fixture(scope="module")
def published() -> Read:
    if not PUBLISHED.is_file():
        pytest.skip(f"there is no {PUBLISHED.name} beside the repository")
    return read(PUBLISHED, PUBLISHED.read_bytes())


def test_the_published_network_is_litert_s_up_to_its_linear_layer(published: Read) -> None:
    network = published.network
    assert (network.exact, network.on_grid, network.in_fixed_point) == (True, False, True)
    integers = np.random.default_rng(0).integers(-128, 128, (2, 3, 32, 32)).astype(np.int8)
    computed = ReferenceExecutor(network).run(real(network, integers), names(network))
    found = differing(computed, run_litert(PUBLISHED.read_bytes(), published, integers))
    assert set(found) <= {layer.name for layer in network if isinstance(layer, n.Linear | n.FixedPointSoftmax)}


def test_the_published_network_compiles(published: Read) -> None:
    """In the engine's kernels for this machine, with AMX where it has that."""
    network = published.network
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 32, 32)).astype(np.float32)
    assert (network.compile(threads=1)(pixels) == network(pixels)).all()


def test_the_published_network_takes_pixels(published: Read) -> None:
    assert published.network.metadata["mean"] == [0.0] * 3
    assert published.network.metadata["std"] == [1 / 255] * 3


@pytest.mark.skipif(not sweep.whole(), reason="10,000 images take a minute")
def test_the_published_network_s_accuracy(published: Read) -> None:
    """As in TensorFlow Lite for Microcontrollers; LiteRT's default path, which rounds otherwise, has 86.97%."""
    test = data.load("cifar10").test
    output = CExecutor(published.network).run(test.images.astype(np.float32))[published.network.output]
    assert (output.argmax(1) == test.labels).mean() == pytest.approx(0.8707)


def test_micro_computes_the_published_network(published: Read) -> None:
    runtime = pytest.importorskip("tflite_micro.runtime", reason="tflite-micro is not installed")
    interpreter = runtime.Interpreter.from_bytes(PUBLISHED.read_bytes())
    integers = np.random.default_rng(0).integers(-128, 128, (4, 3, 32, 32)).astype(np.int8)
    computed = ReferenceExecutor(published.network).run(real(published.network, integers))[published.network.output]
    for image, expected in zip(integers, computed, strict=True):
        interpreter.set_input(np.ascontiguousarray(image[None].transpose(0, 2, 3, 1)), 0)
        interpreter.invoke()
        assert (interpreter.get_output(0)[0] == expected).all()


# ---------------------------------------------------------------- files


def test_load_reads_a_tflite_file(tmp_path: Path) -> None:
    content, found, _ = made(3, ["conv", "add"], 3)
    path = tmp_path / "net.tflite"
    path.write_bytes(content)
    network = twoscale.load(path)
    assert (network.name, network.scheme, network.source) == ("net", "foreign", path)
    assert network.fingerprint == found.network.fingerprint
    other = made(4, ["conv", "add"], 3)[1].network
    assert network.fingerprint != other.fingerprint


def test_requantize_moves_a_network_onto_the_grid(tmp_path: Path) -> None:
    _, found, integers = made(11, ["conv", "add", "max_pool", "fully_connected"], 6)
    moved = found.network.requantize()
    assert moved.on_grid
    assert not moved.in_fixed_point
    images = real(found.network, integers)
    theirs, ours = (ReferenceExecutor(one).run(images)[one.output].astype(int) for one in (found.network, moved))
    assert np.abs(theirs - ours).max() <= 3
    moved.save(tmp_path / "moved.onnx")
    assert twoscale.load(tmp_path / "moved.onnx").fingerprint == moved.fingerprint


def test_damaged_files_are_refused_in_one_line() -> None:
    """Every cut, and bytes changed at random: a network, or an error of one line; nothing else, and soon."""
    content, _, _ = made(5, ["conv", "add", "max_pool", "fully_connected", "softmax"], 5)
    rng = np.random.default_rng(0)
    cases = [content[:size] for size in sweep.some(range(len(content)), 60)]
    for _ in range(sweep.count(3000, 300)):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            changed[place] = rng.integers(0, 256)
        cases.append(bytes(changed))
    refused = 0
    for case in cases:
        message = refusal(case)
        refused += bool(message)
        assert "\n" not in message
        assert len(message) < 1000
    assert refused > len(cases) // 3


def refusal(content: bytes) -> str:
    """Return the error for a file; empty if it is read."""
    try:
        read(Path("bad.tflite"), content)
    except TwoscaleError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "identifier TFL3"),
        (b"\x00" * 40, "identifier TFL3"),
        (b"\xff\xff\xff\xffTFL3" + b"\x00" * 40, "offset leads to byte"),
        (b"\x08\x00\x00\x00TFL3\x00\x00\x00\x00" + b"\x00" * 40, "version 0"),
    ],
)
def test_what_is_no_file_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(NetworkFileError, match=message):
        read(Path("bad.tflite"), content)


def test_a_float_network_is_refused() -> None:
    from twoscale._formats.tflite.graph_builder import GraphBuilder

    graph = GraphBuilder("float")
    x, y = (graph.tensor(name, (1, 4, 4, 3), "float32") for name in ("x", "y"))
    graph.operator("RELU", [x], y)
    with pytest.raises(NetworkFileError, match=r"float\.tflite is a float network; twoscale\.quantize makes"):
        read(Path("float.tflite"), graph.to_bytes([x], [y]))


def test_equal_names_take_no_time_and_operators_are_limited() -> None:
    from twoscale._formats.tflite.graph_builder import GraphBuilder

    def chain(count: int) -> bytes:
        graph = GraphBuilder("long")
        first = last = graph.tensor("x", (1, 2, 2, 1), "int8", 0.5)
        for _ in range(count):
            last = graph.operator("RELU", [last], graph.tensor("x", (1, 2, 2, 1), "int8", 0.5))
        return graph.to_bytes([first], [last])

    network = read(Path("long.tflite"), chain(300)).network
    assert len({layer.name for layer in network}) == 301
    with pytest.raises(NetworkFileError, match="it has more than 4096 operators"):
        read(Path("long.tflite"), chain(4097))


def test_unknown_operators_are_named() -> None:
    from twoscale._formats.tflite.graph_builder import GraphBuilder

    graph = GraphBuilder("custom")
    x, y = (graph.tensor(name, (1, 4, 4, 3), "int8", 0.5) for name in ("x", "y"))
    graph.operator("L2_NORMALIZATION", [x], y, "L2NormOptions")
    with pytest.raises(NetworkFileError, match=r"operator 0 \(L2_NORMALIZATION\): it is not read; expected one of ABS"):
        read(Path("sub.tflite"), graph.to_bytes([x], [y]))


def test_parsed_numbers_are_those_of_the_schema() -> None:
    """The reader has its own field numbers; ai-edge-litert's classes read the same file."""
    from ai_edge_litert import schema_py_generated as schema

    content, _, _ = made(7, ["conv", "depthwise", "fully_connected", "add"], 6)
    ours, theirs = parse(content), schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0)).subgraphs[0]
    assert [tuple(tensor.shape) for tensor in ours.tensors] == [tuple(tensor.shape) for tensor in theirs.tensors]
    assert [tensor.name.encode() for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    assert [operator.inputs for operator in ours.operators] == [tuple(o.inputs) for o in theirs.operators]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        scales = [] if other.quantization is None or other.quantization.scale is None else other.quantization.scale
        assert mine.scales.tolist() == list(scales)
