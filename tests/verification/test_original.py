"""verify runs another tool's file itself: what was read wrong is seen, although all executors agree on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import twoscale
from tests.formats.test_onnx_foreign import KINDS, Draft, folder, some_images  # noqa: F401 - a fixture
from tests.integer_networks import random_images, random_network
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ExecutorError

EXECUTORS = ("reference", "torch", "onnxruntime")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file of a convolution, its integers' maximum over windows of real numbers, and a linear layer."""
    draft = Draft()
    draft.conv(pads=[1, 1, 1, 1])
    draft.node("DequantizeLinear", ["y", "s", "z"], "r")
    draft.node("MaxPool", ["r"], "p", kernel_shape=[2, 2], strides=[2, 2])
    draft.node("Flatten", ["p"], "f")
    draft.node("QuantizeLinear", ["f", "s", "z"], "q")
    rng = np.random.default_rng(1)
    draft.constant("v", rng.integers(-127, 128, (5, 12)), np.int8)
    draft.constant("b", rng.integers(-500, 500, 5), np.int32)
    draft.constant("vz", 0, np.int8)
    draft.constant("vs", 0.1)
    draft.microsoft("QGemm", ["q", "s", "z", "v", "vs", "vz", "b"], "logits", transB=1)
    return draft.save(tmp_path / "other.onnx")


def images(count: int = 20) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(0, 40, (count, 2, 4, 4)).astype(np.float32)


def test_every_tensor_of_the_file_is_compared(path: Path) -> None:
    network = twoscale.load(path)
    result = twoscale.verify(network, images(), executors=EXECUTORS)
    assert result.ok
    assert result.original == "other.onnx"
    assert result.executors == (*EXECUTORS, "onnxruntime on other.onnx")
    sizes = sum(int(np.prod(layer.output.shape)) for layer in network)
    assert result.compared_by_executor == {
        "torch": 20 * sizes,
        "onnxruntime": 20 * sizes,
        "onnxruntime on other.onnx": 20 * (sizes + 5),  # and the logits of the file as it is
    }


def planted(network: IntegerNetwork, layer: str) -> IntegerNetwork:
    """Return the network with the largest weight of one layer one off."""
    changed = network[layer]
    assert isinstance(changed, n.Accumulating)
    weight = changed.weight.copy()
    weight.flat[np.abs(weight.astype(int)).argmax()] += (
        -1 if weight.flat[np.abs(weight.astype(int)).argmax()] > 0 else 1
    )
    other = dataclasses.replace(changed, weight=weight)
    return dataclasses.replace(network, layers=tuple(other if x.name == layer else x for x in network))


@pytest.mark.parametrize("layer", ["y", "logits"])
def test_one_integer_that_was_read_wrong_is_found(layer: str, path: Path) -> None:
    network = planted(twoscale.load(path), layer)
    result = twoscale.verify(network, images(), executors=EXECUTORS)
    assert not result.ok
    assert result.mismatches_by_executor["torch"] == result.mismatches_by_executor["onnxruntime"] == 0
    assert result.mismatches_by_executor["onnxruntime on other.onnx"] > 0
    assert result.first_divergence is not None
    assert result.first_divergence.startswith(f"layer {layer} ")
    assert "onnxruntime on other.onnx gave" in result.first_divergence


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_onnx_runtimes_quantizer(folder: Path, kind: str) -> None:  # noqa: F811
    result = twoscale.verify(twoscale.load(folder / f"{kind}.onnx"), some_images(), executors=["reference"])
    assert result.ok, result.divergence_by_executor
    assert result.compared > 64 * 5000


def test_a_file_for_one_image(path: Path) -> None:
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, path)
    assert twoscale.verify(twoscale.load(path), images(7), executors=["reference"]).ok


def test_a_network_saved_in_our_form_is_compared_where_the_file_is_named(path: Path, tmp_path: Path) -> None:
    planted(twoscale.load(path), "y").save(tmp_path / "ours.onnx")
    network = twoscale.load(tmp_path / "ours.onnx")
    assert network.source is None
    result = twoscale.verify(network, images(), executors=["reference"])
    assert (result.ok, result.original) == (True, None)
    assert result.original_left_out == "which file it was read from is not known"
    result = twoscale.verify(network, images(), executors=["reference"], original=path)
    assert (result.ok, result.original, result.original_left_out) == (False, "other.onnx", None)
    other = random_network(np.random.default_rng(0))
    pixels = random_images(np.random.default_rng(0), other, 2)
    with pytest.raises(ExecutorError, match=r"ONNX Runtime does not run .* on these images"):
        twoscale.verify(other, pixels, original=path)


def test_a_file_that_is_gone(path: Path) -> None:
    network = twoscale.load(path)
    path.unlink()
    result = twoscale.verify(network, images(), executors=["reference"])
    assert result.original is None
    assert result.original_left_out is not None
    assert result.original_left_out.startswith("cannot read")
