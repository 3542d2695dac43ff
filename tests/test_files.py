from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from twoscale._files import (
    read_record,
    replacing,
    sorted_safetensors,
    write_bytes,
    write_files,
    write_text,
)
from twoscale.errors import TwoscaleError


@dataclass
class Named:
    name: str


def test_written_whole(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.bin", b"\x00\xff" * 1000)
    write_text(tmp_path / "a.txt", "s_x·s_w\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff" * 1000
    assert (tmp_path / "a.txt").read_bytes() == "s_x·s_w\n".encode()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "a.txt"]


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"x")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"x"


def test_temporary_name_is_beside_and_has_the_ending(tmp_path: Path) -> None:
    with replacing(tmp_path / "model.safetensors") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        assert temporary.name.startswith(".")
        assert not (tmp_path / "model.safetensors").exists()
        temporary.write_bytes(b"x")
    assert not temporary.exists()


def test_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"a long text that was there before")
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_failure_leaves_what_was_there(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"before")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert target.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("place", ["write_bytes", "fsync", "replace"])
@pytest.mark.parametrize("before", [None, b"before"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, before: bytes | None) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "a"
    if before is not None:
        target.write_bytes(before)
    with monkeypatch.context() as patch:
        patch.setattr(os if place == "fsync" else Path, place, full)
        with pytest.raises(TwoscaleError) as caught:
            write_bytes(target, b"after")
    assert str(caught.value) == f"cannot write {target}: No space left on device; what was there before is unchanged"
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("place", ["write_bytes", "fsync", "replace"])
def test_full_disk_at_the_second_of_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Both files are unchanged. Only if the second rename itself fails is the first new, and the message says so."""
    owner: Any = os if place == "fsync" else Path
    before = getattr(owner, place)
    calls: list[tuple[object, ...]] = []

    def full_at_second(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return before(*arguments)

    write_files(tmp_path, {"net.h": "old h", "net.c": "old c"})
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, full_at_second)
        with pytest.raises(TwoscaleError) as caught:
            write_files(tmp_path, {"net.h": "new h", "net.c": "new c"})
    late = place == "replace"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "net.h": "new h" if late else "old h",
        "net.c": "old c",
    }
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'net.c'}: No space left on device; already new: net.h; the others are unchanged"
        if late
        else f"cannot write {tmp_path}: No space left on device; what was there before is unchanged"
    )


def test_folder_in_place_of_the_second_of_two_files(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    (tmp_path / "b").mkdir()
    with pytest.raises(TwoscaleError, match=r"b: Is a directory; what was there before is unchanged"):
        write_files(tmp_path, {"a": "new", "b": "new"})
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def test_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(file: int) -> None:
        order.append("fsync")
        fsync(file)

    def noted_replace(path: Path, target: Path) -> Path:
        order.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_bytes(tmp_path / "a", b"x")
    assert order == ["fsync", "replace"]


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    target = tmp_path / "file" / "a"
    with pytest.raises(TwoscaleError) as caught:
        write_bytes(target, b"x")
    assert str(caught.value).startswith(f"cannot write {target}: ")
    assert str(caught.value).endswith("; nothing was changed")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TwoscaleError, match="Permission denied; nothing was changed"):
        write_bytes(tmp_path / "a", b"x")


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(TwoscaleError, match="Is a directory; what was there before is unchanged"):
        write_bytes(tmp_path / "a", b"x")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_mode_is_that_of_any_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        assert os.umask(before) == mask
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


needs_locks = pytest.mark.skipif(os.name != "posix", reason="without locks nothing is removed")

WRITER = """
import os, sys, time
from pathlib import Path
from twoscale import _files

def stop(*arguments, **keywords):
    print("there", flush=True)
    sys.stdin.readline()
    return go_on(*arguments, **keywords)

owner = {"lock": _files, "fsync": os, "write_bytes": Path, "replace": Path}[sys.argv[2]]
go_on = getattr(owner, sys.argv[2])
setattr(owner, sys.argv[2], stop)
_files.write_bytes(Path(sys.argv[1]), b"the child's")
"""
"""Writes a file, and waits for a line before the step that its argument names."""
STEPS = ["lock", "write_bytes", "fsync", "replace"]


@pytest.fixture
def writer_at() -> Iterator[Callable[[Path, str], subprocess.Popen[str]]]:
    """Start a process that writes a file, and return it when it has come to the step named."""
    with contextlib.ExitStack() as stack:

        def start(path: Path, step: str) -> subprocess.Popen[str]:
            child = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), step],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline() == "there\n"
            return child

        yield start


@needs_locks
@pytest.mark.parametrize("step", STEPS)
def test_next_writer_removes_what_a_killed_one_left(
    tmp_path: Path, step: str, writer_at: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    target = tmp_path / "net.onnx"
    write_bytes(target, b"before")
    child = writer_at(target, step)
    child.kill()
    child.wait()
    assert len(list(tmp_path.iterdir())) == 2
    assert target.read_bytes() == b"before"
    write_bytes(target, b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"net.onnx": b"after"}


@needs_locks
@pytest.mark.parametrize("step", STEPS)
def test_a_writer_at_work_loses_nothing_to_another(
    tmp_path: Path, step: str, writer_at: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    """Also where its new file has no lock yet: it is removed then, and the writer makes another one."""
    target = tmp_path / "net.onnx"
    child = writer_at(target, step)
    [temporary] = tmp_path.iterdir()
    write_bytes(target, b"the parent's")
    assert temporary.exists() is (step != "lock")
    assert target.read_bytes() == b"the parent's"
    child.communicate("go on\n" * 3, timeout=60)
    assert child.returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"net.onnx": b"the child's"}


@needs_locks
def test_only_temporary_files_of_the_same_file_are_removed(tmp_path: Path) -> None:
    names = (".net.backup.onnx", ".net.twoscale-12345678.c", ".net2.twoscale-12345678.onnx", ".net.twoscale-1.onnx")
    for name in (*names, ".net.twoscale-12345678.onnx"):
        (tmp_path / name).write_bytes(b"half")
    write_bytes(tmp_path / "net.onnx", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "net.onnx"}


@needs_locks
def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".a.twoscale-12345678").write_bytes(b"another process writes here")
    monkeypatch.setattr("twoscale._files.fcntl", None)
    write_bytes(tmp_path / "a", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.twoscale-12345678", "a"]


def test_metadata_in_the_order_of_its_keys() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    metadata = {f"key {i} ä": str(i) for i in range(20)}
    contents = {sorted_safetensors(save({"b": array, "a": array + 1}, metadata)) for _ in range(10)}
    assert len(contents) == 1
    [content] = contents
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert list(json.loads(content[8 : 8 + length])["__metadata__"]) == sorted(metadata)
    loaded = load(content)
    assert np.array_equal(loaded["a"], array + 1)
    assert np.array_equal(loaded["b"], array)


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000, b'{"name": 3}', b'{"name": "\xff"}'])
def test_records_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(TwoscaleError, match=r"x\.json does not hold a Named record: "):
        read_record(tmp_path / "x.json", Named)


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    """The file is complete and from one writer, the last one."""
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
