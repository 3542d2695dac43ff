"""Every verb on digits, from training to C, and its ``--json`` output."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import twoscale
from twoscale import data
from twoscale._cli import sensitivity
from twoscale._cli.evaluate import EvalRecord
from twoscale._cli.quantize import QuantizeRecord
from twoscale._lab.records import LabResults
from twoscale._quantization import quantize_graph
from twoscale._runtimes import create
from twoscale._verification.results import VerifyResult
from twoscale.training import RunRecord

Run = Callable[..., Any]


def fields_of(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def test_data_list(run: Run) -> None:
    assert "digits" in run("data", "list").out
    rows = run("data", "list", "--json").json
    assert [row["name"] for row in rows] == sorted(data.names())


def test_data_fetch_of_what_is_there(run: Run) -> None:
    assert run("data", "fetch", "digits", "--json").json["state"] == "embedded"


def test_train_and_eval(run: Run, tmp_path: Path) -> None:
    trained = run("train", "net", "--epochs", 1, "--out", tmp_path, "--json")
    assert trained.code == 0
    record = msgspec.json.decode(trained.out, type=RunRecord)
    assert set(trained.json) == fields_of(RunRecord)
    assert record.finished
    assert record.mini_batches == 360
    found = run("eval", tmp_path / "model.safetensors", "--json").json
    assert set(found) == fields_of(EvalRecord)
    assert found["samples"] == 360
    assert found["top1"] == pytest.approx(record.test_accuracy)
    assert f"{found['top1']:.2%} of 360 test images" in run("eval", tmp_path / "model.safetensors").out


def test_eval_of_the_first_images(run: Run, trained: Any) -> None:
    found = run("eval", trained.checkpoint, "--max-samples", 10, "--json").json
    assert found["samples"] == 10
    assert found["top1"] * 10 == pytest.approx(round(found["top1"] * 10))


def test_eval_of_an_integer_network_says_what_computed_it(run: Run, trained: Any) -> None:
    found = run("eval", trained.network, "--json").json
    assert found["executor"] == ("c" if shutil.which("cc") else "torch")
    out = run("eval", trained.network).out
    assert f"{found['top1']:.2%} of 360" in out
    assert f"computed by the executor {found['executor']}" in " ".join(out.split())


def test_inspect_weights(run: Run, trained: Any) -> None:
    outcome = run("inspect", trained.checkpoint)
    assert outcome.code == 0
    assert "Activations" not in outcome.out
    found = run("inspect", trained.checkpoint, "--json").json
    from safetensors.numpy import load_file

    tensors = load_file(trained.checkpoint)
    for weight in found["weights"]:
        values = tensors[weight["name"] if weight["kind"] == "bias" else f"{weight['name']}.weight"]
        assert weight["count"] == values.size == sum(weight["histogram"]["counts"])
        assert weight["min"] == values.min()
        assert weight["max"] == values.max()
        assert weight["mean"] == pytest.approx(values.mean(dtype=np.float64))
        assert weight["std"] == pytest.approx(values.std(dtype=np.float64))
    assert {"conv1", "conv2", "fc1", "fc2", "fc3", "fc3.bias"} == {weight["name"] for weight in found["weights"]}
    assert found["activations"] == []


def test_inspect_activations(run: Run, trained: Any) -> None:
    found = run("inspect", trained.checkpoint, "--activations", "--images", 50, "--json").json["activations"]
    pixels = data.load("digits").train.images[:50].astype(np.float64)
    assert found[0]["name"] == "input"
    assert found[0]["count"] == pixels.size
    assert found[0]["mean"] == pytest.approx((pixels / 255 - 0.5).mean() / 0.5, rel=1e-5)
    assert [one["name"] for one in found] == ["input", "conv1", "conv2", "fc1", "fc2", "fc3"]
    table = run("inspect", trained.checkpoint, "--activations", "--images", 50).out
    assert "activations over 50 training images of digits" in table


def test_inspect_an_integer_network(run: Run, trained: Any) -> None:
    found = run("inspect", trained.network, "--json").json
    network = twoscale.load(trained.network)
    assert found["fingerprint"] == network.fingerprint
    assert [layer["name"] for layer in found["layers"]] == [layer.name for layer in network]
    assert found["metadata"]["data"] == "digits"
    table = run("inspect", trained.network).out
    assert "scheme default, the same integers everywhere" in table
    for layer in network:
        assert re.search(rf"^{layer.name} +{layer.op} ", table, re.MULTILINE)
    assert max(len(line) for line in table.splitlines()) <= 80
    assert "not shown" not in table


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("--scheme", "course"), {"scheme": "course"}),
        (("--weight-bits", 4, "--activation-range", "percentile-99.9", "--weight-scales", "per-layer"),
         {"weight_bits": 4, "activation_range": "percentile-99.9", "per_channel": False}),
    ],
)  # fmt: skip
def test_quantize(run: Run, trained: Any, tmp_path: Path, options: tuple[Any, ...], expected: dict[str, Any]) -> None:
    out = tmp_path / "net.onnx"
    outcome = run("quantize", trained.checkpoint, "-o", out, "--calibration-images", 40, "--json", *options)
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) == fields_of(QuantizeRecord)
    network = twoscale.load(out)
    assert outcome.json["fingerprint"] == network.fingerprint
    assert outcome.json["calibration_samples"] == 40
    assert network.scheme == expected.pop("scheme", "default")
    assert network.metadata["options"] == expected
    weights = [layer.weight for layer in network if hasattr(layer, "weight")]
    limit = 2 ** (expected.get("weight_bits", 8) - 1) - 1
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= limit


def test_quantize_with_learned_rounding(run: Run, trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    words = ("--calibration-images", 40, "--weight-bits", 2, "--activation-bits", 3, "--edge-bits", 8)
    how = ("--rounding", "learned", "--effort", 0.01)
    outcome = run("quantize", trained.checkpoint, "-o", out, "--json", *words, *how)
    assert outcome.code == 0, outcome.err
    assert re.search(r"^twoscale: learning takes about \d+ (s|minutes)$", outcome.err, re.MULTILINE)
    bits = {one["layer"]: (one["weights"], one["output"]) for one in outcome.json["bits"]}
    assert (bits["conv1"], bits["conv2"], bits["fc3"]) == ((8, 3), (2, 3), (8, 32))
    refused = run("quantize", trained.checkpoint, "-o", out, *how[:2], "--effort", 0)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "twoscale: error: effort is 0; expected a positive number such as 0.5 or 2\n"


def test_the_network_that_sensitivity_chooses_is_learned(run: Run, trained: Any, tmp_path: Path) -> None:
    words = ("sensitivity", trained.checkpoint, "--calibration-images", 100, "--max-samples", 50, "--bits", 2)
    how = ("--activation-bits", "none", "--rounding", "learned", "--effort", 0.3, "--json")
    out = tmp_path / "net.onnx"
    outcome = run(*words, *how, "--budget", 0.3, "-o", out)
    assert outcome.code == 0, outcome.err
    assert re.search(r"^twoscale: learning takes about \d+ (s|minutes)$", outcome.err, re.MULTILINE)
    plain = run(*words, *how[:2], "--json", "--budget", 0.3)
    assert outcome.json["choice"]["choice"] == plain.json["choice"]["choice"]
    assert outcome.json["choice"]["sqnr_db"] > plain.json["choice"]["sqnr_db"]
    network = twoscale.load(out)
    limits = {name: 2 ** (bits - 1) for name, bits in outcome.json["choice"]["choice"]["layer_weight_bits"]}
    assert all(
        np.abs(layer.weight.astype(int)).max() <= limits[layer.name] for layer in network if hasattr(layer, "weight")
    )
    refused = run(*words, *how)
    assert refused.code == 2
    expected = "--rounding learned is for the network that --budget chooses; give a budget too"
    assert refused.err == f"twoscale: error: {expected}\n"


def test_learned_weights_keep_to_the_flash(
    run: Run, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 2 bits may reach −2, which the portable C cannot store beside a negative one."""
    words = ("sensitivity", trained.checkpoint, "--calibration-images", 40, "--max-samples", 50, "--bits", 2)
    plain = run(*words, "--activation-bits", "none", "--max-flash", "28K", "--json").json
    limit = plain["choice"]["choice"]["flash_bytes"]
    out = tmp_path / "net.onnx"

    def make(graph: Any, found: Any, scheme: Any) -> Any:
        network = quantize_graph(graph, found, scheme)
        lowest = {
            layer.name: np.full_like(layer.weight, -2)
            for layer in network
            if hasattr(layer, "weight") and np.abs(layer.weight.astype(int)).max() == 1
        }
        assert lowest
        layers = (
            dataclasses.replace(layer, weight=lowest[layer.name]) if layer.name in lowest else layer  # type: ignore[call-arg]
            for layer in network
        )
        return dataclasses.replace(network, layers=tuple(layers))

    monkeypatch.setattr(sensitivity, "learning_from", lambda *_: make)
    how = ("--activation-bits", "none", "--rounding", "learned", "-o", out)
    refused = run(*words, *how, "--max-flash", limit)
    assert refused.code == 2
    assert "learned weights pack less well than the chosen bits: " in refused.err
    assert not out.exists()


def test_quantize_measures_the_accuracy_of_both_networks(run: Run, trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    words = (trained.checkpoint, "-o", out, "--calibration-images", 40)
    accuracy = run("quantize", *words, "--json").json["accuracy"]
    assert accuracy == {
        "data": "digits",
        "samples": 360,
        "top1": run("eval", out, "--json").json["top1"],
        "float_top1": run("eval", trained.checkpoint, "--json").json["top1"],
    }
    line = (
        f"top-1 {100 * accuracy['top1']:.2f} %, float network {100 * accuracy['float_top1']:.2f} %, on 360 test images "
        "of digits"
    )
    assert line in run("quantize", *words).out.splitlines()
    assert line in run("inspect", out).out.splitlines()
    assert run("inspect", out, "--json").json["accuracy"] == accuracy


def test_the_accuracy_of_other_integers_is_not_shown(run: Run, trained: Any, tmp_path: Path) -> None:
    network = twoscale.load(trained.network)
    fc3 = network["fc3"]
    changed = dataclasses.replace(fc3, weight=-fc3.weight)  # type: ignore[attr-defined, call-arg]
    layers = tuple(changed if layer.name == "fc3" else layer for layer in network)
    for metadata in (network.metadata, {**network.metadata, "accuracy": {"top1": "[b]x"}}, {"accuracy": 3}):
        other = dataclasses.replace(network, layers=layers, metadata=metadata)
        other.save(tmp_path / "other.onnx")
        assert "top-1" not in run("inspect", tmp_path / "other.onnx").out
        assert run("inspect", tmp_path / "other.onnx", "--json").json["accuracy"] is None


def test_quantize_without_labels_of_the_network(run: Run, trained: Any, tmp_path: Path, monkeypatch: Any) -> None:
    whole = data.load("digits")
    labels = np.full(len(whole.test), 10, whole.test.labels.dtype)  # an eleventh class
    other = dataclasses.replace(whole, test=data.Split(whole.test.images, labels), classes=(*whole.classes, "eleventh"))
    monkeypatch.setattr(data, "load", lambda *args, **options: other)
    words = (trained.checkpoint, "-o", tmp_path / "net.onnx", "--calibration-images", 40)
    assert run("quantize", *words, "--json").json["accuracy"] is None
    assert "top-1" not in run("quantize", *words).out


def test_the_bits_of_each_layer(run: Run, trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    words = ("--layer-weight-bits", "conv1=4,fc3=6", "--layer-activation-bits", "conv2=5")
    outcome = run("quantize", trained.checkpoint, "-o", out, "--calibration-images", 40, *words)
    for table in (outcome.out, run("inspect", out).out):
        rows = [line.split() for line in table.splitlines()]
        assert {row[0]: row[4] for row in rows if len(row) > 8 and re.fullmatch(r"[–\d]+/\d+", row[4])} == {
            "input": "–/8", "conv1": "4/8", "pool": "–/8", "conv2": "8/5", "pool_2": "–/5", "view": "–/5",
            "fc1": "8/8", "fc2": "8/8", "fc3": "6/32",
        }  # fmt: skip
        assert "; 7.94 bits per weight on average" in table
    expected = [{"layer": "conv1", "weights": 4, "output": 8}, {"layer": "conv2", "weights": 8, "output": 5}]
    found = run("inspect", out, "--json").json["bits"]
    assert [one for one in found if one["layer"].startswith("conv")] == expected


def test_signed_activations_of_the_course_have_8_bits(run: Run, trained: Any, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "net.onnx", "--scheme", "course", "--calibration-images", 40, "--json")
    found = run("quantize", trained.checkpoint, *words).json["bits"]
    assert {one["output"] for one in found} == {8, 32}


def test_piped_tables_are_not_wrapped(run: Run, trained: Any, monkeypatch: Any) -> None:
    """Without a terminal and without COLUMNS, every name and every sentence stays in one line."""
    monkeypatch.delenv("COLUMNS")
    out = run("inspect", trained.network).out
    lines = out.splitlines()
    assert lines[0] == "NetWithBias: scheme default, the same integers everywhere"
    for layer in twoscale.load(trained.network):
        assert re.search(rf"^{layer.name} +{layer.op} ", out, re.MULTILINE)
    assert any(line.startswith("top-1 ") and line.endswith(" test images of digits") for line in lines)
    assert max(len(line) for line in lines) < 120


def test_quantize_prints_the_layers_and_what_to_do_next(run: Run, trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    printed = run("quantize", trained.checkpoint, "-o", out, "--calibration-images", 40).out
    assert "conv1   Conv2d" in printed
    command = printed.splitlines()[-1].split("Check it: twoscale ")[1]
    assert run(*command.split()).code == 0


def test_verify(run: Run, trained: Any) -> None:
    outcome = run("verify", trained.network, "--executors", "reference,torch,onnxruntime", "--json")
    assert outcome.code == 0
    assert set(outcome.json) == fields_of(VerifyResult)
    result = msgspec.json.decode(outcome.out, type=VerifyResult)
    assert result.executors == ("reference", "torch", "onnxruntime")
    assert result.samples == 360
    assert result.mismatches == 0
    assert result.compared > 0
    assert result.sqnr_db is None
    assert result.top1 == run("eval", trained.network, "--json").json["top1"]


def test_verify_with_the_float_network(run: Run, trained: Any) -> None:
    outcome = run("verify", trained.network, "--checkpoint", trained.checkpoint, "--max-samples", 50, "--json")
    assert outcome.json["samples"] == 50
    assert outcome.json["agreement"] >= 0.9
    assert outcome.json["sqnr_db"] > 30
    table = run("verify", trained.network, "--checkpoint", trained.checkpoint, "--max-samples", 50).out
    assert "0 of" in table
    assert "logit SQNR" in table
    assert max(len(line) for line in table.splitlines() if not line.startswith("Wrote ")) <= 80  # long paths


def test_verify_that_finds_a_difference_exits_with_1(run: Run, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from twoscale._runtimes.torch import TorchExecutor

    original = TorchExecutor.run

    def wrong(self: TorchExecutor, images: Any, keep: Any = None) -> dict[str, Any]:
        found = original(self, images, keep)
        found["fc1"] = found["fc1"].copy()
        found["fc1"][3, 7] ^= 1
        return found

    monkeypatch.setattr(TorchExecutor, "run", wrong)
    outcome = run("verify", trained.network, "--max-samples", 20)
    assert outcome.code == 1
    assert outcome.err == ""
    assert "1 of" in outcome.out
    assert "layer fc1 (Linear), image 3, index (7,)" in outcome.out


def test_the_network_says_how_its_images_are_normalized(run: Run, trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    mean, std = ("--mean", "0.4", "0.5", "0.6"), ("--std", "0.25", "0.25", "0.2")
    common = ("--model", "net-with-bias", "--calibration-images", 40)
    assert run("quantize", trained.checkpoint, "-o", out, *common, *mean, *std, "--images", "normalized").code == 0
    metadata = twoscale.load(out).metadata
    assert metadata["mean"] == [0.4, 0.5, 0.6]
    assert metadata["std"] == [0.25, 0.25, 0.2]
    assert "normalization" not in metadata
    verified = run("verify", out, "--max-samples", 60, "--json").json
    digits = data.load("digits")
    images = data.normalize(digits.test.images[:60], (0.4, 0.5, 0.6), (0.25, 0.25, 0.2))
    right = (twoscale.load(out)(images).argmax(1) == digits.test.labels[:60]).mean()
    assert verified["top1"] == pytest.approx(right)


def test_a_network_takes_pixels_as_they_are(run: Run, trained: Any, tmp_path: Path) -> None:
    pixels, normalized = tmp_path / "pixels.onnx", tmp_path / "normalized.onnx"
    assert run("quantize", trained.checkpoint, "-o", pixels, "--calibration-images", 100).code == 0
    words = ("--calibration-images", 100, "--images", "normalized")
    assert run("quantize", trained.checkpoint, "-o", normalized, *words).code == 0
    network = twoscale.load(pixels)
    images = data.load("digits").test.images[:50]
    q = create("reference", network).run(images.astype(np.float32), [network.input.name])[network.input.name]
    assert (q == images).all()
    executors = ("--executors", "reference,torch,onnxruntime", "--max-samples", 100, "--json")
    for file in (pixels, normalized):  # one takes pixels; the model and the other take normalized images
        verified = run("verify", file, "--checkpoint", trained.checkpoint, *executors).json
        assert verified["mismatches"] == 0
        assert verified["sqnr_db"] > 30
        other = normalized if file is pixels else pixels
        assert run("verify", file, "--against", other, "--max-samples", 100, "--json").json["sqnr_db"] > 30


def test_export(run: Run, trained: Any, tmp_path: Path) -> None:
    assert run("export", trained.network, "--out", tmp_path / "c").code == 0
    assert list((tmp_path / "c").glob("*.c"))


def test_lab(lab: Any) -> None:
    results = msgspec.json.decode(lab.outcome.out, type=LabResults)
    assert lab.outcome.out == (lab.folder / "results.json").read_text()
    assert [network.name for network in results.networks] == ["Net", "NetWithBias"]
    for network in results.networks:
        assert network.stages[0].stage == "float"
        assert network.verify["default"].mismatches == 0
        for file in network.files.values():
            assert (lab.folder / file).is_file()
    assert "net-with-bias: verify (course)\n" in lab.outcome.err
    assert (lab.folder / "report.html").read_text().startswith("<!doctype html>")
    assert not list(lab.folder.rglob(".*"))  # no temporary file is left


@pytest.mark.parametrize("scheme", ["default", "course"])
def test_quantize_makes_the_networks_of_the_lab(run: Run, tmp_path: Path, lab: Any, scheme: str) -> None:
    """--scheme course takes normalized images, as the lab does; the default scheme does with an option."""
    for name in ("net", "net-with-bias"):
        out = tmp_path / f"{name}.onnx"
        words = ["--scheme", scheme, "--calibration-images", 50, *(["--images", "normalized"] * (scheme == "default"))]
        assert run("quantize", lab.folder / name / "model.safetensors", "-o", out, *words).code == 0
        assert twoscale.load(out).fingerprint == twoscale.load(lab.folder / name / f"{scheme}.onnx").fingerprint


def test_quantize_with_symmetric_activations(run: Run, tmp_path: Path, lab: Any) -> None:
    out = tmp_path / "symmetric.onnx"
    model = lab.folder / "net" / "model.safetensors"
    assert run("quantize", model, "-o", out, "--activations", "symmetric", "--calibration-images", 50).code == 0
    network = twoscale.load(out)
    specs = [layer.output for layer in network if layer.output.dtype != "int32"]
    assert {(spec.dtype, spec.zero_point) for spec in specs} == {("int8", 0)}
    assert network.on_grid
    assert "normalization" not in network.metadata  # 8-bit pixels need 256 integers


def test_lab_of_one_model_and_scheme(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[Any] = []

    def stop(config: Any, say: Any) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("twoscale._lab.run_lab", stop)
    words = ["--model", "resnet8", "--scheme", "course", "--bits", "3,8", "--out", tmp_path]
    outcome = run("lab", *words)
    assert (seen[0].models, seen[0].schemes, seen[0].bits) == (("resnet8",), ("course",), (3, 8))
    assert "--model resnet8 --scheme course --bits 3,8 --resume" in outcome.err
    run("lab", "--out", tmp_path)
    assert (seen[1].models, seen[1].schemes) == (("net", "net-with-bias"), ("default", "course"))
    assert run("lab", "--bits", "1,4").code == 2
    assert "--bits is 1,4; expected numbers from 2 to 8 with commas" in run("lab", "--bits", "1,4").err


def test_lab_prints_its_table(run: Run, tmp_path: Path, lab: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("twoscale._lab.run_lab", lambda config, say: lab.results)
    outcome = run("lab", "--out", tmp_path)
    assert outcome.code == 0
    assert "all integer" in outcome.out
    assert outcome.out.endswith(f"Report with pictures: {tmp_path / 'report.html'}\n")


def test_lab_whose_promise_is_broken_exits_with_1(run: Run, tmp_path: Path, lab: Any, monkeypatch: Any) -> None:
    network = lab.results.networks[0]
    verify = {**network.verify, "default": dataclasses.replace(network.verify["default"], mismatches=3)}
    broken = dataclasses.replace(lab.results, networks=(dataclasses.replace(network, verify=verify),))
    monkeypatch.setattr("twoscale._lab.run_lab", lambda config, say: broken)
    assert run("lab", "--out", tmp_path).code == 1
