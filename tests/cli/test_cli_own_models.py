"""Commands with a model of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

MODEL = """
from torch import nn

class Own(nn.Module):
    def __init__(self, width: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=4)
        self.fc = nn.Linear(width * 64, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))
"""
OWN = ("--model", "mymodel.py:Own", "--model-args", "width=3")


@pytest.fixture
def trained(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model and a run of it, as the current one."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mymodel.py").write_text(MODEL)
    assert run("train", "mymodel.py:Own", *OWN[2:], "--epochs", 1, "--out", "run").code == 0
    yield tmp_path
    sys.modules.pop("twoscale_user_mymodel", None)


def test_every_verb_takes_the_user_s_own_model(trained: Path, run: Callable[..., Any]) -> None:
    quantized = run("quantize", "run", *OWN, "--calibration-images", 50, "-o", "n.onnx")
    assert quantized.code == 0
    command = quantized.out.strip().splitlines()[-1].partition("Check it: twoscale ")[2]
    assert command == "verify n.onnx --checkpoint run --model mymodel.py:Own --model-args width=3"
    assert run(*command.split(), "--max-samples", 50).code == 0
    for verb in ("eval", "inspect"):
        assert run(verb, "run", *OWN).code == 0
    assert run("sensitivity", "run", *OWN, "--max-samples", 50).code == 0
    assert run("export", "n.onnx", "--out", "c").code == 0


def test_the_printed_command_leaves_damaged_pictures_out_too(trained: Path, run: Callable[..., Any]) -> None:
    generator = np.random.default_rng(0)
    for i in range(20):
        file = trained / "pictures" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 32, 3), np.uint8)).save(file)
    (trained / "pictures" / "a" / "cut.png").write_bytes(file.read_bytes()[:100])
    own = (*OWN, "--data", "pictures", "--size", 32)
    refused = run("quantize", "run", *own, "-o", "n.onnx")
    assert refused.code == 2
    assert "leave them out (--skip-damaged, " in refused.err
    quantized = run("quantize", "run", *own, "--skip-damaged", "-o", "n.onnx")
    assert quantized.code == 0, quantized.err
    command = quantized.out.strip().splitlines()[-1].partition("Check it: twoscale ")[2]
    assert command.endswith(" --skip-damaged")
    assert run(*command.split()).code == 0


def test_what_does_not_name_the_model_is_refused(trained: Path, refused: Callable[..., str]) -> None:
    assert "give --model too" in refused("eval", "run", "--model-args", "width=3")
    assert "--model mymodel.py:Own" in refused("eval", "run/model.safetensors")
    assert "it was trained with width=3" in refused("eval", "run", "--model", "mymodel.py:Own")
    assert "expected name=value" in refused("train", "mymodel.py:Own", "--model-args", "width", "--out", "other")
