"""Small data sets in the published file formats, and the library's expectations changed to match."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from twoscale.data import _cifar10 as cifar10
from twoscale.data import _fashion_mnist as fashion_mnist
from twoscale.data import _registry as registry
from twoscale.data._arrays import Arrays, Digests

PER_BATCH = 20


def digests(arrays: Arrays) -> Digests:
    return Digests(*(sha256(array.tobytes()).hexdigest() for array in arrays))


def python2_pickle(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bytes:
    """Write a batch opcode by opcode like Python 2's cPickle, which made the official one."""

    def text(value: bytes) -> bytes:  # SHORT_BINSTRING or BINSTRING
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:  # BININT1, BININT2 or BININT
        if 0 <= value < 256:
            return b"K" + bytes([value])
        if 0 <= value < 65536:
            return b"M" + struct.pack("<H", value)
        return b"J" + struct.pack("<i", value)

    rows = images.reshape(len(images), -1)
    dtype = (
        b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
        b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R"
        b"(" + integer(1) + integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86" + dtype + b"\x89"
    )
    return (
        b"\x80\x02}(" + text(b"batch_label") + text(b"training batch 1 of 5")
        + text(b"labels") + b"](" + b"".join(integer(int(label)) for label in labels) + b"e"
        + text(b"data") + array + text(rows.tobytes()) + b"tb"
        + text(b"filenames") + b"](" + b"".join(text(b"frog_s_%06d.png" % i) for i in range(len(rows))) + b"e"
        + b"u."
    )  # fmt: skip


@dataclass(frozen=True)
class TinyCifar10:
    """CIFAR-10 with 20 images per batch, and its files in the form of each source."""

    arrays: Arrays

    def batches(self) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
        for i in range(5):
            here = slice(i * PER_BATCH, (i + 1) * PER_BATCH)
            yield f"data_batch_{i + 1}", self.arrays.train_images[here], self.arrays.train_labels[here]
        yield "test_batch", self.arrays.test_images, self.arrays.test_labels

    @staticmethod
    def packed(members: dict[str, bytes]) -> bytes:
        """A .tar.gz of these files."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return content.getvalue()

    def binary(self) -> dict[str, bytes]:
        files = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
        for name, images, labels in self.batches():
            rows = np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)
            files[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
        return files

    def python2(self) -> dict[str, bytes]:
        files = {"cifar-10-batches-py/batches.meta": b"not read"}
        for name, images, labels in self.batches():
            files[f"cifar-10-batches-py/{name}"] = python2_pickle(images, labels)
        return files

    def python3(self, protocol: int) -> dict[str, bytes]:
        files = {}
        for name, images, labels in self.batches():
            batch = {"data": images.reshape(len(images), -1), "labels": labels.tolist(), "batch_label": name}
            files[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol)
        return files

    def npm(self) -> dict[str, bytes]:
        files = {"package/package.json": b"{}"}
        for name, images, _ in self.batches():
            content = io.BytesIO()
            sheet = images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)
            Image.fromarray(sheet).save(content, "PNG", compress_level=1)
            files[f"package/{name}.png"] = content.getvalue()
        files["package/train_lables.json"] = json.dumps(self.arrays.train_labels.tolist()).encode()
        files["package/test_lables.json"] = json.dumps(self.arrays.test_labels.tolist()).encode()
        return files


def shrink_cifar10(arrays: Arrays, set_attribute: Callable[[object, str, object], None]) -> None:
    """Make the library expect ``arrays`` as CIFAR-10. Also called in child processes."""
    shapes = tuple(array.shape for array in arrays)
    set_attribute(cifar10, "SHAPES", shapes)
    set_attribute(cifar10, "DIGESTS", digests(arrays))
    set_attribute(cifar10, "_PER_BATCH", PER_BATCH)
    kind = dataclasses.replace(registry._FETCHABLE["cifar10"], shapes=shapes, digests=digests(arrays))
    set_attribute(registry, "_FETCHABLE", {**registry._FETCHABLE, "cifar10": kind})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests away from the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TWOSCALE_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_cifar10(monkeypatch: pytest.MonkeyPatch) -> TinyCifar10:
    rng = np.random.default_rng(7)
    arrays = Arrays(
        rng.integers(0, 256, (5 * PER_BATCH, 3, 32, 32), np.uint8),
        rng.integers(0, 10, 5 * PER_BATCH, np.uint8),
        rng.integers(0, 256, (PER_BATCH, 3, 32, 32), np.uint8),
        rng.integers(0, 10, PER_BATCH, np.uint8),
    )
    shrink_cifar10(arrays, monkeypatch.setattr)
    return TinyCifar10(arrays)


@dataclass(frozen=True)
class TinyFashionMnist:
    """Fashion-MNIST with 30 + 10 images."""

    arrays: Arrays

    def files(self) -> dict[str, bytes]:
        """The four IDX files under their decompressed names, as the format's page describes them."""
        result = {}
        for name, array in zip(fashion_mnist.FILES, self.arrays, strict=True):
            lengths = [len(array)] if array.ndim == 1 else [len(array), 28, 28]
            magic = 0x0801 if array.ndim == 1 else 0x0803
            result[name.removesuffix(".gz")] = struct.pack(f">I{len(lengths)}I", magic, *lengths) + array.tobytes()
        return result

    def gz(self) -> dict[str, bytes]:
        return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in self.files().items()}


@pytest.fixture
def tiny_fashion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TinyFashionMnist:
    rng = np.random.default_rng(8)
    arrays = Arrays(
        rng.integers(0, 256, (30, 1, 28, 28), np.uint8),
        rng.integers(0, 10, 30, np.uint8),
        rng.integers(0, 256, (10, 1, 28, 28), np.uint8),
        rng.integers(0, 10, 10, np.uint8),
    )
    shapes = tuple(array.shape for array in arrays)
    monkeypatch.setattr(fashion_mnist, "SHAPES", shapes)
    monkeypatch.setattr(fashion_mnist, "DIGESTS", digests(arrays))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "no-package")
    kind = dataclasses.replace(registry._FETCHABLE["fashion-mnist"], shapes=shapes, digests=digests(arrays))
    monkeypatch.setattr(registry, "_FETCHABLE", {**registry._FETCHABLE, "fashion-mnist": kind})
    return TinyFashionMnist(arrays)
