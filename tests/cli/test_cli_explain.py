"""The page of twoscale explain: worked sums against a scalar oracle, and the page in Chromium."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import chromium
from tests import sweep
from tests.codegen.compiling import need
from tests.integer_networks import random_network
from twoscale._display.explanation import explanation_page, layer_integers, normalized
from twoscale._formats import load
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.data import Preprocessing
from twoscale.errors import ConfigurationError, ExecutorError

OPERATORS = {"add", "average_pool", "conv", "depthwise", "linear", "max_pool", "residual", "table"}
NORMALIZATION = {"mean": [0.4, 0.5, 0.6], "std": [0.25, 0.25, 0.3]}


def with_pictures(seed: int) -> IntegerNetwork:
    """Return a network of pictures with most kinds of layers."""
    network = random_network(
        np.random.default_rng(seed), operators=OPERATORS, length=12, image_shape=(3, 9, 8), name="n", extreme=False
    )
    classes = [f"<{i}>" for i in range(network[network.outputs[0]].output.shape[0])]
    return IntegerNetwork("n", network.layers, network.outputs, metadata={**NORMALIZATION, "classes": classes})


def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (3, 9, 8)).astype(np.uint8)


def data_of(page: str) -> dict[str, Any]:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def accumulator(network: IntegerNetwork, layer: n.Accumulating, values: dict[str, NDArray[Any]], place: int) -> int:
    """Return one accumulator, by loops over plain integers."""
    x, spec = values[layer.inputs[0]], network.spec(layer.inputs[0])
    total = int(layer.bias_o[np.unravel_index(place, layer.output.shape)[0]])
    if isinstance(layer, n.Linear):
        return total + sum((int(q) - spec.zero_point) * int(w) for q, w in zip(x, layer.weight[place], strict=True))
    assert isinstance(layer, n.Conv2d)
    channel, row, column = (int(i) for i in np.unravel_index(place, layer.output.shape))
    per_group = layer.weight.shape[1]
    first = channel // (layer.output.shape[0] // layer.groups) * per_group
    for c in range(per_group):
        for i in range(layer.weight.shape[2]):
            for j in range(layer.weight.shape[3]):
                y = row * layer.stride[0] - layer.padding[0] + i * layer.dilation[0]
                z = column * layer.stride[1] - layer.padding[1] + j * layer.dilation[1]
                if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                    total += (int(x[first + c, y, z]) - spec.zero_point) * int(layer.weight[channel, c, i, j])
    return total


def worked(page: str, integers: dict[str, NDArray[Any]], places: list[tuple[str, int]], folder: Path) -> list[Any]:
    """Return [accumulator, output, lines] of outputs, by the page's own script in Node.js."""
    need("node")
    script = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)[0]
    begin, end = script.index("// One output of a layer worked by hand"), script.index("const net = JSON.parse(")
    (folder / "data.json").write_text(
        json.dumps(
            {
                "net": data_of(page),
                "values": {name: value.reshape(-1).tolist() for name, value in integers.items()},
                "places": places,
            }
        )
    )
    (folder / "work.mjs").write_text(
        script[begin:end]
        + """
        import { readFileSync } from "node:fs";
        const { net, values, places } = JSON.parse(readFileSync(process.argv[2]));
        for (const layer of net.layers)
          if (layer.weight) layer.weight = new Int8Array(Buffer.from(layer.weight, "base64"));
        console.log(JSON.stringify(places.map(([name, place]) => {
          const found = work(net, values, layerNamed(net, name), place);
          const { accumulator, output, lines } = found;
          return [accumulator === null ? null : Number(accumulator), Number(output), lines];
        })));"""
    )
    command = ["node", str(folder / "work.mjs"), str(folder / "data.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(8))
def test_worked_sums_equal_a_scalar_oracle_and_the_reference(seed: int, tmp_path: Path) -> None:
    network, pixels = with_pictures(seed), picture()
    integers = layer_integers(network, normalized(network, pixels))
    page = explanation_page(network, pixels, modules=None)
    shown = (n.Conv2d, n.Linear, n.MaxPool2d, n.AveragePool2d, n.Add, n.Table)
    random = np.random.default_rng(seed)
    places = [
        (layer.name, int(place))
        for layer in network
        if isinstance(layer, shown)
        for place in random.integers(0, integers[layer.name].size, 12)
    ]
    assert places
    for (name, place), found in zip(places, worked(page, integers, places, tmp_path), strict=True):
        layer = network[name]
        assert found[1] == integers[name].reshape(-1)[place]
        if isinstance(layer, n.Accumulating):
            assert found[0] == accumulator(network, layer, integers, place)
        if isinstance(layer, n.Accumulating) and layer.multiplier is not None and len(layer.inputs) == 1:
            assert layer.multiplier.shift is not None
            channel = np.unravel_index(place, layer.output.shape)[0]
            numerators = layer.multiplier.integers
            real = Fraction(
                found[0] * int(numerators[channel if len(numerators) > 1 else 0]), 2**layer.multiplier.shift
            )
            lines = {what: number for what, number, _ in found[2]}
            assert int(lines["rounded"]) == round(real)  # Fraction rounds ties to even
            assert int(lines["clamped"]) == found[1]


PUBLISHED = Path(__file__).parents[3] / "shared" / "models" / "resnet8-cifar10-int8.tflite"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published model is not on this machine")
@pytest.mark.skipif(not sweep.whole(), reason="runs ResNet-8 by the reference; with --sweep all")
def test_worked_sums_of_tensorflow_lite_s_arithmetic_equal_the_reference(tmp_path: Path) -> None:
    network = load(PUBLISHED)
    network = dataclasses.replace(network, metadata={"mean": [0.0] * 3, "std": [1 / 255] * 3})
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 32, 32)).astype(np.uint8)
    integers = layer_integers(network, normalized(network, pixels))
    places = [
        (layer.name, int(place))
        for layer in network
        if isinstance(layer, n.Conv2d | n.Linear | n.Add | n.AveragePool2d)
        for place in random.integers(0, integers[layer.name].size, 10)
    ]
    found = worked(explanation_page(network, pixels, modules=None), integers, places, tmp_path)
    assert [output for _, output, _ in found] == [integers[name].reshape(-1)[place] for name, place in places]


def test_a_page_without_modules_has_the_integers_of_its_picture() -> None:
    network, pixels = with_pictures(0), picture()
    integers = layer_integers(network, normalized(network, pixels))
    data = data_of(explanation_page(network, pixels, modules=None))
    assert data["modules"] is None
    for layer in data["layers"]:
        found = np.frombuffer(base64.b64decode(layer["integers"]), layer["dtype"])
        assert np.array_equal(found, integers[layer["name"]].reshape(-1))
    rgba = np.frombuffer(base64.b64decode(data["pixels"]), np.uint8).reshape(9, 8, 4)
    assert np.array_equal(rgba[:, :, :3].transpose(2, 0, 1), pixels)


def test_float_values_are_shown_with_their_noise() -> None:
    network, pixels = with_pictures(0), picture()
    integers = layer_integers(network, normalized(network, pixels))
    last = network[network.outputs[0]]
    exact = ((integers[last.name].astype(np.float64) - last.output.zero_point) * last.output.scale).astype(np.float32)
    noisy = exact + np.float32(abs(exact).max() * 0.1)
    data = data_of(explanation_page(network, pixels, modules=None, real={last.name: noisy}))
    [layer] = [layer for layer in data["layers"] if "real" in layer]
    assert np.array_equal(np.frombuffer(base64.b64decode(layer["real"]), np.float32), noisy)
    power, noise = (np.square(value.astype(np.float64)).sum() for value in (noisy, noisy - exact))
    assert layer["sqnr"] == pytest.approx(10 * np.log10(power / noise), rel=1e-4)


def test_a_network_of_numbers_takes_no_picture() -> None:
    network = with_pictures(0)
    bare = IntegerNetwork("n", network.layers, network.outputs)
    with pytest.raises(ConfigurationError, match="n takes no pictures"):
        explanation_page(bare, picture(), modules=None)
    with pytest.raises(ConfigurationError, match=r"the picture has shape \(3, 8, 8\); n takes \(3, 9, 8\)"):
        explanation_page(network, picture()[:, :8], modules=None)


def saved_picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.fromarray(picture().transpose(1, 2, 0)).save(path)
    return path


def test_the_command_without_clang_says_what_is_missing(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise ExecutorError("WebAssembly needs clang")

    monkeypatch.setattr("twoscale._runtimes.wasm.find_clang", missing)
    with_pictures(0).save(tmp_path / "n.onnx")
    image = saved_picture(tmp_path)
    done = run("explain", tmp_path / "n.onnx", "--image", image, "-o", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "The page shows this picture only: WebAssembly needs clang" in done.out
    assert data_of((tmp_path / "page.html").read_text())["modules"] is None
    assert run("explain", tmp_path / "n.onnx", "--image", tmp_path / "n.onnx", "-o", tmp_path / "b.html").code == 2
    assert not (tmp_path / "b.html").exists()


@pytest.mark.skipif(not sweep.whole(), reason="compiles modules and starts Chromium; with --sweep all")
def test_the_page_runs_the_network_in_chromium(run: Callable[..., Any], tmp_path: Path) -> None:
    if chromium.command() is None:
        pytest.skip("chromium is not installed")
    network = with_pictures(0)
    network.save(tmp_path / "n.onnx")
    image = saved_picture(tmp_path)
    done = run("explain", tmp_path / "n.onnx", "--image", image, "-o", tmp_path / "page.html")
    assert done.code == 0, done.err
    if "The page shows this picture only" in done.out:
        pytest.skip(done.out)
    text = (tmp_path / "page.html").read_text()
    answer = """
      const layers = {};
      for (const { name } of net.layers) layers[name] = Array.from(values[name]);
      document.querySelector("#clear").click();
      const black = Array.from(values[net.output]);
      let right = 0;
      for (const layer of net.layers) for (let place = 0; place < values[layer.name].length; place += 7) {
        explain(layer, place);
        right += document.querySelector("#worked .wrong") === null;
      }
      await fetch("/result", { method: "POST", body: JSON.stringify({ kind: runs.kind, layers, black, right }) });
    """
    (tmp_path / "page.html").write_text(text.replace('document.body.dataset.ready = "yes";', answer))
    result = chromium.result_of("p/page.html", {"p": tmp_path})
    pixels = Preprocessing(size=(9, 8)).read(image)
    integers = layer_integers(network, normalized(network, pixels))
    assert result["layers"] == {name: value.reshape(-1).tolist() for name, value in integers.items()}
    black = layer_integers(network, normalized(network, np.zeros((3, 9, 8), np.uint8)))
    assert result["black"] == black[network.outputs[0]].reshape(-1).tolist()
    assert result["right"] == sum(-(-value.size // 7) for value in integers.values())
