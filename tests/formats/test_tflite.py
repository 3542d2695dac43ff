"""TensorFlow Lite files: LiteRT computes the network's integers at every layer, on its default path."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import twoscale
from tests.integer_networks import random_images, random_network
from twoscale._formats.tflite import writing
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, REQUANTIZE_SHIFT
from twoscale._ir.float_scales import adds_exactly, product_is_exact, weight_scales
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._quantization.scheme import TFLITE
from twoscale.errors import ConfigurationError, QuantizationError

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
from twoscale._runtimes.litert import LiteRtExecutor

OPERATORS = (
    "add", "average_pool", "clamp", "concat", "conv", "depthwise", "linear", "max_pool", "mul", "pad", "permute",
    "reshape", "slice", "table",
)  # fmt: skip
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "models" / "resnet8-cifar10-int8.tflite"


def nearest(integers: Any, shift: int, x: n.TensorSpec, y: n.TensorSpec) -> Any:
    """Return the nearest multipliers for which there are weight scales, (6b)."""
    integers = np.asarray(integers)
    for step in sorted(range(-64, 65), key=abs):
        tried = np.clip(integers + step, 1, (1 << 24) - 1)
        found = ~np.isnan(weight_scales(tried, shift, x.scale, y.scale))
        if found.all():
            return tried
        integers = np.where(found, tried - step, integers)
    raise QuantizationError("there are no such weight scales near these multipliers")


def for_litert(network: IntegerNetwork) -> IntegerNetwork:
    """Return a random network with float32 scales that give its multipliers, near its own."""
    specs: dict[str, n.TensorSpec] = {}
    layers = []
    for layer in network.layers:
        inputs = [specs[name] for name in layer.inputs]
        scale = float(np.float32(inputs[0].scale if layer.moves_values else layer.output.scale))
        if isinstance(layer, n.Add):
            first = n.Multiplier.on_grid(layer.multipliers[0].integers | 1, ADD_SHIFT)
            same = n.Multiplier.on_grid(np.array([1 << ADD_SHIFT]), ADD_SHIFT)
            layer = dataclasses.replace(layer, multipliers=(first, same))
            scale = inputs[1].scale
        elif isinstance(layer, n.Mul):
            assert layer.multiplier is not None
            product = np.ldexp(inputs[0].scale * inputs[1].scale, REQUANTIZE_SHIFT)
            scale = float(np.float32(product / layer.multiplier.integers[0]))
        elif isinstance(layer, n.Concat):
            copied = [x.scale for x, m in zip(inputs, layer.multipliers, strict=True) if m is None]
            scale = copied[0] if copied else scale
        y = dataclasses.replace(layer.output, scale=scale)
        layer = dataclasses.replace(layer, output=y)
        if isinstance(layer, n.Accumulating | n.AveragePool2d):
            assert layer.multiplier is not None
            integers = np.minimum(layer.multiplier.integers, 1 << 20)  # beyond, LiteRT's conversions could wrap
            made = n.Multiplier.on_grid(nearest(integers, REQUANTIZE_SHIFT, inputs[0], y))
            layer = dataclasses.replace(layer, multiplier=made)
        elif isinstance(layer, n.Concat):
            layer = dataclasses.replace(
                layer,
                multipliers=tuple(
                    m and n.Multiplier.on_grid(nearest(m.integers, REQUANTIZE_SHIFT, x, y))
                    for m, x in zip(layer.multipliers, inputs, strict=True)
                ),
            )
        specs[layer.name] = y
        layers.append(layer)
    return dataclasses.replace(network, layers=tuple(layers))


def exact(network: IntegerNetwork) -> bool:
    """Whether scales of sums and products could be made exact, by their own definition."""
    for layer in network.layers:
        scales = [network.spec(name).scale for name in layer.inputs]
        if isinstance(layer, n.Add):
            if layer.inputs[0] == layer.inputs[1]:
                return False
            if not adds_exactly(int(layer.multipliers[0].integers[0]), ADD_SHIFT, scales[0], layer.output.scale):
                return False
        elif isinstance(layer, n.Mul):
            assert layer.multiplier is not None
            integer = int(layer.multiplier.integers[0])
            if not product_is_exact(integer, REQUANTIZE_SHIFT, scales[0], scales[1], layer.output.scale):
                return False
        elif isinstance(layer, n.MaxPool2d) and layer.dilation != (1, 1):
            return False
    return True


def differing(network: IntegerNetwork, images: Any) -> dict[str, int]:
    keep = [layer.name for layer in network]
    expected, found = ReferenceExecutor(network).run(images, keep), LiteRtExecutor(network, threads=1).run(images, keep)
    assert all(found[name].dtype == expected[name].dtype for name in keep)
    return {name: int((expected[name] != found[name]).sum()) for name in keep}


@pytest.mark.parametrize("start", range(0, 1200, 24))
@pytest.mark.sweep(1)
def test_random_networks_have_the_same_integers_in_every_layer(start: int) -> None:
    compared: Counter[str] = Counter()
    for seed in range(start, start + 24):
        rng = np.random.default_rng(seed)
        network = random_network(rng, operators=OPERATORS, output="tensor", length=6)
        try:
            network = for_litert(network)
        except QuantizationError:  # a concatenation copied tensors whose scales have become different
            continue
        if not exact(network):
            continue
        for name, count in differing(network, random_images(rng, network, 2)).items():
            assert count == 0, (seed, name, network[name])
            compared[network[name].op] += 1
    assert {"Conv2d", "Linear", "Table", "Concat", "AveragePool2d", "MaxPool2d"} <= set(compared)


def test_a_single_window_that_leaves_a_part_of_its_input_out() -> None:
    rng = np.random.default_rng(1_000_293)
    network = for_litert(random_network(rng, operators=OPERATORS, output="tensor", length=6))
    pool = network["average_pool6"]
    assert isinstance(pool, n.AveragePool2d)
    assert (pool.output.shape[1:], pool.kernel, pool.padding) == ((1, 1), (1, 3), (0, 0, 0, 1))
    assert network.spec("table5").shape == (2, 1, 4)  # 5 columns with the padding
    assert not any(differing(network, random_images(rng, network, 2)).values())


@pytest.mark.parametrize("seed", [1_000_177, 1_000_502])
def test_a_square_is_a_product(seed: int) -> None:
    """LiteRT would compute it by a table of its own."""
    rng = np.random.default_rng(seed)
    network = for_litert(random_network(rng, operators=OPERATORS, output="tensor", length=6))
    assert any(isinstance(layer, n.Mul) and layer.inputs[0] == layer.inputs[1] for layer in network)
    assert not any(differing(network, random_images(rng, network, 2)).values())


class Block(nn.Module):
    """A residual block with a depthwise convolution, a squeeze and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Hardswish(), nn.Conv2d(8, 8, 1))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 4 * 4 * 2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.deep(x))
        x = x * self.gate(x)
        x = torch.relu(x + self.second(x))
        x = self.pool(torch.cat([x, self.second(x)], 1))
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


@pytest.fixture(scope="module")
def pixels() -> Any:
    return np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def network(pixels: Any) -> IntegerNetwork:
    torch.manual_seed(0)
    norm = ((0.5,) * 3, (0.25,) * 3)
    return twoscale.quantize(Block().eval(), pixels[:16], scheme="tflite", normalization=norm, name="block")


def test_a_network_of_the_scheme_in_all_executors(network: IntegerNetwork, pixels: Any) -> None:
    assert network.on_grid
    assert sum(differing(network, pixels).values()) == 0
    assert {layer.op for layer in network} >= {"Add", "Mul", "Concat", "Table", "AveragePool2d", "Reshape", "Linear"}
    result = twoscale.verify(network, pixels, executors=["reference", "torch", "onnxruntime", "litert"])
    assert result.mismatches == 0
    assert "litert" in result.executors


def test_what_the_scheme_promises(network: IntegerNetwork) -> None:
    for layer in network.layers:
        scales = [network.spec(name).scale for name in layer.inputs]
        if isinstance(layer, n.Requantize):
            assert layer.multiplier is not None
            assert (layer.multiplier.integers % 2 == 1).all()
        if isinstance(layer, n.Accumulating):
            assert layer.multiplier is not None
            found = weight_scales(layer.multiplier.integers, 16, scales[0], layer.output.scale)
            x, y = np.float32(scales[0]), np.float32(layer.output.scale)
            assert ((x * found) / y == layer.multiplier.values).all()
        if isinstance(layer, n.Add):
            factors = [int(m.integers[0]) for m in layer.multipliers]
            assert 1 << ADD_SHIFT in factors
            assert not any(f"layer {layer.name}:" in line for line in network.ties)


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_the_file_alone(network: IntegerNetwork, pixels: Any, io: str, tmp_path: Path) -> None:
    """What a user of LiteRT does with the file, knowing only its own quantization parameters."""
    from ai_edge_litert.interpreter import Interpreter

    network.save(tmp_path / "net.tflite", form="tflite", io=io)
    interpreter = Interpreter(model_path=str(tmp_path / "net.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    [entry], [result] = interpreter.get_input_details(), interpreter.get_output_details()
    assert (entry["dtype"], result["dtype"]) == (np.dtype(io), np.dtype(io))
    assert entry["shape"].tolist() == [1, 16, 16, 3]
    expected = ReferenceExecutor(network).run(pixels)[network.output]
    spec = network.spec(network.output)
    for image, integers in zip(pixels[:8], expected[:8], strict=True):
        value = image.transpose(1, 2, 0)[None]
        if io != "float32":
            scale, zero_point = entry["quantization"]
            value = (value / scale + zero_point).astype(io)
        interpreter.set_tensor(entry["index"], value)
        interpreter.invoke()
        [logits] = interpreter.get_tensor(result["index"])
        scale, zero_point = result["quantization"] if io != "float32" else (spec.scale, 0)
        real = logits if io == "float32" else (logits.astype(np.int64) - zero_point) * np.float32(scale)
        assert np.array_equal(np.rint(real / np.float32(spec.scale)) + spec.zero_point, integers)


def test_the_same_network_gives_the_same_bytes_with_its_fingerprint(network: IntegerNetwork, tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    written = writing.write(network).data
    assert written == writing.write(network).data
    model = schema.ModelT.InitFromPackedBuf(written, 0)
    [entry] = model.metadata
    assert entry.name.decode() == "twoscale"
    told = json.loads(bytes(model.buffers[entry.buffer].data))
    assert told["fingerprint"] == network.fingerprint
    assert told["metadata"]["normalization"] == {"mean": [0.5] * 3, "std": [0.25] * 3}


def test_what_has_no_form_is_named(pixels: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = twoscale.Scheme(error_feedback=False, bias_correction=False, tune_ranges=False)
    network = twoscale.quantize(Block().eval(), pixels[:4], scheme=plain)
    with pytest.raises(ConfigurationError, match=r"^layer \S+ has no \.tflite form .*: --scheme tflite, or"):
        network.save(tmp_path / "net.tflite", form="tflite")
    assert not list(tmp_path.iterdir())


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "weights":
        place = writing._place.dispatch(n.Linear)

        def changed(layer: n.Linear, w: Any) -> None:
            weight = layer.weight.copy()
            weight[0] ^= 4
            place(dataclasses.replace(layer, weight=weight), w)

        real = writing._place
        monkeypatch.setattr(
            writing, "_place", lambda layer, w: (changed if isinstance(layer, n.Linear) else real)(layer, w)
        )
    elif fault == "a scale":
        monkeypatch.setattr(writing, "weight_scales", lambda *a: weight_scales(*a) * np.float32(1.001))
    elif fault == "a ReLU":
        monkeypatch.setattr(writing._Writer, "activation", lambda self, spec: 1)
    else:
        monkeypatch.setattr(writing, "_same_padding", lambda *a: (1, 1, 1, 1))  # wrong for the stride of 2


@pytest.mark.parametrize("fault", ["weights", "a scale", "a ReLU", "padding"])
def test_planted_faults_differ(
    network: IntegerNetwork, pixels: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, fault)
    try:
        found = sum(differing(network, pixels).values())
    except ConfigurationError:
        pytest.fail("the fault was refused, not run")
    assert found > 0


def test_reference_kernels_may_differ_and_are_only_measured(network: IntegerNetwork, pixels: Any) -> None:
    """They round twice. That they differ shows that the comparison sees a last bit."""
    keep = [layer.name for layer in network]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = LiteRtExecutor(network, kernels="reference").run(pixels, keep)
    expected = ReferenceExecutor(network).run(pixels, keep)
    distance = max(int(np.abs(found[k].astype(int) - expected[k].astype(int)).max()) for k in keep)
    assert 0 < distance < 8


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published int8 file is not beside the repository")
def test_a_file_is_not_larger_than_the_benchmarks_own() -> None:
    from twoscale import models

    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32)).astype(np.float32)
    model = models.create("resnet8").eval()
    plain = dataclasses.replace(TFLITE, error_feedback=False, bias_correction=False, tune_ranges=False)
    network = twoscale.quantize(model, images, scheme=plain, normalization=((0.0,) * 3, (1.0,) * 3))
    assert len(writing.write(network).data) < 1.05 * PUBLISHED.stat().st_size
