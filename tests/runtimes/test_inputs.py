"""Several inputs: captured, quantized and verified, in every executor, every file and every C target."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import twoscale
from tests import sweep
from tests.codegen.compiling import NOT_INLINED, STRICT, build, need, run
from tests.integer_networks import COMPOSED, OPERATORS, random_images, random_network
from tests.scalar_executor import ScalarExecutor
from twoscale._calibration.profile import calibration_images, profile
from twoscale._codegen.c import export_c
from twoscale._frontends import float_graph, input_count
from twoscale._ir.float_module import GraphModule
from twoscale._ir.input_layout import InputLayout
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes.c import CExecutor
from twoscale._runtimes.onnxruntime import OnnxRuntimeExecutor
from twoscale._runtimes.torch import TorchExecutor
from twoscale.errors import CalibrationError, CaptureError, ConfigurationError, NetworkFileError, QuantizationError


class Branches(nn.Module):
    """An image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(5, 6), nn.Linear(12, 4)

    def forward(self, image: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        seen = F.relu(self.conv(image)).mean((2, 3))
        scores: torch.Tensor = self.head(torch.cat([seen, F.relu(self.fc(vector))], 1))
        return scores


class Siamese(nn.Module):
    """Two images through the same weights, and their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        features = [F.relu(self.conv(x)).mean((2, 3)) for x in (left, right)]
        scores: torch.Tensor = self.head(features[0] - features[1])
        return scores


def batches(*shapes: tuple[int, ...], count: int = 3) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(i * 3.0 + torch.randn((8, *s), generator=generator) for i, s in enumerate(shapes)) for _ in range(count)
    ]


IMAGE_AND_VECTOR = ((3, 8, 8), (5,))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


@pytest.fixture(scope="module")
def network(model: nn.Module) -> IntegerNetwork:
    return twoscale.quantize(model, batches(*IMAGE_AND_VECTOR))


def same_integers(network: IntegerNetwork, images: NDArray[np.float32], *executors: Any) -> None:
    names = [layer.name for layer in network]
    expected = ReferenceExecutor(network).run(images, names)
    for executor in executors:
        found = executor.run(images, names)
        for name in names:
            assert np.array_equal(found[name], expected[name]), (executor.name, name)


def test_each_input_has_its_own_grid(network: IntegerNetwork) -> None:
    assert [layer.name for layer in network.inputs] == ["input_image", "input_vector"]
    assert [layer.output.shape for layer in network.inputs] == [*IMAGE_AND_VECTOR]
    assert len({layer.output.scale for layer in network.inputs}) == 2


@pytest.mark.parametrize(("kind", "shapes"), [(Branches, IMAGE_AND_VECTOR), (Siamese, ((2, 6, 6), (2, 6, 6)))])
def test_the_network_is_close_to_the_model(kind: Any, shapes: Any) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    given = batches(*shapes)
    network = twoscale.quantize(model, given)
    result = twoscale.verify(network, given, model=model, executors=("reference", "torch", "onnxruntime"))
    assert (result.mismatches, result.samples, network.on_grid) == (0, 24, True)
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25
    with torch.no_grad():
        wrong = model(*(x.flip(0) for x in given[0])) - network(*given[0])
        assert float((model(*given[0]) - network(*given[0])).abs().max()) < 0.2 * float(wrong.abs().max())


def test_every_executor_and_file_computes_the_scalar_definition(network: IntegerNetwork, tmp_path: Path) -> None:
    image, vector = (x.numpy()[:2] for x in batches(*IMAGE_AND_VECTOR)[0])
    together = np.concatenate([image.reshape(2, -1), vector], 1)
    oracle = ScalarExecutor(network).run(together)
    found = ReferenceExecutor(network).run((image, vector), list(oracle))  # type: ignore[arg-type]
    assert all(np.array_equal(found[name], oracle[name]) for name in oracle)
    same_integers(network, together, TorchExecutor(network), OnnxRuntimeExecutor(network))
    network.save(tmp_path / "net.onnx")
    network.save(tmp_path / "qdq.onnx", form="qdq")
    loaded = twoscale.load(tmp_path / "net.onnx")
    assert loaded == network
    session = OnnxRuntimeExecutor(network)._session([])
    feeds = {"input_image/input": image, "input_vector/input": vector}
    assert [entry.name for entry in session.get_inputs()] == list(feeds)
    assert np.allclose(session.run(["logits"], feeds)[0], network(image, vector), rtol=1e-6, atol=0)


@pytest.mark.parametrize("target", ["portable", "native"])
def test_compiled_c_computes_the_same(network: IntegerNetwork, target: str) -> None:
    need("cc")
    parts = [x.numpy() for x in batches(*IMAGE_AND_VECTOR)[0]]
    executor = CExecutor(network, target=target, threads=2)
    same_integers(network, network.input_layout.joined(parts), executor)
    if target == "native":
        compiled = network.compile(threads=1)
        assert np.array_equal(compiled(*parts), network(*parts))
        assert torch.equal(compiled(*map(torch.from_numpy, parts)), torch.from_numpy(network(*parts)))
        with pytest.raises(ConfigurationError, match="takes 2 inputs"):
            compiled(*parts, parts[0])


@pytest.mark.parametrize(
    "target",
    [
        "portable",
        "small-ram",
        pytest.param("sse41", marks=pytest.mark.skipif(not sweep.whole(), reason="compiles for half a minute")),
    ],
)
def test_exported_c_passes_its_self_test(network: IntegerNetwork, target: str, tmp_path: Path) -> None:
    need("cc")
    signed = dataclasses.replace(
        network, layers=tuple(_as_int8(x) if x.name == "input_vector" else x for x in network.layers)
    )
    prefix = export_c(signed, tmp_path, target=target, name="two").prefix
    header = (tmp_path / "two.h").read_text()
    assert "uint8_t input_image[192]; /* input_image, [8][8][3]" in header
    assert "int8_t input_vector[5];" in header
    flags = (
        ["-std=gnu99", "-pthread", "-ffp-contract=off", *NOT_INLINED]
        if target == "native"
        else [*STRICT, "-DTWO_TRACE"]
    )
    done = run(build("cc", tmp_path, [f"{prefix}_test.c", f"{prefix}.c"], *flags))
    assert done.returncode == 0, done.stdout
    assert "all layers and outputs as expected" in done.stdout


def _as_int8(layer: Any) -> Any:
    spec = layer.output
    shifted = {key: getattr(spec, key) - 128 for key in ("zero_point", "lo", "hi")}
    return dataclasses.replace(layer, output=dataclasses.replace(spec, dtype="int8", **shifted))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(24))
def test_random_networks_of_two_inputs(seed: int) -> None:
    rng = np.random.default_rng([seed, 5])
    dtype: Any = ("uint8", "int8", "mixed")[seed % 3]
    network = random_network(rng, operators=(*OPERATORS, *COMPOSED), dtype=dtype, more_inputs=1)
    images = random_images(rng, network, 2)
    same_integers(network, images, TorchExecutor(network), OnnxRuntimeExecutor(network))
    oracle = ScalarExecutor(network).run(images)
    found = ReferenceExecutor(network).run(images, list(oracle))
    assert all(np.array_equal(found[name], oracle[name]) for name in oracle)


@pytest.mark.skipif(not sweep.whole(), reason="compiles ten networks")
@pytest.mark.parametrize("seed", range(10))
def test_random_networks_of_two_inputs_in_c(seed: int) -> None:
    rng = np.random.default_rng([seed, 6])
    dtype: Any = ("uint8", "int8", "mixed")[seed % 3]
    network = random_network(rng, operators=(*OPERATORS, *COMPOSED), dtype=dtype, more_inputs=1)
    images = random_images(rng, network, 3)
    same_integers(network, images, *(CExecutor(network, target=target) for target in ("portable", "native")))


def onnx_branches(model: nn.Module) -> onnx.ModelProto:
    node: Any = helper.make_node
    nodes = [
        node("Conv", ["image", "conv.weight", "conv.bias"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("ReduceMean", ["r"], ["seen"], axes=[2, 3], keepdims=0),
        node("Gemm", ["vector", "fc.weight", "fc.bias"], ["f"], transB=1),
        node("Relu", ["f"], ["known"]),
        node("Concat", ["seen", "known"], ["all"], axis=1),
        node("Gemm", ["all", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
        for name, shape in (("image", IMAGE_AND_VECTOR[0]), ("vector", IMAGE_AND_VECTOR[1]), ("logits", (4,)))
    ]
    weights = [numpy_helper.from_array(value.numpy(), name) for name, value in model.state_dict().items()]
    graph = helper.make_graph(nodes, "branches", infos[:2], infos[2:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_a_float_onnx_file_gives_the_same_integers(model: nn.Module, network: IntegerNetwork, tmp_path: Path) -> None:
    path: Any = tmp_path / "branches.onnx"
    onnx.save(onnx_branches(model), path)
    given = batches(*IMAGE_AND_VECTOR)
    ours = twoscale.quantize(path, given)
    assert torch.equal(ours(*given[0]), network(*given[0]))
    assert twoscale.verify(ours, given, model=path).mismatches == 0
    with pytest.raises(NetworkFileError, match="has 2 inputs and 1 outputs; expected an output"):
        float_graph(path, given[0][0])


def test_forms_of_batches(model: nn.Module, network: IntegerNetwork) -> None:
    given = batches(*IMAGE_AND_VECTOR)
    labels = torch.arange(8) % 4
    expected = twoscale.verify(network, [(*parts, labels) for parts in given])
    assert expected.top1 is not None
    assert expected.top1 == twoscale.verify(network, [(parts, labels) for parts in given]).top1
    assert expected.top1 == pytest.approx(
        np.mean([np.asarray(network(*parts)).argmax(1) == labels.numpy() for parts in given])
    )
    again = twoscale.quantize(model, [(parts, labels) for parts in given])
    assert again.fingerprint == network.fingerprint
    assert isinstance(network([x.numpy() for x in given[0]]), np.ndarray)
    example, _ = calibration_images(given, inputs=2)
    graph = float_graph(model, example)
    assert profile(graph, given).summaries()[1].kind == "input"
    program = torch.export.export(
        model,
        given[0],
        dynamic_shapes=[{0: torch.export.Dim("batch")}] * 2,
    )
    assert input_count(program) == input_count(model) == 2
    again = twoscale.quantize(program, given)  # type: ignore[arg-type]
    assert torch.equal(again(*given[0]), network(*given[0]))


class Unused(nn.Module):
    def forward(self, image: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3))


def test_what_is_refused(model: nn.Module, network: IntegerNetwork) -> None:
    (image, vector), *_ = batches(*IMAGE_AND_VECTOR)
    index = torch.zeros(8, dtype=torch.int64)
    refused: list[tuple[Any, type[Exception], str]] = [
        (lambda: network(image), ConfigurationError, r"takes images of shape \(N, 3, 8, 8\) and \(N, 5\), got"),
        (lambda: network(vector, image), ConfigurationError, r"input 0 of Branches takes images of shape"),
        (lambda: network(image, vector[:3]), ConfigurationError, "as many samples in each"),
        (lambda: network(image.byte(), vector), ConfigurationError, "takes float32 inputs"),
        (lambda: network(image, vector * torch.nan), ConfigurationError, "NaN or infinite"),
        (lambda: twoscale.quantize(model, [(image, index)]), CalibrationError, "the model takes 2 inputs, and one in"),
        (lambda: twoscale.quantize(model, [(image,)]), CalibrationError, "tuple of 1; the model takes 2 inputs"),
        (lambda: twoscale.quantize(model, [image]), CaptureError, "expected images alone"),
        (lambda: twoscale.quantize(model, [(image, vector), (image, vector[:, :4])]), CalibrationError, "has inputs"),
        (lambda: twoscale.quantize(Unused(), [(image, vector)]), CaptureError, "does not use input_vector"),
        (lambda: twoscale.verify(network, [(image, index)]), ConfigurationError, "batch 0 has inputs"),
        (lambda: twoscale.verify(network, [(image,)]), ConfigurationError, "is a tuple of 1; expected the inputs"),
        (lambda: network.save("x.tflite", form="tflite"), ConfigurationError, "has 2 inputs; .tflite files"),
        (lambda: export_c(network, "x", inputs=image.numpy()), ConfigurationError, "one array for each of 2 inputs"),
        (
            lambda: twoscale.quantize(model, [(image, vector)], normalization=((0.5,) * 3, (0.5,) * 3)),
            ConfigurationError,
            "only images",
        ),
    ]
    for call, kind, message in refused:
        with pytest.raises(kind, match=message):
            call()
    layers = list(network.layers)
    layers.insert(3, layers.pop(1))
    with pytest.raises(QuantizationError, match="QuantizeInput for each input, as the first layers"):
        dataclasses.replace(network, layers=tuple(layers))


def test_inputs_that_are_swapped_are_seen(network: IntegerNetwork) -> None:
    """A planted fault: an executor that takes the values of another place."""
    together = random_images(np.random.default_rng(0), network, 2)
    names = [layer.name for layer in network]
    right = ReferenceExecutor(network).run(together, names)
    wrong = ReferenceExecutor(network).run(np.roll(together, 1, 1), names)
    assert all((right[layer.name] != wrong[layer.name]).any() for layer in network.inputs)


def test_the_layout_of_inputs() -> None:
    layout = InputLayout(((2, 3), (4,), (1, 1, 2)))
    assert (layout.shape, layout.offsets, layout.several) == ((12,), (0, 6, 10), True)
    parts = [np.random.default_rng(0).normal(size=(5, *shape)) for shape in layout.shapes]
    joined = layout.joined(parts)
    assert joined.shape == (5, 12)
    for array in (joined, torch.from_numpy(joined)):
        assert all(np.array_equal(a, b) for a, b in itertools.zip_longest(layout.split(array), parts))
    graph = GraphModule(float_graph(Branches().eval(), batches(*IMAGE_AND_VECTOR)[0])).graph
    assert graph.input_layout == InputLayout(IMAGE_AND_VECTOR)
