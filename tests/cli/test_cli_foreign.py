"""Files of other tools on the command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import twoscale
from tests.formats.test_onnx_foreign import Draft
from tests.verification.test_original import planted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file of another tool for the images of digits."""
    draft = Draft()
    draft.input_shape = ("N", 3, 32, 32)
    draft.constant("s", 1 / 128)
    draft.constant("w", np.random.default_rng(0).integers(-127, 128, (10, 3, 3, 3)), np.int8)
    draft.constant("ws", np.linspace(0.003, 0.009, 10))
    draft.constant("wz", np.zeros(10), np.int8)
    draft.node("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "s", "z"], "y", strides=[2, 2])
    draft.microsoft("QLinearGlobalAveragePool", ["y", "s", "z", "s", "z"], "g")
    draft.finish("g")
    return draft.save(tmp_path / "other.onnx")


def test_verify_runs_the_file_itself(path: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    words = ("--data", "digits", "--max-samples", 20)
    outcome = run("verify", path, *words)
    assert outcome.code == 0
    assert "onnxruntime on other.onnx" in outcome.out
    assert run("verify", path, *words, "--json").json["original"] == "other.onnx"
    planted(twoscale.load(path), "y").save(tmp_path / "ours.onnx")
    outcome = run("verify", tmp_path / "ours.onnx", *words)
    assert outcome.code == 0
    printed = " ".join(outcome.out.split())
    assert "not compared with the file itself: which file it was read from is not known" in printed
    assert run("verify", tmp_path / "ours.onnx", "--original", path, *words).code == 1


def test_the_advice_for_free_multipliers_ends_in_c(
    path: Path, tmp_path: Path, run: Callable[..., Any], refused: Callable[..., str]
) -> None:
    """Every command is the one that was printed before it."""
    message = refused("export", path, "--out", tmp_path / "c")
    assert "has free float multipliers" in message
    words = shlex.split(message.split("onto the grid: ")[1])
    assert words[:2] == ["twoscale", "requantize"]
    outcome = run(*words[1:], "--max-samples", 100)
    assert outcome.code == 0
    printed = " ".join(outcome.out.split())
    assert f"against {path}, over 100 images of digits: logit SQNR" in printed
    last = shlex.split(outcome.out.split("Write it as C: ")[1])
    assert last[:2] == ["twoscale", "export"]
    assert run(*last[1:]).code == 0
    assert list((tmp_path / "other-on-grid").glob("*.c"))
    moved = twoscale.load(tmp_path / "other-on-grid.onnx")
    assert moved.on_grid
    assert moved == twoscale.load(path).requantize()


def test_requantize_prints_what_changed(path: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    record = run("requantize", path, "-o", tmp_path / "o.onnx", "--max-samples", 50, "--json").json
    assert record["multipliers"] > 0
    assert 0 < record["largest_change"] < 0.01
    assert (record["data"], record["samples"]) == ("digits", 50)
    network, moved = twoscale.load(path), twoscale.load(tmp_path / "o.onnx")
    assert record["fingerprint"] == moved.fingerprint
    from twoscale import data

    digits = data.load("digits")
    images = data.normalize(digits.test.images[:50], digits.mean, digits.std)
    result = twoscale.verify(moved, images, executors=["reference"], against=network)
    assert (record["sqnr_db"], record["agreement"]) == (result.sqnr_db, result.agreement)
    assert record["sqnr_db"] > 20
