"""Weights of 4 bits in files: half the bytes, the same integers, and an equal network when it is read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

import twoscale
from tests.codegen.test_c_packed import narrowed
from tests.formats.test_tflite import for_litert
from tests.integer_networks import random_images, random_network
from twoscale._cli.export import export_command
from twoscale._formats.onnx.writing import to_model
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale.errors import ConfigurationError, NetworkFileError

OPERATORS = {"conv", "residual", "linear"}


def some_network(seed: int, *, lowest: bool = False) -> tuple[IntegerNetwork, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    network = narrowed(random_network(rng, operators=OPERATORS, length=6), 4, lowest=lowest)
    return network, random_images(rng, network, 2)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.sweep(2)
def test_onnx_runtime_computes_the_same_integers(seed: int, tmp_path: Path) -> None:
    network, images = some_network(seed, lowest=True)
    model = to_model(network, int4=True)
    onnx.checker.check_model(model)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert kinds & {TensorProto.INT4, TensorProto.UINT4}
    names = [layer.name for layer in network]
    infos = {info.name: info for info in model.graph.value_info}
    model.graph.output.extend(infos[f"{name}/q"] for name in names)
    expected = ReferenceExecutor(network).run(images, names)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        found = onnxruntime.InferenceSession(model.SerializeToString(), options).run(
            [f"{name}/q" for name in names], {"input": images}
        )
        for name, integers in zip(names, found, strict=True):
            assert np.array_equal(integers, expected[name]), (level, name)
    network.save(tmp_path / "net.onnx", int4=True)
    assert twoscale.load(tmp_path / "net.onnx").fingerprint == network.fingerprint


def test_weights_take_half_the_bytes_and_others_keep_theirs(tmp_path: Path) -> None:
    network, _ = some_network(1)
    first = next(layer for layer in network if isinstance(layer, n.Accumulating))
    wide = dataclasses.replace(first, weight=np.full_like(first.weight, 8))
    network = dataclasses.replace(
        network, layers=tuple(wide if layer.name == first.name else layer for layer in network)
    )
    for form in ("integer", "qdq"):
        network.save(tmp_path / "bytes.onnx", form=form)
        network.save(tmp_path / "half.onnx", form=form, int4=True)
        old, new = (onnx.load(tmp_path / f"{name}.onnx") for name in ("bytes", "half"))
        assert (old.opset_import[0].version, new.opset_import[0].version) == (18, 21)
        weights = {tensor.name: tensor for tensor in new.graph.initializer if tensor.name.endswith("/weight")}
        for layer in network:
            if isinstance(layer, n.Accumulating):
                tensor = weights[f"{layer.name}/weight"]
                size = layer.weight.size
                assert len(tensor.raw_data) == (size if layer.name == first.name else (size + 1) // 2)


def test_without_such_weights_the_file_is_the_old_one() -> None:
    network, _ = some_network(1)
    layers = (
        dataclasses.replace(layer, weight=np.full_like(layer.weight, -9))
        if isinstance(layer, n.Accumulating)
        else layer
        for layer in network
    )
    wide = dataclasses.replace(network, layers=tuple(layers))
    assert to_model(wide, int4=True) == to_model(wide)


def test_a_changed_weight_of_4_bits_is_noticed(tmp_path: Path) -> None:
    network, _ = some_network(1)
    path = tmp_path / "net.onnx"
    network.save(path, int4=True)
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("/weight"))
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    onnx.save(model, path)
    with pytest.raises(NetworkFileError, match="was altered after it was saved"):
        twoscale.load(path)
    tensor.raw_data = tensor.raw_data[:-1]
    onnx.save(model, path)
    with pytest.raises(NetworkFileError, match="constant"):
        twoscale.load(path)


def test_half_bytes_of_litert_are_read(tmp_path: Path) -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    import flatbuffers

    spec = n.TensorSpec((5,), "int8", 0.5, 0, -128, 127)
    head = n.Linear(
        name="head", inputs=("image",), output=dataclasses.replace(spec, shape=(3,)),
        multiplier=n.Multiplier.on_grid(np.array([6553])), bias_o=np.array([1, -2, 3], np.int32),
        weight=np.arange(-8, 7).astype(np.int8).reshape(3, 5),
    )  # fmt: skip
    network = for_litert(
        IntegerNetwork("odd", (n.QuantizeInput(name="image", inputs=(), output=spec), head), ("head",))
    )
    path = tmp_path / "net.tflite"
    network.save(path, form="tflite")
    expected = twoscale.load(path)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    (weight,) = (t for t in model.subgraphs[0].tensors if tuple(t.shape) == (3, 5))
    values = [*head.weight.ravel().tolist(), 0]
    halves = [low & 15 | (high & 15) << 4 for low, high in zip(values[::2], values[1::2], strict=True)]
    weight.type, model.buffers[weight.buffer].data = schema.TensorType.INT4, np.array(halves, np.uint8)
    for keep in (8, 7):
        model.buffers[weight.buffer].data = np.array(halves[:keep], np.uint8)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        if keep == 8:
            assert twoscale.load(path).fingerprint == expected.fingerprint
        else:
            with pytest.raises(NetworkFileError, match=r"constant has 7 bytes; expected 8 for the shape \(3, 5\)"):
                twoscale.load(path)
    with pytest.raises(ConfigurationError, match="int4 is for ONNX files, got the form tflite: LiteRT rounds twice"):
        network.save(path, form="tflite", int4=True)


def test_the_command_writes_them(tmp_path: Path) -> None:
    network, _ = some_network(1)
    network.save(tmp_path / "net.onnx")
    export_command(tmp_path / "net.onnx", tmp_path / "half.onnx", to="integer", int4=True)
    assert twoscale.load(tmp_path / "half.onnx").fingerprint == network.fingerprint
    with pytest.raises(ConfigurationError, match="--int4 is for ONNX files"):
        export_command(tmp_path / "net.onnx", tmp_path / "c", int4=True)
