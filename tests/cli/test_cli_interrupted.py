"""Ctrl-C, full disks, closed pipes: one line is printed, and nothing is lost or half written."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import sweep

Run = Callable[..., Any]
Refused = Callable[..., str]


def interrupt_at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` with Ctrl-C in its call of that number."""
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **options)

    return interrupted


@pytest.mark.skipif(not sweep.whole(), reason="takes half a minute: --sweep all runs it")
@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("twoscale.training._loop.correct", 3),  # in the middle of training the first network
        ("twoscale._quantization.quantize_graph", 3),  # the second network is trained
    ],
)
def test_an_interrupted_lab_goes_on_to_the_same_result(
    run: Run, lab: Any, tmp_path: Path, small_digits: None, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    module, name = place.rsplit(".", 1)
    original = getattr(sys.modules[module], name)
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupt_at_call(number, original))
        outcome = run("lab", "--out", tmp_path, "--calibration-images", 50)
    assert outcome.code == 130
    assert outcome.out == ""
    last = outcome.err.splitlines()[-1]
    assert last.startswith("twoscale: interrupted; finished training is kept; continue with: twoscale lab ")
    assert not list(tmp_path.rglob(".*"))
    assert not (tmp_path / "results.json").exists()

    again = last.split("continue with: twoscale ")[1].split()
    assert run(*again, "--calibration-images", 50).code == 0
    for name in ("net", "net-with-bias"):
        expected = load_file(lab.folder / name / "model.safetensors")
        found = load_file(tmp_path / name / "model.safetensors")
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[key], found[key]) for key in expected)


def test_interrupted_while_saving(run: Run, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "net.onnx"
    out.write_bytes(b"what was there")
    monkeypatch.setattr(os, "fsync", interrupt_at_call(1, os.fsync))
    outcome = run("quantize", trained.checkpoint, "-o", out, "--calibration-images", 20)
    assert outcome.code == 130
    assert outcome.err == "twoscale: interrupted; finished files are kept, none is half written\n"
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert out.read_bytes() == b"what was there"


def test_full_disk_while_saving(
    refused: Refused, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "net.onnx"
    out.write_bytes(b"what was there")
    monkeypatch.setattr(os, "fsync", full)
    message = refused("quantize", trained.checkpoint, "-o", out, "--calibration-images", 20)
    assert message == f"cannot write {out}: No space left on device; what was there before is unchanged"
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert out.read_bytes() == b"what was there"


KILLED = """
import os, signal, sys
from twoscale._cli import main
fsync, calls = os.fsync, 0
def killed(file):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)
os.fsync = killed
main(sys.argv[2:])
"""


@pytest.mark.skipif(os.name != "posix", reason="without locks nothing is removed")
@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("words", "call"),
    [
        (("quantize", "{checkpoint}", "-o", "{out}/net.onnx", "--calibration-images", "20"), 1),
        (("export", "{network}", "-o", "{out}"), 3),
        (("export", "{network}", "--to", "qdq", "-o", "{out}/net-qdq.onnx"), 1),
        (("train", "net", "--epochs", "1", "--batch-size", "500", "-o", "{out}"), 2),
    ],
)
def test_a_command_removes_what_a_killed_one_left(
    run: Run, trained: Any, tmp_path: Path, words: tuple[str, ...], call: int
) -> None:
    filled = [word.format(checkpoint=trained.checkpoint, network=trained.network, out=tmp_path) for word in words]
    done = subprocess.run([sys.executable, "-c", KILLED, str(call), *filled], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.glob(".*"))
    assert run(*filled, *(["--overwrite"] if words[0] == "train" else [])).code == 0
    assert not list(tmp_path.glob(".*"))
    assert list(tmp_path.iterdir())


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, which an integer network of the lab does not fit."""
    with mounted(tmp_path / "disk", "size=64k") as folder:
        yield folder


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot be written, not even by root."""
    with mounted(tmp_path / "read-only", "ro") as folder:
        yield folder


def test_a_cache_that_cannot_be_written(
    run: Run, refused: Refused, trained: Any, read_only_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache in (read_only_disk, read_only_disk / "cache"):
        monkeypatch.setenv("TWOSCALE_CACHE", str(cache))
        assert refused("data", "fetch", "cifar10") == (
            f"cannot write to the cache folder {cache}: Read-only file system; "
            "set TWOSCALE_CACHE to a folder that can be written"
        )
        outcome = run("data", "list")
        assert (outcome.code, outcome.err) == (0, "")
        for file in (trained.network, trained.checkpoint):  # whose images come with the package
            outcome = run("eval", file, "--max-samples", 20)
            assert (outcome.code, outcome.err) == (0, "")


def test_really_full_disk(run: Run, refused: Refused, trained: Any, tiny_disk: Path) -> None:
    message = refused("quantize", trained.checkpoint, "-o", tiny_disk / "net.onnx", "--calibration-images", 20)
    assert message.startswith(f"cannot write {tiny_disk / 'net.onnx'}: No space left on device")
    message = refused("export", trained.network, "-o", tiny_disk)
    assert message == f"cannot write {tiny_disk}: No space left on device; what was there before is unchanged"
    outcome = run("train", "net", "--epochs", 1, "-o", tiny_disk)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("twoscale: error: cannot write ")
    assert not list(tiny_disk.iterdir())


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", "from twoscale._cli import main; main()", *map(str, words)]


def test_output_on_a_full_disk(trained: Any) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("inspect", trained.network), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "twoscale: error: standard output: No space left on device\n"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_reader_that_leaves(trained: Any, options: tuple[str, ...]) -> None:
    """As in ``twoscale inspect net.onnx | head -0``."""
    with subprocess.Popen(
        command("inspect", trained.network, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(600) == 141
