"""Bad input of every kind gives a clear message or a correct result."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import twoscale
from twoscale import data, models
from twoscale.errors import CalibrationError, CaptureError, ConfigurationError

Run = Callable[..., Any]
Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lab", "--data", "cifr10"), "unknown data set 'cifr10': did you mean 'cifar10'?"),
        (("lab", "--seed", "-1"), "seed is -1; expected 0 or more"),
        (("lab", "--calibration-images", "0"), "--calibration-images is 0; expected at least 1"),
        (("data", "fetch", "digit"), "unknown data set 'digit': did you mean 'digits'?"),
        (("train", "nett", "-o", "{tmp}/run"), "unknown model 'nett': did you mean 'net'?"),
        (("train", "net", "-o", "{tmp}/run", "--lr", "-1"), "lr is -1.0; expected a positive number"),
        (("eval", "{checkpoint}", "--model", "rsnet20"), "unknown model 'rsnet20': did you mean 'resnet20'?"),
        (("eval", "{checkpoint}", "--max-samples", "0"), "--max-samples is 0; expected at least 1"),
        (("inspect", "{checkpoint}", "--images", "0"), "--images is 0; expected at least 1"),
        (("quantize", "{checkpoint}", "-o", "{tmp}/a.onnx", "--memory", "many"),
         "--memory is many; expected a size such as 512M or 2G"),
        (("quantize", "{checkpoint}", "-o", "{tmp}/a.onnx", "--memory", "0"),
         "--memory is 0; expected a size such as 512M or 2G"),
        (("quantize", "{checkpoint}", "-o", "{tmp}/a.onnx", "--calibration-images", "0"),
         "--calibration-images is 0; expected at least 1"),
        (("quantize", "{checkpoint}", "-o", "{tmp}/a.onnx", "--weight-range", "3sigma"),
         "unknown range method '3sigma': did you mean '3-sigma'?"),
        (("quantize", "{checkpoint}", "-o", "{tmp}/a.onnx", "--activation-range", "percentile-20"),
         "range method percentile needs a percentage above 50"),
        (("quantize", "{checkpoint}", "-o", "{tmp}/a.onnx", "--weight-bits", "9"), "weight_bits is 9; expected 2 to 8"),
        (("quantize", "{checkpoint}", "-o", "{tmp}/a.onnx", "--std", "0.5", "0", "0.5"),
         "--std is 0.5 0 0.5; expected positive numbers"),
        (("quantize", "{checkpoint}", "-o", "{tmp}/net.bin"), "expected a file name that ends in .onnx"),
        (("quantize", "{network}", "-o", "{tmp}/a.onnx"),
         "is an integer network already; check it with twoscale verify, write its C with twoscale export, or give the"),
        (("sensitivity", "{network}"), "is an integer network already"),
        (("verify", "{network}", "--executors", "reference,trch"), "unknown executor 'trch': did you mean 'torch'?"),
        (("verify", "{network}", "--executors", ","), "verify needs at least one executor"),
        (("verify", "{network}", "--max-samples", "-3"), "--max-samples is -3; expected at least 1"),
        (("export", "{network}", "-o", "{tmp}/c", "--images", "0"), "--images is 0; expected at least 1"),
    ],
)  # fmt: skip
def test_wrong_words_and_numbers(
    refused: Refused, trained: Any, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    filled = [word.format(tmp=tmp_path, checkpoint=trained.checkpoint, network=trained.network) for word in words]
    assert message in refused(*filled)
    assert not list(tmp_path.iterdir())


VERBS_THAT_READ = [
    ("eval", "{file}"),
    ("inspect", "{file}"),
    ("quantize", "{file}", "-o", "{tmp}/out.onnx"),
    ("verify", "{file}"),
    ("export", "{file}", "-o", "{tmp}/out"),
]


@pytest.mark.parametrize("name", ["none.safetensors", "none.onnx"])
@pytest.mark.parametrize("words", VERBS_THAT_READ, ids=lambda words: words[0])
def test_missing_file(refused: Refused, tmp_path: Path, words: tuple[str, ...], name: str) -> None:
    message = refused(*(word.format(file=tmp_path / name, tmp=tmp_path) for word in words))
    assert re.match(rf"{tmp_path / name} does not exist; expected .*(\.safetensors|\.onnx)", message)


@pytest.mark.parametrize("words", VERBS_THAT_READ, ids=lambda words: words[0])
def test_folder_in_place_of_a_file(refused: Refused, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert f"{tmp_path} is a folder; expected " in refused(
        *(word.format(file=tmp_path, tmp=tmp_path) for word in words)
    )


def test_device_in_place_of_a_file(refused: Refused) -> None:
    said = refused("verify", os.devnull)
    assert said == f"{os.devnull} is no ordinary file; expected an integer network (.onnx or .tflite)"


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damaged(content: bytes) -> bytes:
    """Flip a bit in the middle, in a weight."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize("harm", [cut_off, damaged, lambda content: b"", lambda content: b"hello"])
@pytest.mark.parametrize("words", VERBS_THAT_READ, ids=lambda words: words[0])
def test_damaged_file(
    refused: Refused, trained: Any, tmp_path: Path, words: tuple[str, ...], harm: Callable[[bytes], bytes]
) -> None:
    whole = trained.network if words[0] in ("verify", "export") else trained.checkpoint
    file = tmp_path / whole.name
    file.write_bytes(harm(whole.read_bytes()))
    message = refused(*(word.format(file=file, tmp=tmp_path) for word in words))
    assert str(file) in message
    assert [found.name for found in tmp_path.iterdir()] == [file.name]


def test_damaged_integer_network_is_not_evaluated(refused: Refused, trained: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(damaged(trained.network.read_bytes()))
    for words in (("eval", file), ("inspect", file), ("verify", file)):
        assert str(file) in refused(*words)


def test_checkpoint_that_does_not_fit_the_model(refused: Refused, trained: Any, tmp_path: Path) -> None:
    message = refused("quantize", trained.checkpoint, "-o", tmp_path / "a.onnx", "--model", "net")
    assert message == f"{trained.checkpoint} does not fit Net: unexpected fc3.bias"


def test_checkpoint_that_does_not_say_its_model(refused: Refused, trained: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(trained.checkpoint), bare)
    assert "does not say which model it is; name it (--model)" in refused("eval", bare)


def test_checkpoint_of_another_origin(run: Run, trained: Any, tmp_path: Path) -> None:
    foreign = tmp_path / "weights.pt"
    state = {name: torch.from_numpy(value) for name, value in load_file(trained.checkpoint).items()}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, foreign)
    found = run("eval", foreign, "--model", "net-with-bias", "--json").json
    assert found["top1"] == run("eval", trained.checkpoint, "--json").json["top1"]


def test_pickled_code_is_never_run(refused: Refused, tmp_path: Path) -> None:
    evil, proof = tmp_path / "evil.pt", tmp_path / "proof"
    words = f"touch {proof}".encode()
    evil.write_bytes(b"\x80\x02cposix\nsystem\nX" + len(words).to_bytes(4, "little") + words + b"\x85R.")
    assert str(evil) in refused("eval", evil, "--model", "net")
    assert not proof.exists()
    pickle.loads(evil.read_bytes())  # what would have happened otherwise
    assert proof.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("verb", ["eval", "inspect", "quantize"])
def test_weights_that_are_no_numbers(refused: Refused, trained: Any, tmp_path: Path, verb: str, value: float) -> None:
    tensors = load_file(trained.checkpoint)
    tensors["fc1.weight"] = tensors["fc1.weight"].copy()
    tensors["fc1.weight"][3, 5] = value
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file)
    words = (verb, file, "--model", "net-with-bias", *(("-o", tmp_path / "a.onnx") if verb == "quantize" else ()))
    message = refused(*words)
    assert "NaN or infinity in fc1.weight (1 of 48000 values)" in message


@pytest.mark.parametrize("zeros", [("conv1.weight",), ("fc2.weight", "fc3.bias")])
@pytest.mark.parametrize("scheme", ["default", "course"])
def test_layers_of_zeros(run: Run, trained: Any, tmp_path: Path, zeros: tuple[str, ...], scheme: str) -> None:
    tensors = load_file(trained.checkpoint)
    for name in zeros:
        tensors[name] = np.zeros_like(tensors[name])
    _quantizes_correctly(run, tensors, tmp_path, scheme)


@pytest.mark.parametrize("scheme", ["default", "course"])
def test_channels_of_zeros(run: Run, trained: Any, tmp_path: Path, scheme: str) -> None:
    tensors = {name: value.copy() for name, value in load_file(trained.checkpoint).items()}
    tensors["conv1.weight"][2] = 0
    tensors["fc1.weight"][:60] = 0
    tensors["fc3.weight"][9] = 0
    tensors["fc3.bias"][9] = 0
    _quantizes_correctly(run, tensors, tmp_path, scheme)


def _quantizes_correctly(run: Run, tensors: dict[str, Any], folder: Path, scheme: str) -> None:
    """Check that a network with zeros gives the same integers everywhere, and nearly the float network's logits."""
    checkpoint, network = folder / "zeros.safetensors", folder / "zeros.onnx"
    save_file(tensors, checkpoint)
    words = ("--model", "net-with-bias", "--scheme", scheme, "--calibration-images", 100)
    assert run("quantize", checkpoint, "-o", network, *words).code == 0
    found = run("verify", network, "--executors", "reference,torch,onnxruntime", "--json")
    assert found.json["mismatches"] == 0
    assert all(layer["outside"] == 0 for layer in found.json["layers"])
    digits = data.load("digits")
    images = data.normalize(digits.test.images, digits.mean, digits.std)
    with torch.no_grad():
        expected = models.load("net-with-bias", checkpoint)(torch.from_numpy(images)).numpy()
    pixels = scheme == "default"  # the course's networks take normalized images
    given = digits.test.images.astype(np.float32) if pixels else images
    error = np.abs(twoscale.load(network)(given) - expected).max()
    assert error <= 0.05 * max(np.abs(expected).max(), 1e-6)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "net", "--epochs", 1, "-o", "{place}"),
        ("quantize", "{checkpoint}", "--calibration-images", 20, "-o", "{place}/net.onnx"),
        ("export", "{network}", "-o", "{place}"),
        ("lab", "-o", "{place}"),
    ],
    ids=lambda words: words[0],
)
def test_output_that_cannot_be_written(
    run: Run, trained: Any, tmp_path: Path, small_digits: None, words: tuple[Any, ...]
) -> None:
    place = tmp_path / "file" / "folder"
    place.parent.write_text("a file, in which there can be no folder")
    outcome = run(
        *(str(word).format(place=place, checkpoint=trained.checkpoint, network=trained.network) for word in words)
    )
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("twoscale: error: cannot write ")
    assert "Not a directory" in last
    assert place.parent.read_text() == "a file, in which there can be no folder"


def test_training_folder_that_is_in_use(refused: Refused, trained: Any) -> None:
    message = refused("train", "net-with-bias", "--epochs", 2, "-o", trained.checkpoint.parent)
    assert "holds a run already; continue it with --resume" in message


# Input that only the library can get.


def digits_images() -> Any:
    digits = data.load("digits")
    return data.normalize(digits.train.images[:20], digits.mean, digits.std)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return models.create("net").eval()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration got no images"),
        ([np.zeros((0, 3, 32, 32), np.float32)], "calibration got no images"),
        ([np.zeros((3, 32, 32), np.float32)], "pass batches, not single images"),
        ([np.zeros((4, 1, 32, 32), np.float32)], "torch.export cannot capture Net"),
        ([np.zeros((4, 3, 28, 28), np.float32)], "torch.export cannot capture Net"),
        ([np.zeros((4, 3, 32, 32), np.uint8)], "holds uint8 pixels"),
        ([digits_images(), np.zeros((4, 3, 31, 32), np.float32)], "have shape (N, 3, 31, 32)"),
        (["images"], "calibration batch 0 is a str"),
        ([np.full((4, 3, 32, 32), np.nan, np.float32)], "input: 12288 of 12288 values are NaN"),
        ([digits_images(), np.full((4, 3, 32, 32), np.inf, np.float32)], "the first is inf at index (0, 0, 0, 0)"),
    ],
)
def test_calibration_that_cannot_be(model: torch.nn.Module, batches: list[Any], message: str) -> None:
    with pytest.raises((CalibrationError, CaptureError), match=re.escape(message)):
        twoscale.quantize(model, batches)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 3, 28, 28), np.float32), "takes images of shape (N, 3, 32, 32), got (4, 3, 28, 28)"),
        (np.zeros((3, 32, 32), np.float32), "takes images of shape (N, 3, 32, 32), got (3, 32, 32)"),
        (np.full((2, 3, 32, 32), np.nan, np.float32), "values that are NaN or infinite, the first in image 0"),
        (np.full((2, 3, 32, 32), np.inf, np.float32), "values that are NaN or infinite, the first in image 0"),
    ],
)
def test_images_that_an_integer_network_does_not_take(trained: Any, images: Any, message: str) -> None:
    network = twoscale.load(trained.network)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        network(images)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        twoscale.verify(network, [images])


def test_verify_without_images(trained: Any) -> None:
    with pytest.raises(ConfigurationError, match="verify got no images; pass at least one batch"):
        twoscale.verify(twoscale.load(trained.network), [])
