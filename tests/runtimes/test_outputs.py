"""Outputs of any shape, and several outputs: every executor, every file and every C target returns them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import twoscale
from tests.codegen.compiling import NOT_INLINED, STRICT, build, need, run
from tests.integer_networks import random_images, random_network
from twoscale._codegen.c import export_c
from twoscale._formats.onnx.graph_builder import FORMAT_OF_ONE_INPUT
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes.c import CExecutor
from twoscale._runtimes.onnxruntime import OnnxRuntimeExecutor
from twoscale._runtimes.torch import TorchExecutor
from twoscale.errors import ConfigurationError, NetworkFileError, QuantizationError


class Model(nn.Module):
    """Layers to be used by a forward pass that the test gives."""

    def __init__(self, forward: Callable[[Model, torch.Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 3, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.fc = nn.Linear(8, 4)
        self.frames = nn.Conv1d(3, 5, 3, padding=1)
        self._forward = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self._forward(self, x)


def autoencoder(m: Model, x: torch.Tensor) -> Any:
    return m.b(F.relu(m.a(x)))


def two_heads(m: Model, x: torch.Tensor) -> Any:
    hidden = F.relu(m.a(x))
    return m.c(hidden).sigmoid(), m.fc(hidden.mean((2, 3)))


def everything(m: Model, x: torch.Tensor) -> Any:
    """Outputs that are read by other outputs, and the same bytes in two shapes."""
    hidden = F.relu(m.a(x))
    y = m.b(hidden)
    return {"image": y, "flat": y.flatten(1), "hidden": hidden, "relu": F.relu(y), "vector": m.fc(hidden.mean((2, 3)))}


def scores_per_frame(m: Model, x: torch.Tensor) -> Any:
    return m.frames(x).transpose(1, 2)


def heat_map(m: Model, x: torch.Tensor) -> Any:
    return m.c(F.relu(m.a(x))).sigmoid()


MODELS: dict[str, tuple[Callable[[Model, torch.Tensor], Any], tuple[int, ...], list[tuple[int, ...]]]] = {
    "autoencoder": (autoencoder, (3, 8, 8), [(3, 4, 4)]),
    "heat map": (heat_map, (3, 8, 8), [(2, 4, 4)]),
    "scores per frame": (scores_per_frame, (3, 10), [(10, 5)]),
    "two heads": (two_heads, (3, 8, 8), [(2, 4, 4), (4,)]),
    "everything": (everything, (3, 8, 8), [(3, 4, 4), (48,), (8, 4, 4), (3, 4, 4), (4,)]),
}


@functools.cache
def quantized(case: str) -> tuple[Model, torch.Tensor, IntegerNetwork]:
    torch.manual_seed(0)
    forward, shape, _ = MODELS[case]
    model, images = Model(forward).eval(), torch.randn(16, *shape)
    return model, images, twoscale.quantize(model, images)


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    return (
        outputs if isinstance(outputs, tuple) else tuple(outputs.values()) if isinstance(outputs, dict) else (outputs,)
    )


@pytest.mark.parametrize("case", MODELS)
def test_calling_returns_what_the_model_does(case: str) -> None:
    model, images, network = quantized(case)
    found, expected = network(images), as_tuple(model(images))
    assert isinstance(found, tuple) == (len(expected) > 1)
    for mine, theirs, shape in zip(as_tuple(found), expected, MODELS[case][2], strict=True):
        assert tuple(mine.shape) == tuple(theirs.shape) == (16, *shape)
        assert (mine - theirs).abs().max() < 0.05 * theirs.abs().max()


@pytest.mark.parametrize("case", MODELS)
def test_verify_reports_every_output(case: str) -> None:
    model, images, network = quantized(case)
    labels = torch.arange(16) % 4
    result = twoscale.verify(network, [(images, labels)], model=model, executors=["reference", "torch", "onnxruntime"])
    assert result.mismatches == 0
    assert [output.shape for output in result.outputs] == MODELS[case][2]
    assert [output.name for output in result.outputs] == list(network.outputs)
    real = {
        name: values.astype(np.float64)
        for name, values in zip(network.outputs, map(np.asarray, as_tuple(network(images))), strict=True)
    }
    for output, theirs in zip(result.outputs, as_tuple(model(images)), strict=True):
        mine, expected = real[output.name], theirs.detach().numpy().astype(np.float64)
        noise = ((mine - expected) ** 2).sum()
        assert output.sqnr_db == pytest.approx(10 * np.log10((expected**2).sum() / noise), abs=1e-3)
        assert output.rms_error == pytest.approx(np.sqrt(noise / mine.size), rel=1e-3)
        assert output.values == mine.size
        if mine.ndim != 2:
            assert (output.top1, output.agreement) == (None, None)
        else:
            assert output.agreement == (mine.argmax(1) == expected.argmax(1)).mean()
    vector = next((name for name in network.outputs if real[name].ndim == 2), None)
    top1 = None if vector is None else float((real[vector].argmax(1) == labels.numpy()).mean())
    assert result.top1 == top1
    assert [output.top1 for output in result.outputs] == [top1 if o == vector else None for o in network.outputs]


def test_sqnr_of_several_outputs_gives_each_the_same_weight() -> None:
    model, images, network = quantized("two heads")
    result = twoscale.verify(network, images, model=model)
    shares = [10 ** (-(output.sqnr_db or 0) / 10) for output in result.outputs]
    assert result.sqnr_db == pytest.approx(-10 * np.log10(np.mean(shares)))
    assert result.rms_error is None


def test_a_fault_in_the_second_output_is_seen() -> None:
    _, images, network = quantized("two heads")

    class Faulty(ReferenceExecutor):
        name = "faulty"

        def run(self, images_nchw: Any, keep: Any = None) -> dict[str, NDArray[Any]]:
            found = super().run(images_nchw, keep)
            found[network.outputs[1]] = found[network.outputs[1]] + 1
            return found

    result = twoscale.verify(network, images, executors=[ReferenceExecutor(network), Faulty(network)])
    assert [output.mismatches for output in result.outputs] == [0, 16 * 4]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(40))
def test_executors_and_files_of_random_networks(seed: int, tmp_path: Path) -> None:
    network = random_network(np.random.default_rng(seed), more_outputs=seed % 4, output=None)
    images = random_images(np.random.default_rng(seed), network, 5)
    expected = ReferenceExecutor(network).run(images)
    assert list(expected) == list(network.outputs) or set(expected) == set(network.outputs)
    for executor in (TorchExecutor(network), OnnxRuntimeExecutor(network)):
        found = executor.run(images)
        for name in network.outputs:
            assert np.array_equal(found[name], expected[name]), (executor.name, name)
    network.save(tmp_path / "net.onnx")
    assert twoscale.load(tmp_path / "net.onnx") == network


@pytest.mark.sweep(1)
@pytest.mark.parametrize("seed", range(1, 25))
def test_compiled_random_networks(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("cc")
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path))
    network = random_network(np.random.default_rng(seed), more_outputs=1 + seed % 4)
    images = random_images(np.random.default_rng(seed), network, 5)
    expected = ReferenceExecutor(network).run(images)
    for target in ("portable", "native"):
        for count in (5, 1):
            found = CExecutor(network, target=target).run(images[:count])
            for name in network.outputs:
                assert np.array_equal(found[name], expected[name][:count]), (target, name)
    library = tmp_path / "net.so"
    twoscale.save_compiled(network, library)
    for mine, theirs in zip(twoscale.load_compiled(library)(images), network(images), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("seed", "target"), [(seed, target) for seed in range(12) for target in ("portable", "small-ram", "avx2")]
)
def test_self_test_of_exported_c(seed: int, target: str, tmp_path: Path) -> None:
    """Every output and layer is compared, and the first difference of each output is seen."""
    need("gcc")
    network = random_network(np.random.default_rng(seed), more_outputs=1 + seed % 4, dtype="mixed")
    export_c(network, tmp_path, target=target, name="net")
    flags = ("-std=gnu99", "-O0", NOT_INLINED, "-pthread", "-ffp-contract=off") if target == "avx2" else STRICT
    done = run(build("gcc", tmp_path, ["net_test.c", "net.c"], "-DNET_TRACE", "-Wno-overlength-strings", *flags))
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 images, all layers and outputs as expected" in done.stdout
    header = (tmp_path / "net.h").read_text()
    assert "} net_outputs;" in header


def test_the_self_test_sees_a_wrong_second_output(tmp_path: Path) -> None:
    need("gcc")
    network = random_network(np.random.default_rng(3), more_outputs=1, output="accumulators")
    export_c(network, tmp_path, name="net")
    text = (tmp_path / "net.h").read_text()
    members = [
        line.split()[1].split("[")[0] for line in text.split("typedef struct {")[1].split("}")[0].splitlines()[1:]
    ]
    test = (tmp_path / "net_test.c").read_text()
    planted = test.replace(f"output.{members[1]}[i] !=", f"1 + output.{members[1]}[i] !=")
    assert planted != test
    (tmp_path / "net_test.c").write_text(planted)
    done = run(build("gcc", tmp_path, ["net_test.c", "net.c"], "-std=c99"))
    assert done.returncode == 1
    assert f"output {members[1]} 0 is" in done.stdout


def test_networks_of_one_output_keep_format_and_fingerprint(tmp_path: Path) -> None:
    import onnx

    several = random_network(np.random.default_rng(1), more_outputs=1)
    one = dataclasses.replace(several, outputs=several.outputs[:1])
    other = dataclasses.replace(several, outputs=several.outputs[::-1])
    assert len({network.fingerprint for network in (several, one, other)}) == 3
    for network, form in ((one, "1"), (several, str(FORMAT_OF_ONE_INPUT))):
        network.save(tmp_path / "net.onnx")
        model = onnx.load(tmp_path / "net.onnx")
        properties = {entry.key: entry.value for entry in model.metadata_props}
        assert properties["twoscale.format"] == form
        names = [value.name for value in model.graph.output]
        assert names == (["logits"] if network is one else [f"{name}/output" for name in network.outputs])


def test_altered_outputs_are_refused(tmp_path: Path) -> None:
    import onnx

    network = random_network(np.random.default_rng(1), more_outputs=1)
    network.save(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    for entry in model.metadata_props:
        if entry.key == "twoscale.outputs":
            entry.value = "[]"
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(NetworkFileError, match="the outputs are"):
        twoscale.load(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("outputs", "message"),
    [((), "expected a tuple of names"), ("fc", "expected a tuple"), (("no",), "no is made by no layer")],
)
def test_outputs_that_cannot_be(outputs: Any, message: str) -> None:
    network = random_network(np.random.default_rng(1))
    with pytest.raises(QuantizationError, match=message):
        dataclasses.replace(network, outputs=outputs)
    with pytest.raises(QuantizationError, match="name a layer twice"):
        dataclasses.replace(network, outputs=network.outputs * 2)


def test_no_accuracy_without_classes() -> None:
    from twoscale._verification import accuracy

    _, images, network = quantized("heat map")
    with pytest.raises(ConfigurationError, match=r"its output has the shape \(N, 2, 4, 4\); expected a vector"):
        accuracy(network, [(images, torch.zeros(16, dtype=torch.int64))])


def test_sensitivity_of_several_outputs() -> None:
    model, images, _ = quantized("two heads")
    found = twoscale.sensitivity(model, images, [(images, torch.arange(16) % 4)])
    assert found.signal == 1.0
    assert found.noise == pytest.approx(10 ** (-(found.sqnr_db or 0) / 10))
    assert {layer.layer for layer in found.layers} >= {"a", "c", "fc"}
    assert all(layer.noise > 0 for layer in found.layers if layer.bits < 4)
