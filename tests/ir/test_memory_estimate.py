"""The memory of a network is estimated from shapes, and too large networks are refused before a tensor is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.formats.test_onnx_foreign import Draft
from tests.integer_networks import random_images, random_network
from twoscale import _environment
from twoscale._formats import load
from twoscale._frontends import float_graph
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir import memory_estimate
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.memory_estimate import MemoryEstimate, estimate_memory, refuse_beyond_memory
from twoscale._runtimes import create
from twoscale.errors import CaptureError, ExecutorError, NetworkFileError

X = n.TensorSpec((3, 10, 20), "uint8", 1.0, 0, 0, 255)


def padded(by: int) -> IntegerNetwork:
    """A small image in a wide border, reduced by a pool to one value per channel."""
    wide = dataclasses.replace(X, shape=(3, 10 + 2 * by, 20 + 2 * by))
    point = dataclasses.replace(X, shape=(3, 1, 1))
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=X),
        n.Pad(name="pad", inputs=("input",), output=wide, widths=((0, 0), (by, by), (by, by))),
        n.MaxPool2d(name="max", inputs=("pad",), output=point, kernel=(10 + 2 * by, 20 + 2 * by), stride=(1, 1)),
        n.Reshape(name="flat", inputs=("max",), output=dataclasses.replace(X, shape=(3,))),
    )
    return IntegerNetwork("padded", layers, ("flat",))


def test_an_estimate_is_the_largest_operation() -> None:
    # The maximum reads the padded image and writes three values, of 16 bytes each.
    assert estimate_memory(padded(5)) == MemoryEstimate(16 * (3 * 20 * 30 + 3 * 10 * 20), "pad")
    conv = g.Conv2d(
        name="conv", inputs=("input",), shape=(2, 30, 40), padding=(10, 10, 10, 10),
        weight_oihw=np.zeros((2, 3, 1, 1), np.float32), bias_o=np.zeros(2, np.float32),
    )  # fmt: skip
    graph = g.FloatGraph("graph", (g.Input(name="input", inputs=(), shape=(3, 10, 20)), conv), ("conv",))
    assert estimate_memory(graph) == MemoryEstimate(16 * (3 * 30 * 40 + 2 * 30 * 40), "conv")


def test_what_fits_is_not_refused() -> None:
    refuse_beyond_memory("net", padded(5), ExecutorError, limit=38_400)
    with pytest.raises(NetworkFileError) as caught:
        refuse_beyond_memory("net.onnx", padded(5), NetworkFileError, limit=38_399)
    assert str(caught.value) == (
        "net.onnx needs about 0.0 GB for one image, at layer pad; this machine has 0.0 GB; expected smaller images, "
        "padding or windows"
    )


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_executors_refuse_before_they_make_a_tensor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = padded(13_000)  # 2 billion values
    monkeypatch.setattr(memory_estimate, "memory_bytes", lambda: 8 * 10**9)
    with pytest.raises(ExecutorError, match=r"padded needs about 32\.5 GB for one image, at layer pad"):
        create(name, network).run(np.zeros((1, 3, 10, 20), np.float32))


def test_a_machine_that_cannot_be_asked_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "memory_bytes", lambda: None)
    network = random_network(np.random.default_rng(0))
    create("reference", network).run(random_images(np.random.default_rng(1), network, 1))


def test_memory_is_that_of_the_machine_or_less() -> None:
    found = _environment.memory_bytes()
    assert found is None or 2**26 < found < 2**50


def test_files_are_refused_when_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own files, foreign integer files and float files with small files and huge tensors."""
    padded(100).save(tmp_path / "own.onnx")
    draft = Draft()
    draft.conv(pads=[300, 300, 300, 300])
    draft.finish("y")
    draft.save(tmp_path / "foreign.onnx")
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    float_file(tmp_path / "float.onnx", [helper.make_node("Conv", ["x", "w"], ["c"], pads=[300] * 4)], [weight])
    loaders: dict[str, Callable[[Path], object]] = {
        "own": load,
        "foreign": load,
        "float": lambda path: float_graph(path, np.zeros((1, 1, 4, 4), "f4")),
    }
    for name, read in loaders.items():
        read(tmp_path / f"{name}.onnx")
    monkeypatch.setattr(memory_estimate, "memory_bytes", lambda: 500_000)
    for name, read in loaders.items():
        with pytest.raises(NetworkFileError, match=rf"{name}\.onnx needs about .* GB for one image, at layer"):
            read(tmp_path / f"{name}.onnx")


def test_constants_of_float_files_are_refused_before_they_are_made(tmp_path: Path) -> None:
    constants = [
        numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one"),
        numpy_helper.from_array(np.array([0, 0, 20_000, 20_000] * 2), "widths"),
    ]
    nodes = [helper.make_node("Pad", ["one", "widths"], ["w"]), helper.make_node("Conv", ["x", "w"], ["c"])]
    float_file(tmp_path / "a.onnx", nodes, constants)
    with pytest.raises(CaptureError, match="makes a constant that is too large"):
        float_graph(tmp_path / "a.onnx", np.zeros((1, 1, 4, 4), np.float32))


def float_file(path: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> None:
    """Write a network of images (N, 1, 4, 4) "x" that ends in the mean of "c"."""
    nodes += [helper.make_node("GlobalAveragePool", ["c"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])
    graph = helper.make_graph(nodes, "float", [images], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
