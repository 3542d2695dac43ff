"""Memory files: a reader that knows only the files recomputes layers with Python's integers."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.codegen.test_c_packed import narrowed
from tests.integer_networks import OF_ATTENTION, OPERATORS, random_network
from twoscale._cli.export import export_command
from twoscale._codegen.hex import export_hex
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError


class Folder:
    """The files of an export, and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = json.loads((path / "index.json").read_text())
        self.layers = {layer["name"]: layer for layer in self.index["layers"]}

    def numbers(self, memory: dict[str, Any]) -> Any:
        """Return one memory as nested lists of its shape."""
        lines = (self.path / memory["file"]).read_text().split("\n")
        assert lines.pop() == ""
        width, values = memory["width"], []
        for line in lines:
            assert len(line) == -(-width // 4)
            value = int(line, 16)
            assert value < 1 << width
            values.append(value - (1 << width) if memory["signed"] and value >> (width - 1) else value)
        assert len(values) == math.prod(memory["shape"])
        return np.array(values, object).reshape(memory["shape"])

    def recompute(self, layer: dict[str, Any]) -> list[list[int]]:
        """Return the output of a convolution or a linear layer for every image."""
        inputs = [self.layers[name] for name in layer["inputs"]]
        x, *others = (self.numbers(entry["golden"]) for entry in inputs)
        arrays = {name: self.numbers(memory) for name, memory in layer["arrays"].items()}
        zero, shape = inputs[0]["zero_point"], layer["golden"]["shape"][1:]
        result = []
        for image in range(self.index["images"]):
            found = []
            for place in itertools.product(*map(range, shape)):
                total = arrays["bias"][place[0]] + sum(
                    (x[(image, *at)] - zero) * arrays["weight"][(place[0], *tap)]
                    for at, tap in taps(layer, place, arrays["weight"].shape, x.shape[1:])
                )
                assert -(1 << layer["accumulator_bits"] - 1) <= total < 1 << layer["accumulator_bits"] - 1
                if "multiplier" in arrays:
                    many = len(arrays["multiplier"]) > 1
                    product = total * arrays["multiplier"][place[0] if many else 0]
                    if others:
                        product += (others[0][(image, *place)] - inputs[1]["zero_point"]) * int(
                            arrays["residual_multiplier"][0]
                        )
                    rounded = round(Fraction(int(product), 1 << layer["options"]["multiplier_shift"]))
                    total = min(max(layer["zero_point"] + rounded, layer["lo"]), layer["hi"])
                found.append(int(total))
            result.append(found)
        return result


def taps(layer: dict[str, Any], place: Any, weight: Any, size: Any) -> Any:
    """Yield the places of inputs inside the image, and of their weights."""
    if layer["op"] == "Linear":
        yield from (((i,), (i,)) for i in range(weight[1]))
        return
    options = layer["options"]
    channels, rows, columns = weight[1:]
    first = place[0] // (weight[0] // options["groups"]) * channels
    for c, i, j in itertools.product(range(channels), range(rows), range(columns)):
        row, column = (
            place[1 + axis] * options["stride"][axis] - options["padding"][axis] + tap * options["dilation"][axis]
            for axis, tap in enumerate((i, j))
        )
        if 0 <= row < size[1] and 0 <= column < size[2]:
            yield (first + c, row, column), (c, i, j)


def some_network(seed: int) -> IntegerNetwork:
    operators = {"conv", "residual", "linear"}
    return random_network(np.random.default_rng(seed), operators=operators, length=3, image_shape=(2, 4, 3), widest=3)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(12))
def test_layers_can_be_recomputed_from_the_files_alone(seed: int, tmp_path: Path) -> None:
    network = some_network(seed) if seed % 2 else narrowed(some_network(seed), 4)
    export_hex(network, tmp_path)
    folder = Folder(tmp_path)
    assert folder.index["fingerprint"] == network.fingerprint
    compared = 0
    for layer in folder.index["layers"]:
        if layer["op"] in ("Conv2d", "Linear"):
            golden = folder.numbers(layer["golden"]).reshape(folder.index["images"], -1).tolist()
            assert folder.recompute(layer) == golden, layer["name"]
            assert layer["arrays"]["weight"]["width"] <= (8 if seed % 2 else 4)
            compared += 1
    assert compared
    assert {path.name for path in tmp_path.iterdir()} == {"index.json"} | {
        memory["file"] for layer in folder.index["layers"] for memory in (*layer["arrays"].values(), layer["golden"])
    }


def test_a_changed_bias_changes_the_layer(tmp_path: Path) -> None:
    export_hex(some_network(1), tmp_path)
    folder = Folder(tmp_path)
    layer = next(layer for layer in folder.index["layers"] if layer["op"] == "Linear")
    path = tmp_path / layer["arrays"]["bias"]["file"]
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([f"{int(first, 16) ^ 1:08x}\n", *others]))
    assert folder.recompute(layer) != folder.numbers(layer["golden"]).reshape(folder.index["images"], -1).tolist()


def test_every_layer_has_its_constants(tmp_path: Path) -> None:
    network = random_network(np.random.default_rng(5), operators={*OPERATORS, *OF_ATTENTION}, length=20)
    export_hex(network, tmp_path)
    folder = Folder(tmp_path)
    assert [layer["name"] for layer in folder.index["layers"]] == [layer.name for layer in network]
    for layer in network:
        entry = folder.layers[layer.name]
        assert tuple(entry["golden"]["shape"][1:]) == layer.output.shape
        for memory in entry["arrays"].values():
            folder.numbers(memory)
        if isinstance(layer, n.Table):
            assert folder.numbers(entry["arrays"]["table"]).tolist() == layer.table.tolist()


def test_the_command_writes_memory_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = some_network(1)
    network.save(tmp_path / "net.onnx")
    export_command(tmp_path / "net.onnx", tmp_path / "hex", to="hex", images=2)
    assert "memory files and index.json" in capsys.readouterr().out
    assert Folder(tmp_path / "hex").index["images"] == 2
    free = random_network(np.random.default_rng(0), operators={"conv"}, length=2, on_grid=False)
    with pytest.raises(ConfigurationError, match="free float multipliers, which memory files cannot hold"):
        export_hex(free, tmp_path / "free")
    assert not (tmp_path / "free").exists()
