"""The whole lab on a small part of the embedded digits: what it writes, that it repeats, that it goes on."""

from __future__ import annotations

import base64
import dataclasses
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import twoscale
from tests import sweep
from tests.cli.conftest import without_clang
from tests.cli.test_cli_explain import data_of
from twoscale import data, models
from twoscale._files import read_record
from twoscale._lab import LabConfig, run_lab
from twoscale._lab.records import LabResults, StageResult
from twoscale._quantization import quantize
from twoscale._runtimes import create
from twoscale._verification import accuracy
from twoscale.errors import ConfigurationError, DataError, TwoscaleError, UnknownNameError
from twoscale.training import TrainingInterrupted
from twoscale.training import _loop as loop
from twoscale.training._accuracy import correct

TRAIN, TEST, CALIBRATION = 120, 70, 100
NETWORKS = {"Net": "net", "NetWithBias": "net-with-bias"}
SCHEMES = ("default", "course")


def small_digits() -> data.Dataset:
    digits = data.load("digits")
    return dataclasses.replace(digits, train=digits.train.head(TRAIN), test=digits.test.head(TEST))


ORIGINAL_LOAD = data.load
DIGITS = small_digits()


@pytest.fixture(scope="module", autouse=True)
def _small_data() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name: DIGITS)
        without_clang(patch)
        yield


@dataclasses.dataclass(frozen=True)
class Lab:
    folder: Path
    results: LabResults
    said: list[str]


def done(folder: Path, **options: Any) -> Lab:
    said: list[str] = []
    config = LabConfig(out=folder, calibration_images=CALIBRATION, **options)
    return Lab(folder, run_lab(config, say=said.append), said)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, _small_data: None) -> Lab:
    return done(tmp_path_factory.mktemp("lab") / "new" / "folder")


def normalized(split: data.Split) -> NDArray[np.float32]:
    images: NDArray[np.uint8] = split.images
    return data.normalize(images, DIGITS.mean, DIGITS.std)


def test_results_are_what_was_returned(lab: Lab) -> None:
    assert read_record(lab.folder / "results.json", LabResults) == lab.results
    results = lab.results
    assert (results.data, results.seed) == ("digits", 0)
    assert (results.train_samples, results.test_samples, results.calibration_samples) == (TRAIN, TEST, CALIBRATION)
    assert [network.name for network in results.networks] == list(NETWORKS)
    assert [network.parameters for network in results.networks] == [61_770, 61_780]
    for name, recipe in results.recipe.items():
        assert name in NETWORKS.values()
        assert (recipe["model"], recipe["batch_size"], recipe["lr"], recipe["momentum"]) == (name, 4, 0.001, 0.9)
        assert recipe["epochs"] is not None  # what ran, not what was left to a default
    assert results.environment.versions.keys() >= {"twoscale", "torch", "numpy", "onnx"}
    stages = {name: seconds for name, seconds in results.seconds.items() if name != "total"}
    assert all(seconds > 0 for seconds in stages.values())
    assert results.seconds["total"] >= sum(stages.values())


def test_every_stage_of_both_networks_and_schemes(lab: Lab) -> None:
    found = {
        network.name: [(stage.scheme, stage.stage) for stage in network.stages] for network in lab.results.networks
    }
    steps = ["weights", "activations", "integer"]
    assert found["Net"] == [("float", "float"), *[("default", s) for s in steps], *[("course", s) for s in steps]]
    assert found["NetWithBias"] == found["Net"]
    for network in lab.results.networks:
        for stage in network.stages:
            assert stage.network == network.name
            assert stage.samples == TEST
            assert stage.title
            assert (stage.agreement is None) == (stage.stage == "float")
            assert (stage.sqnr_db is None) == (stage.stage == "float")
            assert (stage.mismatches is None) == (stage.stage != "integer")


def stage(lab: Lab, network: str, scheme: str, key: str) -> StageResult:
    (found,) = (
        row
        for part in lab.results.networks
        if part.name == network
        for row in part.stages
        if (row.scheme, row.stage) == (scheme, key)
    )
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_checkpoint_has_the_accuracy_of_the_table(lab: Lab, name: str) -> None:
    model, info = models.load_checkpoint(lab.folder / NETWORKS[name] / "model.safetensors")
    assert (info.model, info.data, info.mean) == (NETWORKS[name], "digits", DIGITS.mean)
    with torch.no_grad():
        logits = model(torch.from_numpy(normalized(DIGITS.test)))
    right = (logits.argmax(1).numpy() == DIGITS.test.labels).mean()
    assert stage(lab, name, "float", "float").top1 == right


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_files_hold_the_networks_that_were_measured(lab: Lab, name: str, scheme: str) -> None:
    record = next(network for network in lab.results.networks if network.name == name)
    network = twoscale.load(lab.folder / record.files[scheme])
    assert (network.name, network.scheme, network.on_grid) == (name, scheme, scheme == "default")
    assert network.metadata["data"] == "digits"
    assert network.metadata["mean"] == list(DIGITS.mean)
    row, check = stage(lab, name, scheme, "integer"), record.verify[scheme]
    assert accuracy(network, [(normalized(DIGITS.test), DIGITS.test.labels)], executor="reference") == (row.top1, TEST)
    assert (check.top1, check.agreement, check.sqnr_db) == (row.top1, row.agreement, row.sqnr_db)
    assert (check.samples, check.mismatches, check.on_grid) == (TEST, row.mismatches, scheme == "default")
    assert [layer.name for layer in check.layers] == [layer.name for layer in network]
    assert all(layer.outside == 0 for layer in check.layers)  # every value an integer in its range
    model, _ = models.load_checkpoint(lab.folder / record.files["checkpoint"])
    with torch.no_grad():
        expected = model(torch.from_numpy(normalized(DIGITS.test))).numpy()
    logits = network(normalized(DIGITS.test))
    noise = np.square(expected.astype(np.float64) - logits).sum()
    assert row.sqnr_db == pytest.approx(10 * np.log10(np.square(expected).sum() / noise), abs=1e-3)
    assert row.agreement == np.mean(expected.argmax(1) == logits.argmax(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_on_the_grid_nothing_differs_in_any_executor(lab: Lab, name: str) -> None:
    pytest.importorskip("onnxruntime")
    row = stage(lab, name, "default", "integer")
    assert row.mismatches == 0
    network = twoscale.load(lab.folder / NETWORKS[name] / "default.onnx")
    names = [layer.name for layer in network]
    expected, found = (create(e, network).run(normalized(DIGITS.test)[:8], names) for e in ("reference", "onnxruntime"))
    assert all(np.array_equal(expected[layer], found[layer]) for layer in names)


def test_the_lab_is_the_librarys_stages(lab: Lab) -> None:
    """Quantizing the checkpoint by hand gives the file's integers."""
    model, _ = models.load_checkpoint(lab.folder / "net" / "model.safetensors")
    pixels = normalized(DIGITS.train.head(CALIBRATION))
    for scheme in SCHEMES:
        network = twoscale.load(lab.folder / "net" / f"{scheme}.onnx")
        assert quantize(model, [pixels], scheme=scheme).fingerprint == network.fingerprint


def test_weights_and_activations_are_described(lab: Lab) -> None:
    layers = ["conv1", "conv2", "fc1", "fc2", "fc3"]
    for network in lab.results.networks:
        assert [w.name for w in network.weights if w.kind == "weight"] == layers
        assert [w.name for w in network.weights if w.kind == "bias"] == (
            ["fc3.bias"] if network.name == "NetWithBias" else []
        )
        assert [a.name for a in network.activations] == ["input", *layers]
        assert network.activations[0].count == CALIBRATION * 3 * 32 * 32
        for scheme in SCHEMES:
            records = network.ranges[scheme]
            assert [r.name for r in records if r.kind == "weight"] == layers
            assert [r.name for r in records if r.kind != "weight"] == ["input", *layers[:-1]]
            assert all(r.lo <= r.seen_lo <= r.seen_hi <= r.hi for r in records)
        assert network.train_loss
        batches, losses = zip(*network.train_loss, strict=True)
        assert batches[-1] == lab.results.recipe[NETWORKS[network.name]]["epochs"] * TRAIN / 4
        assert all(0 < loss < 3 for loss in losses)


def test_everything_lies_in_its_folder(lab: Lab) -> None:
    for network in lab.results.networks:
        assert network.files.keys() == {"checkpoint", *SCHEMES}
        assert all((lab.folder / file).is_file() for file in network.files.values())
    page = (lab.folder / "report.html").read_text()
    assert all(name in page for name in NETWORKS)
    assert list((lab.folder / "plots").glob("*.svg"))
    unfinished = [path.name for path in lab.folder.rglob(".*")]
    assert unfinished == []
    assert "NetWithBias" in lab.results._repr_html_()


def test_the_report_links_to_every_integer_of_one_picture(lab: Lab) -> None:
    """Of the networks on the grid, beside what the float network computes."""
    report = (lab.folder / "report.html").read_text()
    for network in lab.results.networks:
        assert network.explained.keys() == {"default"}
        assert f'href="./{network.explained["default"]}"' in report
        page = (lab.folder / network.explained["default"]).read_text()
        integers = twoscale.load(lab.folder / network.files["default"])
        image = normalized(DIGITS.test)[:1]
        found = data_of(page)["layers"]
        assert [layer["name"] for layer in found] == [layer.name for layer in integers]
        shown = np.frombuffer(base64.b64decode(found[-1]["integers"]), integers[integers.output].output.dtype)
        assert np.array_equal(shown, integers.integers(integers.output, image)[0])
        assert all("real" in layer for layer in found)
    assert "net: explain one picture (default)" in lab.said
    assert any("shows one picture only: there is no clang" in line for line in lab.said)


def test_what_the_questions_ask_is_measured(lab: Lab) -> None:
    layers = ["conv1", "conv2", "fc1", "fc2", "fc3"]
    for network in lab.results.networks:
        assert [one.method for one in network.methods] == ["minmax", "3-sigma", "percentile-99.9", "mse", "entropy"]
        assert network.methods[0].clipped == 0
        assert [curve.layer for curve in network.clips] == layers
        assert {(one.name, one.count) for one in network.pooled} == {
            ("conv1", CALIBRATION * 6 * 14 * 14),
            ("conv2", CALIBRATION * 16 * 5 * 5),
        }
        for scheme in SCHEMES:
            assert [one.layer for one in network.noise[scheme]] == layers
            assert [one.layer for one in network.scales[scheme]] == layers[:-1]
            assert [one.layer for one in network.biases[scheme]] == layers
            assert network.worked[scheme].layer == "conv2"
            bits = [one.bits for one in network.bits if one.scheme == scheme]
            assert bits == [2, 3, 4, 5, 6, 8]
        assert all(
            (one.numerators != ()) == (scheme == "default") for scheme in SCHEMES for one in network.scales[scheme]
        )
        in_integers = {(row.scheme, row.top1, row.sqnr_db) for row in network.stages if row.stage == "integer"}
        assert {(one.scheme, one.top1, one.sqnr_db) for one in network.bits if one.bits == 8} == in_integers
    without, with_bias = lab.results.networks
    assert without.bias_stages == ()
    assert without.product_of_scales is None
    assert [(row.scheme, row.stage) for row in with_bias.bias_stages] == [
        ("default", "unscaled"),
        ("default", "stretched"),
        ("course", "weights-unscaled"),
        ("course", "weights-without"),
        ("course", "weights-scaled"),
        ("course", "unscaled"),
        ("course", "stretched"),
    ]
    assert with_bias.product_of_scales is not None
    scales = [record.scales for record in with_bias.ranges["course"] if record.kind == "weight"]
    assert with_bias.product_of_scales == pytest.approx(np.prod(scales))


@pytest.mark.skipif(not sweep.whole(), reason="takes ten seconds: --sweep all runs it")
def test_one_residual_network_in_one_scheme(tmp_path: Path) -> None:
    done = run_lab(
        LabConfig(out=tmp_path, calibration_images=20, models=("resnet8",), schemes=("course",), bits=(4,), seed=1)
    )
    [network] = done.networks
    assert done.schemes == ("course",)
    assert network.files.keys() == {"checkpoint", "course"}
    assert {row.stage for row in network.stages} == {"float", "weights", "activations", "integer"}
    assert [(one.scheme, one.bits) for one in network.bits] == [("course", 4), ("course", 8)]
    assert network.product_of_scales is None  # two ways meet in each sum
    assert all(point.top1 is None for curve in network.clips for point in curve.points)  # too many layers
    assert "resnet8" in (tmp_path / "report.html").read_text().lower()


def test_it_says_what_begins(lab: Lab) -> None:
    assert lab.said[0] == "net: train"
    assert "net-with-bias: verify (course)" in lab.said
    assert lab.said[-1] == "report"


# The same again, interrupted or not.


def assert_same(first: Lab, second: Lab) -> None:
    """But for when they ran, and how long."""
    one, other = first.results, second.results
    assert one == dataclasses.replace(other, environment=one.environment, seconds=one.seconds)
    for network in one.networks:
        for scheme in SCHEMES:
            file = network.files[scheme]
            assert (first.folder / file).read_bytes() == (second.folder / file).read_bytes(), file
        (model, info), (again, of_again) = (
            models.load_checkpoint(lab.folder / network.files["checkpoint"]) for lab in (first, second)
        )
        assert info == of_again
        state = again.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.skipif(not sweep.whole(), reason="half a minute: --sweep all runs it; a test of the command runs always")
def test_an_interrupted_lab_goes_on_to_the_same_bits(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: by Ctrl-C in the middle of the first training, and as the second begins."""
    folder, epochs = tmp_path / "lab", 0
    judge = correct

    def interrupting(*arguments: Any, **options: Any) -> int:
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            signal.raise_signal(signal.SIGINT)
        return judge(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "correct", interrupting)
        with pytest.raises(TrainingInterrupted, match="saved after mini-batch"):
            done(folder)
    assert not (folder / "results.json").exists()
    assert not (folder / "net" / "model.safetensors").exists()

    def stop(line: str) -> None:
        if line == "net-with-bias: train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_lab(LabConfig(out=folder, calibration_images=CALIBRATION, resume=True), say=stop)
    assert (folder / "net" / "default.onnx").exists()
    assert not (folder / "results.json").exists()

    assert_same(lab, done(folder, resume=True))


def test_another_seed_is_another_network(lab: Lab) -> None:
    first = models.create("net", seed=0).state_dict()
    assert not torch.equal(first["fc1.weight"], models.create("net", seed=1).state_dict()["fc1.weight"])
    assert twoscale.load(lab.folder / "net" / "default.onnx").metadata["seed"] == 0


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_images": 0}, "calibration_images is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"bits": (4, 9)}, "bits is 4, 9; expected 2 to 8"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        LabConfig(**options)


def test_unknown_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load", ORIGINAL_LOAD)
    with pytest.raises(UnknownNameError, match="unknown data set 'digit': did you mean 'digits'"):
        run_lab(LabConfig(data="digit", out=tmp_path / "lab"))
    assert not (tmp_path / "lab").exists()


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    """Found before time is spent on training."""
    (tmp_path / "lab").write_text("mine")
    said: list[str] = []
    with pytest.raises(TwoscaleError, match=r"cannot write .*net: Not a directory") as caught:
        run_lab(LabConfig(out=tmp_path / "lab"), say=said.append)
    assert said == ["net: train"]
    assert "\n" not in str(caught.value)
    assert (tmp_path / "lab").read_text() == "mine"


def test_data_that_fits_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(
        DIGITS,
        train=data.Split(DIGITS.train.images[:, :, :16], DIGITS.train.labels),
        test=data.Split(DIGITS.test.images[:, :, :16], DIGITS.test.labels),
    )
    monkeypatch.setattr(data, "load", lambda name: small)
    with pytest.raises(DataError):
        run_lab(LabConfig(out=tmp_path / "lab"))
