"""A compiled network gives the network's logits for all kinds of arrays, from any number of threads."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.integer_networks import random_images, random_network
from twoscale._codegen.c.vector import sharing
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes import calling, fastest
from twoscale._runtimes.compiled import CompiledNetwork
from twoscale.data import normalize
from twoscale.errors import ConfigurationError, ExecutorError, UnknownNameError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) is installed")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSCALE_CACHE", str(shared_cache))


def some_network(**options: Any) -> IntegerNetwork:
    return random_network(np.random.default_rng(3), image_shape=(3, 6, 5), **options)


def images_of(network: IntegerNetwork, count: int) -> NDArray[np.float32]:
    return random_images(np.random.default_rng(count), network, count)


@pytest.mark.parametrize("output", ["accumulators", "tensor"])
def test_numpy_arrays_and_torch_tensors(output: Any) -> None:
    network = some_network(output=output, dtype="int8" if output == "tensor" else "uint8")
    run = network.compile()
    for count in (0, 1, 7):
        images = images_of(network, count)
        expected = network(images)
        found = run(images)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)
        tensor = torch.from_numpy(images).requires_grad_()
        assert torch.equal(run(tensor), network(tensor.detach()))
        assert np.array_equal(run(tensor.detach().double().bfloat16()), network(tensor.detach().bfloat16()))


def test_images_may_lie_anywhere() -> None:
    network = some_network()
    run = network.compile(threads=1)
    images = images_of(network, 6)
    expected = network(images)
    shifted = np.frombuffer(b"\0" + images.tobytes(), np.uint8)[1:].view(np.float32).reshape(images.shape)
    assert not shifted.flags.aligned
    read_only = images.copy()
    read_only.flags.writeable = False
    for form in (shifted, read_only, np.asfortranarray(images), images.astype(np.float64)):
        assert np.array_equal(run(form), expected)
    assert np.array_equal(run(images[::-2]), expected[::-2])
    channels_last = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    assert np.array_equal(run(channels_last), expected)


def test_the_quick_call_takes_plain_batches_only() -> None:
    """The quick call leaves other input to the call with all checks. Neither keeps references to arrays or pools."""
    if calling.maker() is None:
        pytest.skip("Python's headers are not installed")
    network = some_network(output="accumulators")
    run = CompiledNetwork(network, logits=True)
    images = images_of(network, 3)
    (pool,) = run._pools.free
    references = sys.getrefcount(images), sys.getrefcount(pool), sys.getrefcount(None)
    for _ in range(100):
        assert np.array_equal(none_is_wrong(run.quick_logits(images)), network(images))
        assert none_is_wrong(run.quick_logits(images[:1])).shape == (1, network.spec(network.output).shape[0])
    assert (sys.getrefcount(images), sys.getrefcount(pool)) == references[:2]
    assert abs(sys.getrefcount(None) - references[2]) < 50
    assert none_is_wrong(run.quick_logits(images[:0])).shape == (0, network(images).shape[1])
    channels = images.shape[1]
    others: tuple[NDArray[Any], ...] = (
        images[:, ::-1],
        images.astype(np.float64),
        images.view(np.int32),
        images[:, :, :-1].copy(),
        images[0],
        images[:, : channels - 1].copy(),
        np.zeros((), np.float32),
        images[None],
    )
    for other in others:
        assert run.quick_logits(other) is None
    assert run.quick_logits(images.data) is None
    run._pools.take()
    assert run.quick_logits(images) is None  # all pools are in use
    assert np.array_equal(network.logits(run(images)), network(images))
    assert run.quick_logits(images) is not None  # there are two now
    images[2, 0, 0, 0] = np.nan
    assert run.quick_logits(images) is None
    assert CompiledNetwork(network).quick_logits(images) is None


def none_is_wrong(logits: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert logits is not None
    return logits


def test_without_the_headers_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "maker", lambda: None)
    network = some_network()
    images = images_of(network, 3)
    assert np.array_equal(network.compile()(images), network(images))
    assert np.array_equal(network.compile()(images[:1]), network(images[:1]))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_pixels(dtype: Any) -> None:
    plain = some_network(dtype=dtype)
    network = dataclasses.replace(plain, metadata={"mean": MEAN, "std": STD})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 5), dtype=np.uint8)
    run = network.compile()
    expected = network(normalize(pixels, MEAN, STD))
    assert np.array_equal(run(pixels), expected)
    assert np.array_equal(run(torch.from_numpy(pixels)), expected)
    with pytest.raises(ConfigurationError, match=r"takes images of shape \(N, 3, 6, 5\), got \(5, 3, 6, 4\)"):
        run(pixels[..., :4])
    with pytest.raises(ConfigurationError, match="uint8 pixels, and random does not say how it normalizes"):
        plain.compile()(pixels)


def test_what_it_does_not_take() -> None:
    network = some_network()
    run = network.compile(threads=2)
    with pytest.raises(ConfigurationError, match=r"takes images of shape \(N, 3, 6, 5\), got \(2, 3, 5, 6\)"):
        run(np.zeros((2, 3, 5, 6), np.float32))
    with pytest.raises(ConfigurationError, match="takes NumPy arrays and torch tensors, got list"):
        run([[1.0]])
    with pytest.raises(
        ConfigurationError, match=r"compiled for the CPU and the images are on meta; pass images.cpu\(\)"
    ):
        run(torch.zeros((1, 3, 6, 5), device="meta"))
    for bad in (np.nan, np.inf, -np.inf):
        images = np.zeros((3, 3, 6, 5), np.float32)
        images[1, 2, 5, 4] = bad
        with pytest.raises(ConfigurationError, match="1 values that are NaN or infinite, the first in image 1"):
            run(images)
    assert len(run(np.zeros((3, 3, 6, 5), np.float32))) == 3  # an error does not change it
    with pytest.raises(ConfigurationError, match="threads is 0; expected at least 1"):
        network.compile(threads=0)
    with pytest.raises(UnknownNameError, match="unknown target 'avx51vnni': did you mean 'avx512vnni'"):
        network.compile(target="avx51vnni")


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    network = some_network()
    with pytest.raises(ExecutorError, match="needs a C compiler, and 'no-such-compiler' is not there; install gcc"):
        network.compile()
    with pytest.warns(
        UserWarning, match="random is not computed in C: the c executor needs a C compiler, and 'no-such"
    ):
        assert fastest(network).name == "torch"
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "twoscale._runtimes.torch", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "twoscale._runtimes.onnxruntime", None)
    with pytest.warns(UserWarning, match="is not computed in C"):
        assert fastest(network).name == "reference"


def test_the_fastest_executor() -> None:
    assert fastest(some_network()).name == "c"
    off_grid = random_network(np.random.default_rng(3), on_grid=False, operators={"linear"}, output="tensor")
    assert fastest(off_grid).name == "torch"


@pytest.mark.parametrize("threads", [1, 2])
def test_many_python_threads_at_once(threads: int) -> None:
    """Each thread has its own images, so that shared arenas would be detected."""
    network = some_network(length=12)
    run = network.compile(threads=threads)
    batches = [images_of(network, 1 + seed) for seed in range(6)]
    expected = [network(images) for images in batches]
    begin = threading.Barrier(len(batches))
    wrong: list[int] = []

    def work(index: int) -> None:
        begin.wait()
        for _ in range(200):
            if not np.array_equal(run(batches[index]), expected[index]):
                wrong.append(index)
                return

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_networks_come_and_go() -> None:
    """Threads and arenas of a compiled network end with it."""
    network = some_network()
    images = images_of(network, 3)
    expected = network(images)
    before = threading_count()
    for _ in range(20):
        assert np.array_equal(network.compile(threads=4)(images), expected)
    assert threading_count() <= before + 4


def threading_count() -> int:
    """Return the number of threads of this process, including those of C."""
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the states of threads are in /proc")
def test_threads_that_share_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more threads than cores some are late for every image. After a call, all of them sleep."""
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path))
    monkeypatch.setattr(sharing, "_HANDOVER", -1e9)
    network = some_network(length=8)
    run = network.compile(threads=5)
    assert run.shares_images
    batches = [images_of(network, count) for count in (1, 2, 4, 5, 9, 1, 3)]
    expected = [network(images) for images in batches]
    for _ in range(30):
        for images, logits in zip(batches, expected, strict=True):
            assert np.array_equal(run(images), logits)
    states = {"R"}
    while states != {"S"}:  # a thread that does not go to sleep would never let this end
        time.sleep(0.01)
        mine = str(threading.get_native_id())
        tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != mine]
        states = {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


def test_small_networks_compute_an_image_on_one_thread() -> None:
    run = some_network().compile(threads=2)
    assert not run.shares_images
    assert repr(run).endswith("threads: 2, one per image>")
