"""Outside influences: names in files, files of other programs, closed and full outputs."""

from __future__ import annotations

import dataclasses
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import twoscale
from twoscale import models
from twoscale._cli.filekinds import foreign_kind
from twoscale._text import printable
from twoscale.errors import CaptureError

Run = Callable[..., Any]
Refused = Callable[..., str]

NAMES = ["conv\x1b[31m\x07\u202edrow\nend", "conv" + "x" * 100_000]


@pytest.fixture(params=NAMES, ids=["invisible", "long"])
def hostile(request: pytest.FixtureRequest, trained: Any, tmp_path: Path) -> Path:
    """Save an integer network with a hostile name and a layer with a hostile name."""

    def renamed(name: str) -> str:
        return request.param if name == "conv2" else name

    network = twoscale.load(trained.network)
    layers = tuple(
        dataclasses.replace(one, name=renamed(one.name), inputs=tuple(map(renamed, one.inputs))) for one in network
    )
    path = tmp_path / "hostile.onnx"
    dataclasses.replace(network, name=f"Net{request.param}", layers=layers).save(path)
    return path


def is_safe(text: str) -> bool:
    """Whether a terminal shows all of ``text``: nothing but line breaks is invisible."""
    flat = text.replace("\n", "")
    return printable(flat) == flat


@pytest.mark.parametrize("verb", ["inspect", "eval", "verify", "export"])
@pytest.mark.parametrize("json", [False, True])
def test_names_from_files_reach_the_terminal_visibly(
    run: Run, hostile: Path, tmp_path: Path, verb: str, json: bool
) -> None:
    options = {"inspect": [], "export": ["--out", tmp_path / "c"]}.get(verb, ["--max-samples", 10])
    outcome = run(verb, hostile, *options, *(["--json"] if json else []))
    assert outcome.code == 0, outcome.err
    assert outcome.out
    assert is_safe(outcome.out)
    assert is_safe(outcome.err)
    assert json or len(outcome.out) < 20_000
    if verb == "export":
        for file in (tmp_path / "c").iterdir():
            assert is_safe(file.read_text().replace("\t", "")), file


def test_names_from_files_are_visible_in_notebooks(hostile: Path) -> None:
    network = twoscale.load(hostile)
    for text in (repr(network), network._repr_html_()):
        assert is_safe(text)
        assert len(text) < 20_000


def test_errors_quote_names_visibly(refused: Refused) -> None:
    message = refused("eval", "no\x1b[2Jfile\u202e.onnx")
    assert message.startswith("no\\x1b[2Jfile\\u202e.onnx does not exist")


def test_piped_tables_are_not_wrapped(run: Run, trained: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = twoscale.load(trained.network)
    long = "features.stage_3.block_11.depthwise_convolution_of_the_second_branch.pointwise.activation.quantizer"

    def renamed(name: str) -> str:
        return long if name == "conv2" else name

    layers = tuple(
        dataclasses.replace(one, name=renamed(one.name), inputs=tuple(map(renamed, one.inputs))) for one in network
    )
    path = tmp_path / "long.onnx"
    dataclasses.replace(network, layers=layers).save(path)
    monkeypatch.delenv("COLUMNS", raising=False)
    for words in (("inspect", path), ("verify", path, "--max-samples", 10)):
        lines = run(*words).out.splitlines()
        assert sum(long in line for line in lines) == 1
        [row] = [line for line in lines if line.startswith(long)]
        assert "Conv2d" in row


TFLITE = b"\x1c\x00\x00\x00TFL3" + bytes(64)
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(64)


READS_TFLITE = ("eval", "inspect", "verify", "export", "sensitivity", "quantize")
VERBS = (["eval"], ["inspect"], ["verify"], ["sensitivity"], ["quantize", "-o", "x.onnx"], ["export", "-o", "c"])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("model.h5", HDF5, "an HDF5 file, as Keras writes"),
        ("model.pt", HDF5, "an HDF5 file, as Keras writes"),
        ("scripted.pt", None, "a TorchScript program"),
    ],
)
def test_files_of_other_programs_are_called_what_they_are(
    refused: Refused, tmp_path: Path, verb: list[str], name: str, content: bytes | None, kind: str
) -> None:
    path = tmp_path / name
    if content is None:
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)  # type: ignore[no-untyped-call]
    else:
        path.write_bytes(content)
    message = refused(verb[0], path, *verb[1:])
    assert message.startswith(f"{path} is {kind}, which twoscale does not read; expected ")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["model.tflite", "model.onnx"])
def test_a_damaged_tflite_file_is_refused(refused: Refused, tmp_path: Path, verb: list[str], name: str) -> None:
    path = tmp_path / name
    path.write_bytes(TFLITE)
    message = refused(verb[0], path, *verb[1:])
    if verb[0] in READS_TFLITE:
        assert message.startswith(f"{path} is no TensorFlow Lite file that can be read: ")
    else:
        assert message.startswith(f"{path} is a TensorFlow Lite model, which this command does not read; expected ")


@pytest.mark.parametrize(
    "verb", [["verify"], ["export", "-o", "c"], ["compile", "-o", "x.so"]], ids=lambda verb: verb[0]
)
def test_a_float_program_is_no_integer_network(refused: Refused, tmp_path: Path, verb: list[str]) -> None:
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    message = refused(verb[0], path, *verb[1:])
    assert message.startswith(f"{path} is a program of torch.export, which twoscale does not read; expected ")


@pytest.mark.parametrize("domain", ["", "PACTOps"])
@pytest.mark.parametrize("verb", ["eval", "verify", "inspect", "export"])
def test_integers_of_another_tools_operators_are_no_float_network(
    refused: Refused, tmp_path: Path, verb: str, domain: str
) -> None:
    """As NEMO and Deeploy write it: float tensors that hold integers, and an operator of their own between them."""
    one = [numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), name) for name in ("mul", "add")]
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["sums"]),
        helper.make_node("RequantShift", ["sums", "mul", "add"], ["y"], "shift", domain=domain, div=256.0, signed=1),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8]) for n, c in (("x", 3), ("y", 4)))
    opsets = [helper.make_opsetid("", 13), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path = tmp_path / "requant.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight, *one]), opset_imports=opsets), path)
    message = refused(verb, path, *(["-o", tmp_path / "c"] if verb == "export" else []))
    assert message.startswith(f"{path} has the operator RequantShift at shift, which is neither ONNX's nor ONNX ")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["observed", "converted"])
def test_weights_that_torch_quantized(refused: Refused, tmp_path: Path, kind: str) -> None:
    from torch.ao import quantization as torch_quantization

    torch.backends.quantized.engine = "qnnpack"
    model = models.create("net").eval()
    model.qconfig = torch_quantization.default_qconfig  # type: ignore[assignment]
    prepared = torch_quantization.prepare(model)  # type: ignore[no-untyped-call]
    prepared(torch.rand(2, 3, 32, 32))
    made = prepared
    if kind == "converted":
        made = torch_quantization.convert(prepared)  # type: ignore[no-untyped-call]
    path = tmp_path / "int8.pt"
    torch.save(made.state_dict(), path)
    with pytest.raises(CaptureError, match=r"is of torch's own quantization; pass the float model, before torch's own"):
        twoscale.quantize(made, [torch.rand(2, 3, 32, 32)])
    message = refused("eval", path, "--model", "net")
    if kind == "observed":
        assert message.startswith(f"{path} does not fit Net: unexpected conv1.activation_post_process.")
    else:
        assert message.startswith(f"{path}: conv1.weight is a quantized tensor, ")
        assert message.endswith("numbers on the CPU, from a float model, before torch's own tools quantized it")


def test_own_files_are_of_no_foreign_kind(trained: Any, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    torch.save(nn.Linear(2, 2).state_dict(), state)
    empty, damaged = tmp_path / "empty.pt", tmp_path / "damaged.pt"
    empty.write_bytes(b"")
    damaged.write_bytes(b"PK\x03\x04 no archive")
    for path in (trained.checkpoint, trained.network, state, empty, damaged, tmp_path, tmp_path / "none"):
        assert foreign_kind(path) is None


def test_a_file_without_a_data_set_is_not_evaluated_on_digits_in_silence(
    run: Run, trained: Any, tmp_path: Path
) -> None:
    network = twoscale.load(trained.network)
    path = tmp_path / "foreign.onnx"
    metadata = {key: value for key, value in network.metadata.items() if key != "data"}
    dataclasses.replace(network, metadata=metadata).save(path)
    line = "twoscale: the file does not record a data set; using digits (choose another with --data)\n"
    for verb in ("eval", "verify"):
        assert run(verb, path, "--max-samples", 5).err == line
        assert run(verb, path, "--max-samples", 5, "--data", "digits").err == ""
        assert run(verb, trained.network, "--max-samples", 5).err == ""


@pytest.mark.parametrize(
    "metadata",
    [
        {"data": 3},
        {"data": ["digits"]},
        {"mean": "0.5"},
        {"mean": [0.5, "x", 0.5]},
        {"std": {"r": 1}},
        {"mean": [0.5]},
        {"std": [1.0, 0.0, 1.0]},
        {"std": [0.1] * 1000},
    ],
)
def test_metadata_that_does_not_describe_images(
    refused: Refused, trained: Any, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    network = twoscale.load(trained.network)
    path = tmp_path / "odd.onnx"
    dataclasses.replace(network, metadata={**network.metadata, **metadata}).save(path)
    assert any(word in refused("eval", path) for word in ("metadata", "channels"))


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "twoscale", *map(str, words)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("stream", ["closed", "full"])
def test_the_exit_code_does_not_depend_on_standard_error(tmp_path: Path, stream: str) -> None:
    redirection = {"closed": "2>&-", "full": "2>/dev/full"}[stream]
    for words, code in ((["eval", tmp_path / "none.onnx"], 2), (["data", "list"], 0), (["data", "--none"], 2)):
        line = f"{shlex.join(command(*words))} {redirection}"
        assert subprocess.run(["sh", "-c", line], capture_output=True, check=False).returncode == code


def test_closed_standard_output_does_not_stop_the_work(trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    words = command("quantize", trained.checkpoint, "-o", out, "--calibration-images", 10)
    done = subprocess.run(["sh", "-c", f"{shlex.join(words)} >&-"], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert twoscale.load(out).name == "NetWithBias"


def test_every_command_that_is_printed_runs(run: Run, trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a folder; with spaces"
    folder.mkdir()
    weights = folder / "weights.pt"
    torch.save(models.load_checkpoint(trained.checkpoint)[0].state_dict(), weights)
    made = folder / "made.onnx"
    model = ["--model", "net-with-bias"]
    for words in (
        ["quantize", weights, "-o", made, "--calibration-images", 50, *model],
        ["sensitivity", weights, "-o", made, "--budget", "0.9", "--bits", "6", "--activation-bits", "none",
         "--max-samples", 20, "--calibration-images", 20, *model],
    ):  # fmt: skip
        outcome = run(*words)
        assert outcome.code == 0, outcome.err
        printed = shlex.split(outcome.out.split("Check it: ")[1])
        assert printed[0] == "twoscale"
        assert run(*printed[1:], "--max-samples", 20).code == 0
    outcome = run("export", made, "--out", folder / "c")
    printed = shlex.split(outcome.out.split("Check it: ")[1])
    assert printed[0] == "make"
    assert subprocess.run(printed, capture_output=True, check=False).returncode == 0


def test_a_console_keeps_styles_and_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.text import Text

    from twoscale._cli.common import console

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    printer = console()
    printer.file = io.StringIO()
    printer.print(Text("one\ntwo\x1b[31m"))
    assert printer.file.getvalue() == "one\ntwo\\x1b[31m\n"
    assert os.linesep == "\n" or "\r" not in printer.file.getvalue()
