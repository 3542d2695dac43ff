"""Commands with a float network in an ONNX file, and with pictures of another shape than a network takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

import twoscale
from twoscale import data
from twoscale.models import load
from twoscale.training import evaluate

Run = Callable[..., Any]
Refused = Callable[..., str]


class Small(nn.Module):
    """The network that the files hold."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv, self.fc = nn.Conv2d(3, 4, 5, stride=4), nn.Linear(4 * 49, 10)
        for parameter in self.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def written(path: Path, model: Small) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], strides=[4, 4], name="conv"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1, name="fc"),
    ]
    weights = [numpy_helper.from_array(value.numpy(), name) for name, value in model.state_dict().items()]
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "small", [images], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture
def file(tmp_path: Path, small_digits: None) -> Path:
    return written(tmp_path / "small.onnx", Small())


def test_every_verb_takes_a_float_onnx_file(file: Path, run: Run) -> None:
    digits = data.load("digits")
    top1 = run("eval", file, "--json").json
    assert (top1["network"], top1["executor"], top1["samples"]) == ("small", "torch", len(digits.test))
    assert top1["top1"] == evaluate(Small(), digits.test, digits.mean, digits.std)
    assert {weight["name"] for weight in run("inspect", file, "--json").json["weights"]} >= {"conv", "fc"}
    assert run("sensitivity", file, "--max-samples", 20, "--calibration-images", 20, "--bits", 4).code == 0

    out = file.with_name("n.onnx")
    made = run("quantize", file, "-o", out, "--calibration-images", 50)
    assert made.out.strip().endswith(f"twoscale verify {out} --checkpoint {file}")
    pixels = digits.train.images[:50].astype(np.float32)
    expected = twoscale.quantize(Small(), [pixels], normalization=(digits.mean, digits.std))
    through_the_library: Any = str(file)
    beside = twoscale.quantize(through_the_library, [pixels], normalization=(digits.mean, digits.std))
    found = twoscale.load(out)
    assert found.fingerprint == beside.fingerprint
    assert found.metadata["weights_sha256"] == beside.metadata["weights_sha256"]
    test = digits.test.images.astype(np.float32)
    assert np.array_equal(found(test), expected(test))
    for option in ("--checkpoint", "--against"):
        verified = run("verify", out, option, file, "--json")
        assert verified.code == 0
        assert verified.json["same_weights"] is True
        assert verified.json["agreement"] > 0.9
    assert run("verify", out, "--against", out, "--json").json["agreement"] == 1


def test_other_weights_are_detected_and_another_form_is_not_compared(file: Path) -> None:
    images = np.random.default_rng(0).normal(0, 1, (8, 3, 32, 32)).astype(np.float32)
    source, other = load(None, file), written(file.with_name("other.onnx"), Small(1))
    network = twoscale.quantize(source, [images])
    path: Any = str(file)
    assert twoscale.verify(network, [images], model=path).same_weights is True
    assert twoscale.verify(network, [images], model=load(None, other)).same_weights is False
    assert twoscale.verify(network, [images], model=Small()).same_weights is None


def test_what_a_float_onnx_file_does_not_take_is_refused(file: Path, refused: Refused) -> None:
    assert "cannot be trained" in refused_by_train(load(None, file))
    assert "which is not trained further" in refused("train", file, "--out", file.with_name("run"))
    assert (
        refused("eval", file, "--model", "net") == f"{file} is a whole network, which needs no model; leave out --model"
    )
    assert "is a float network" in refused("verify", file)
    file.write_bytes(file.read_bytes()[:-40])
    for verb in ("eval", "inspect", "sensitivity"):
        assert "not an ONNX file, or was cut off" in refused(verb, file)


def refused_by_train(model: nn.Module) -> str:
    with pytest.raises(twoscale.errors.ConfigurationError) as error:
        model.train()
    return str(error.value)


GREY = """
from torch import nn

class Grey(nn.Module):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, x):
        return self.layers[1](self.layers[0](x))
"""


@pytest.fixture
def grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of grey pictures beside a model for one channel, as the current folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grey.py").write_text(GREY)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "pictures" / part / label).mkdir(parents=True)
            for number in range(3):
                Image.new("L", (8, 8), 60 * number).save(tmp_path / "pictures" / part / label / f"{number}.png")
    return tmp_path


def test_pictures_of_another_shape_name_the_options(grey: Path, run: Run, refused: Refused) -> None:
    train = ("train", "grey.py:Grey", "--data", "pictures", "--epochs", 1, "--out", "run")
    for options in ((), ("--channels", 1), ("--size", 8)):
        assert "; give --channels and --size as the model takes them" in refused(*train, *options)
    assert run(*train, "--channels", 1, "--size", 8).code == 0
    own = ("run", "--model", "grey.py:Grey", "--data", "pictures")
    verbs: tuple[tuple[str, ...], ...] = (("eval",), ("inspect",), ("sensitivity",), ("quantize", "-o", "n.onnx"))
    for verb in verbs:
        assert "give --channels and --size" in refused(*verb, *own, "--size", 9)
        assert "give --channels 1, or --mean and --std" in refused(*verb, *own, "--channels", 3)
    assert run("quantize", *own, "-o", "n.onnx").code == 0
    for name in ("eval", "verify"):
        assert refused(name, "n.onnx", "--data", "pictures", "--size", 9).endswith("; give --channels 1 --size 8x8")
    sys.modules.pop("twoscale_user_grey", None)
