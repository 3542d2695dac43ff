"""The examples of docs/c.md work as written."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tests.codegen.compiling import STRICT, build, need, run
from tests.integer_networks import random_network
from twoscale._codegen.c import export_c
from twoscale._codegen.pixels import pixel_table
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._verification.results import VerifyResult

TEXT = (Path(__file__).parents[2] / "docs" / "c.md").read_text()


@pytest.fixture
def network() -> IntegerNetwork:
    """A network like the lab's: images of 3×32×32, a convolution named conv1, accumulators."""
    made = random_network(
        np.random.default_rng(16), image_shape=(3, 32, 32), operators=("max_pool",), length=1, dtype="uint8", bits=8,
        output="accumulators", extreme=False, name="net",
    )  # fmt: skip
    layers = tuple(
        dataclasses.replace(
            layer,
            name="conv1" if layer.name == "max_pool1" else layer.name,
            inputs=tuple("conv1" if name == "max_pool1" else name for name in layer.inputs),
        )
        for layer in made
    )
    return dataclasses.replace(made, layers=layers, metadata={"mean": [0.5] * 3, "std": [0.25] * 3})


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_c_example_classifies(network: IntegerNetwork, tmp_path: Path) -> None:
    need("gcc")
    export_c(network, tmp_path, name="net")
    example = blocks("c")[0]
    main = "#include <stdio.h>\nint main(void) { static uint8_t frame[NET_INPUT_COUNT];\n"
    main += "for (int n = 0; n < 12; n++) { for (int i = 0; i < NET_INPUT_COUNT; i++) "
    main += 'frame[i] = (uint8_t)((i * (n * 977 + 3)) >> 5);\nprintf("%d ", classify(frame)); }\nreturn 0; }\n'
    (tmp_path / "main.c").write_text("int classify(const unsigned char *frame);\n" + example + main)
    program = build("gcc", tmp_path, ["main.c", "net.c"], *(flag for flag in STRICT if "prototypes" not in flag))
    found = [int(text) for text in run(program).stdout.split()]

    frames = np.array([[((i * (n * 977 + 3)) >> 5) % 256 for i in range(3 * 32 * 32)] for n in range(12)], np.uint8)
    table = pixel_table(network.input.output, network.metadata)
    assert table is not None
    pixels_nhwc = frames.reshape(12, 32, 32, 3)
    integers = np.stack([table[channel][pixels_nhwc[..., channel]] for channel in range(3)], 1)
    reference = ReferenceExecutor(network)
    values = {network.input.name: integers}
    for layer in network.layers[1:]:
        values[layer.name] = reference.compute(layer, [values[name] for name in layer.inputs])
    assert found == values[network.output].argmax(1).tolist()
    assert len(set(found)) > 1


def test_the_python_examples_run(network: IntegerNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("cc")
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("lab/net").mkdir(parents=True)
    network.save("lab/net/default.onnx")
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    result = names["result"]
    assert isinstance(result, VerifyResult)
    assert (result.mismatches, result.samples, result.executors) == (0, 2, ("reference", "c"))
    assert result.compared > 0
    assert (tmp_path / "firmware" / "net.c").exists()
