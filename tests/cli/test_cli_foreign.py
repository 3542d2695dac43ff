"""Files of other tools on the command line."""

from __future__ import annotations

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
    assert "not compared with ONNX Runtime on the file itself: which file it was read from is not known" in printed
    assert run("verify", tmp_path / "ours.onnx", "--original", path, *words).code == 1
