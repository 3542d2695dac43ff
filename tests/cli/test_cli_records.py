"""The record of a verification, and what it is compared with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import twoscale
from twoscale import data
from twoscale._files import read_record, write_record
from twoscale._ir.layers import Accumulating
from twoscale._verification.record import VerificationRecord


def test_verify_records_what_it_compared(run: Callable[..., Any], trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(trained.network.read_bytes())
    outcome = run("verify", path, "--checkpoint", trained.checkpoint, "--max-samples", 30, "--json")
    assert outcome.code == 0
    network = twoscale.load(path)
    record = read_record(tmp_path / "net.verify.json", VerificationRecord)
    assert (record.file, record.fingerprint, record.samples) == ("net.onnx", network.fingerprint, 30)
    for name in ("mismatches", "compared", "top1", "agreement", "sqnr_db"):
        assert getattr(record, name) == outcome.json[name]
    assert record.executors == ("reference", "torch")
    assert record.same_weights is True
    assert record.weights_sha256 == network.metadata["weights_sha256"]
    assert {"torch", "numpy", "twoscale", "onnx"} <= record.environment.versions.keys()
    digits = data.load("digits").test.head(30)
    images = data.normalize(digits.images, record.mean, record.std)
    told = b"".join(
        image.tobytes() + int(label).to_bytes(8, "little") for image, label in zip(images, digits.labels, strict=True)
    )
    assert record.data_sha256 == hashlib.sha256(told).hexdigest()
    assert sum(layer.values for layer in record.layers) == record.compared
    page = (tmp_path / "net.verify.html").read_text()
    shown = (network.fingerprint, record.data_sha256, "net.verify.json", f"All {record.compared:,} integers are equal")
    assert all(text in page for text in (*shown, *(layer.name for layer in network)))
    assert "the network, which takes pixels 0..255" in page
    assert "<script" not in page

    assert run("export", path, "--out", tmp_path / "net-c", "--images", 1).code == 0
    [header] = (tmp_path / "net-c").glob("*.h")
    for file in (path, header):
        told = run("verify", file, "--record", tmp_path / "net.verify.json")
        assert (told.code, told.err) == (0, "")
        assert "integers differed between reference and torch over 30 images of digits" in told.out
    # Another network, and a library of another network.
    other = tmp_path / "other.onnx"
    layer = network.layers[-1]
    assert isinstance(layer, Accumulating)
    changed = np.array(layer.weight)
    changed.flat[0] ^= 1
    moved = dataclasses.replace(layer, weight=changed)
    dataclasses.replace(network, layers=(*network.layers[:-1], moved)).save(other)
    header.write_text(header.read_text().replace(network.fingerprint, "0" * 64))
    for file in (other, header):
        told = run("verify", file, "--record", tmp_path / "net.verify.json")
        assert told.code == 1
        assert "is not of the network in" in told.out


def test_a_network_of_the_library_takes_pixels_too(run: Callable[..., Any], trained: Any, tmp_path: Path) -> None:
    """twoscale.quantize(normalization=...) records it under another name than the command."""
    network = twoscale.load(trained.network)
    path = tmp_path / "net.onnx"
    kept = {"normalization": network.metadata["normalization"]}
    dataclasses.replace(network, metadata=kept).save(path)
    options = ("--data", "digits", "--max-samples", 100, "--json")
    expected, found = (run("eval", file, *options) for file in (trained.network, path))
    assert (expected.code, found.code) == (0, 0)
    assert (
        found.json == {**expected.json, "file": found.json.get("file")} or found.json["top1"] == expected.json["top1"]
    )
    assert found.json["top1"] > 0.5


def test_records_that_are_none(refused: Callable[..., str], trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.verify.json"
    assert "does not exist; expected the record" in refused("verify", trained.network, "--record", path)
    path.write_text("{}")
    assert "does not hold a VerificationRecord" in refused("verify", trained.network, "--record", path)


def test_a_record_without_a_fingerprint_matches_nothing(
    run: Callable[..., Any], refused: Callable[..., str], trained: Any, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(trained.network.read_bytes())
    assert run("verify", path, "--max-samples", 2).code == 0
    record = read_record(tmp_path / "net.verify.json", VerificationRecord)
    write_record(tmp_path / "net.verify.json", dataclasses.replace(record, fingerprint=""))
    (tmp_path / "net.h").write_text("anything")
    message = refused("verify", tmp_path / "net.h", "--record", tmp_path / "net.verify.json")
    assert "has no fingerprint of a network" in message


def test_a_recorded_function_runs_only_if_the_user_names_it(
    run: Callable[..., Any], refused: Callable[..., str], trained: Any, tmp_path: Path
) -> None:
    code = tmp_path / "stranger.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef pictures(): return []\n")
    network = twoscale.load(trained.network)
    foreign = tmp_path / "foreign.onnx"
    dataclasses.replace(network, metadata={**network.metadata, "data": f"{code}:pictures"}).save(foreign)
    for verb in ("eval", "verify"):
        assert f"whose code runs only if you name it (--data {code}:pictures)" in refused(verb, foreign)
    assert not (tmp_path / "ran").exists()


def test_unknown_options_are_named(refused: Callable[..., str]) -> None:
    assert refused("quantize", "--samples", 400, "w.safetensors").startswith("unknown option --samples")


@pytest.mark.parametrize("size", ["0", "x", "12x", "1x2x3", "big"])
def test_sizes_that_are_none(refused: Callable[..., str], size: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    message = refused("train", "net", "--data", tmp_path, "--size", size, "--out", tmp_path / "run")
    assert "size is" in message


def test_named_data_sets_take_no_size(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("train", "net", "--size", "64", "--out", tmp_path / "run")
    assert message.startswith("the data set digits has images of a fixed size")


def test_the_header_says_how_pictures_become_pixels(run: Callable[..., Any], trained: Any, tmp_path: Path) -> None:
    network = twoscale.load(trained.network)
    steps = {"size": 32, "resize_to": 36, "channels": 3}
    path = tmp_path / "net.onnx"
    dataclasses.replace(network, metadata={**network.metadata, "preprocessing": steps}).save(path)
    for target in ("portable", "native"):
        assert run("export", path, "--out", tmp_path / target, "--images", 1, "--target", target).code == 0
        text = "".join(file.read_text() for file in (tmp_path / target).glob("*.h"))
        assert "RGB, the shorter side resized to 36 (bilinear, antialias), center crop 32x32." in text
    assert json.loads(json.dumps(network.metadata["classes"])) == list("0123456789")
