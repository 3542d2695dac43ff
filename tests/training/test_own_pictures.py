"""A folder of pictures through the commands: train, eval, quantize, verify."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import twoscale
from twoscale import _cli as cli
from twoscale import data
from twoscale.data import _assembly as assembly
from twoscale.models import read_info
from twoscale.training import TrainConfig, evaluate, train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Dark and bright pictures of many sizes."""
    generator = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        for number in range(20):
            height, width = generator.integers(20, 60, 2)
            file = tmp_path / "my pictures" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(low, low + 128, (height, width, 3), dtype=np.uint8)).save(file)
    return tmp_path / "my pictures"


def test_every_command_preprocesses_alike(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> dict[str, object]:
        cli.main([*words, "--json"])
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    options = ("--data", "./my pictures", "--size", "32", "--resize-to", "36", "--lr", "0.01", "--epochs", "6")
    trained = run("train", "net", *options, "--device", "cpu", "--out", "run")
    how = data.Preprocessing(32, resize_to=36)
    info = read_info(tmp_path / "run" / "model.safetensors")
    assert info is not None
    assert (info.data, info.classes, info.preprocessing) == (str(folder), ("bright", "dark"), how)
    # The commands after it need no option: what the file records is enough.
    dataset = data.image_folder(folder, how)
    judged = run("eval", "run/model.safetensors")
    model = twoscale.models.load(None, "run/model.safetensors")
    assert judged["top1"] == trained["test_accuracy"] == evaluate(model, dataset.test, dataset.mean, dataset.std)
    assert judged["samples"] == 8
    run("quantize", "run/model.safetensors", "-o", "net.onnx")
    network = twoscale.load("net.onnx")
    assert network.metadata["preprocessing"] == {
        "size": 32, "resize": "shorter", "resize_to": 36, "crop": "center", "interpolation": "bilinear", "channels": 3,
    }  # fmt: skip
    verified = run("verify", "net.onnx", "--executors", "reference,torch")
    assert verified["mismatches"] == 0
    run("export", "net.onnx", "--data", "./my pictures", "--out", "net-c")
    integer = run("eval", "net.onnx")
    images = data.normalize(dataset.test.images, network.metadata["mean"], network.metadata["std"])
    assert integer["top1"] == np.mean(np.asarray(network(images)).argmax(1) == dataset.test.labels)


def test_a_folder_that_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "net", "--data", f"{tmp_path}/none", "--out", str(tmp_path / "run")])
    assert capsys.readouterr().err == (
        f"twoscale: error: {tmp_path}/none does not exist: expected a folder of pictures\n"
    )


def test_streamed_pictures_train_to_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(epochs=2, batch_size=5, lr=0.01, crop=2, flip="random", device="cpu")
    runs = []
    for limit in (1 << 29, 0):
        monkeypatch.setattr(assembly, "_IN_MEMORY", limit)
        dataset = data.image_folder(folder, data.Preprocessing(32))
        assert dataset.train.streamed == (limit == 0)
        out = tmp_path / str(limit)
        runs.append((train(config, dataset, out=out, progress=False), read_info(out / "model.safetensors")))
    (kept, info), (streamed, _) = runs
    assert streamed.record.losses == kept.record.losses
    assert streamed.record.epoch_accuracy == kept.record.epoch_accuracy
    for name, value in kept.model.state_dict().items():
        assert torch.equal(value, streamed.model.state_dict()[name])
    # The configuration names digits, its default; what counts is the data set that the run was given.
    assert info is not None
    assert (info.data, info.classes) == (str(folder), ("bright", "dark"))
    assert kept.record.config.preprocessing == info.preprocessing == data.Preprocessing(32)
