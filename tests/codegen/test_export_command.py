"""``twoscale export``: its files, its output, and its messages about bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tyro

from tests.codegen.compiling import STRICT, build, need, run
from tests.integer_networks import random_network
from twoscale._cli.export import export_command
from twoscale._formats import load
from twoscale.errors import ConfigurationError, NetworkFileError, UnknownNameError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network on images of 3×32×32."""
    network = random_network(
        np.random.default_rng(2), image_shape=(3, 32, 32), operators=("max_pool", "clamp", "slice"), length=2,
        name="saved [bold]",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("saved") / "saved.onnx"
    network.save(path)
    return path


def test_it_writes_files_and_prints_their_sizes(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    export_command(file, tmp_path)
    printed = capsys.readouterr().out
    assert "saved [bold]: " in printed
    assert re.search(r"input +QuantizeInput +32×32×3 +[0-9,]+", printed)
    assert re.search(r"bytes of constants, and the code \(at most [0-9,]+; make size\)", printed)
    assert f"Check it: make -C {tmp_path} test" in printed
    assert max(map(len, printed[: printed.index("Flash:")].splitlines())) <= 80
    names = {"saved_bold.h", "saved_bold.c", "saved_bold_test.c", "saved_bold_sizes.txt", "saved_bold_sizes.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", *names}


def test_json_is_for_programs(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_command(file, tmp_path, name="other", json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path)
    assert told["prefix"] == "other"
    assert "other.c" in told["files"]
    assert told["sizes"]["arena_bytes"] >= 1


def test_the_self_test_takes_images_of_a_data_set(file: Path, tmp_path: Path) -> None:
    need("gcc")
    export_command(file, tmp_path, data="digits", images=3, name="digits")
    assert "#define IMAGES 3" in (tmp_path / "digits_test.c").read_text()
    program = build("gcc", tmp_path, ["digits_test.c", "digits.c"], *STRICT, "-DDIGITS_TRACE")
    assert run(program).stdout == "digits: 3 images, all layers and outputs as expected\n"


def test_options_are_those_of_the_help(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tyro.cli(export_command, args=[str(file), "--to", "c", "-o", str(tmp_path), "--no-json"], config=())
    assert (tmp_path / "saved_bold.c").exists()
    with pytest.raises(SystemExit):
        tyro.cli(export_command, args=["--help"], config=())
    assert "Folder to write to" in capsys.readouterr().out


def test_bad_input_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.onnx does not exist; expected an integer network"):
        export_command(tmp_path / "none.onnx", tmp_path)
    with pytest.raises(ConfigurationError, match="--images is 0; expected at least 1"):
        export_command(file, tmp_path, images=0)
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        export_command(file, tmp_path, data="digit")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(NetworkFileError):
        export_command(tmp_path / "text.onnx", tmp_path)


def test_it_writes_the_qdq_form(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_command(file, tmp_path / "qdq.onnx", to="qdq")
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'qdq.onnx'}: saved [bold] in QDQ form, not to be read back\n"
    with pytest.raises(NetworkFileError, match="qdq"):
        load(tmp_path / "qdq.onnx")
    export_command(file, tmp_path / "again.onnx", to="qdq", json=True)
    assert json.loads(capsys.readouterr().out)["fingerprint"] == load(file).fingerprint
    with pytest.raises(ConfigurationError, match="is a folder; expected a file"):
        export_command(file, tmp_path, to="qdq")
    with pytest.raises(ConfigurationError, match="is the network itself"):
        export_command(file, file, to="qdq")


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    random_network(np.random.default_rng(2), image_shape=(1, 8, 8), dtype="uint8").save(tmp_path / "small.onnx")
    with pytest.raises(
        ConfigurationError, match=r"must be uint8 of shape \(N, 1, 8, 8\), got uint8 of shape \(4, 3, 32"
    ):
        export_command(tmp_path / "small.onnx", tmp_path / "out", data="digits")


def test_it_writes_vector_kernels_too(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("gcc")
    export_command(file, tmp_path, target="native", name="fast")
    assert "fast_kernels.h" in capsys.readouterr().out
    flags = ("-std=gnu99", "-Wall", "-Wextra", "-Werror", "-pthread", "-O1")
    program = build("gcc", tmp_path, ["fast_test.c", "fast.c"], *flags)
    assert run(program).stdout.startswith("fast: 4 images, all layers and outputs as expected (")
