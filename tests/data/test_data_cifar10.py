from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from twoscale import data
from twoscale.data import _cifar10 as cifar10
from twoscale.data import _transfer as transfer
from twoscale.data._arrays import Arrays
from twoscale.data._pickled import PickledBatchError, read_batch
from twoscale.errors import DataError

if TYPE_CHECKING:
    from tests.data.conftest import TinyCifar10

Layout = Callable[["TinyCifar10"], dict[str, bytes]]
LAYOUTS: dict[str, Layout] = {
    "binary": lambda tiny: tiny.binary(),
    "python2": lambda tiny: tiny.python2(),
    "python3-protocol2": lambda tiny: tiny.python3(2),
    "python3-protocol4": lambda tiny: tiny.python3(4),
    "npm": lambda tiny: tiny.npm(),
}


def extract(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def archive(files: dict[str, bytes], path: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def assert_same(dataset: data.Dataset, arrays: Arrays) -> None:
    assert np.array_equal(dataset.train.images, arrays.train_images)
    assert np.array_equal(dataset.train.labels, arrays.train_labels)
    assert np.array_equal(dataset.test.images, arrays.test_images)
    assert np.array_equal(dataset.test.labels, arrays.test_labels)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_decodes_to_the_same_pixels(layout: str, tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    files = LAYOUTS[layout](tiny_cifar10)
    above = extract(files, tmp_path / "above")
    (inner,) = above.iterdir()
    ways = {
        "folder": inner,
        "folder above": above,
        "tar.gz": archive(files, tmp_path / "any-name.tar.gz"),
        "tar": archive(files, tmp_path / "plain.tar", "w"),
        "tar.xz": archive(files, tmp_path / "other.tar.xz", "w:xz"),
    }
    for path in ways.values():
        dataset = data.load("cifar10", path=path)
        assert_same(dataset, tiny_cifar10.arrays)
        assert str(path) in dataset.source
        assert layout.split("-")[0].rstrip("23") in dataset.source
    assert not data.cache_dir().exists(), "loading from a path leaves the cache alone"


def test_a_folder_that_holds_the_archive(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    archive(tiny_cifar10.python2(), tmp_path / "cifar-10-python.tar.gz")
    assert_same(data.load("cifar10", path=tmp_path), tiny_cifar10.arrays)


def test_batches_of_two_folders_are_not_mixed(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    files = tiny_cifar10.binary()
    partial = {f"a/{name}": content[::-1] for name, content in files.items() if "data_batch_1" in name}
    extract({**files, **partial}, tmp_path)
    assert_same(data.load("cifar10", path=tmp_path), tiny_cifar10.arrays)


def test_the_hand_written_pickle_is_what_numpy_reads(tiny_cifar10: TinyCifar10) -> None:
    content = tiny_cifar10.python2()["cifar-10-batches-py/test_batch"]
    pickletools.dis(content, out=io.StringIO())
    batch = pickle.loads(content, encoding="bytes")
    assert np.array_equal(batch[b"data"].reshape(-1, 3, 32, 32), tiny_cifar10.arrays.test_images)
    assert batch[b"labels"] == tiny_cifar10.arrays.test_labels.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_altered_pixel_is_found(layout: str, tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    tiny_cifar10.arrays.test_images[3, 1, 5, 7] ^= 1
    path = archive(LAYOUTS[layout](tiny_cifar10), tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match=r"x\.tar\.gz is damaged or altered: its test images have SHA-256 [0-9a-f]{16}"):
        data.load("cifar10", path=path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_altered_label_and_a_swap_are_found(layout: str, tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    labels = tiny_cifar10.arrays.train_labels
    here, there = 0, int(np.flatnonzero(labels != labels[0])[0])
    labels[[here, there]] = labels[[there, here]]
    path = archive(LAYOUTS[layout](tiny_cifar10), tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match="its train labels have SHA-256"):
        data.load("cifar10", path=path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_file_is_named(layout: str, tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    files = LAYOUTS[layout](tiny_cifar10)
    gone = next(name for name in files if "data_batch_4" in name)
    del files[gone]
    path = archive(files, tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match=rf"holds only part of CIFAR-10 .*: {Path(gone).name} missing"):
        data.load("cifar10", path=path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cut", ["half", "empty"])
def test_a_damaged_member_is_named(layout: str, cut: str, tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    files = LAYOUTS[layout](tiny_cifar10)
    name = next(name for name in files if "data_batch_2" in name)
    files[name] = files[name][: len(files[name]) // 2] if cut == "half" else b""
    path = archive(files, tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match=rf"x\.tar\.gz is damaged or altered: {Path(name).name}") as caught:
        data.load("cifar10", path=path)
    assert "\n" not in str(caught.value)


def test_damaged_label_lists(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    files = tiny_cifar10.npm()
    for content in (b"[1, 2", b'["cat"]', b"[300]", b"[-1]", b"\xff", b'{"a": 1}'):
        path = archive({**files, "package/train_lables.json": content}, tmp_path / "x.tgz")
        with pytest.raises(DataError, match=r"train_lables\.json is no list of labels"):
            data.load("cifar10", path=path)
    path = archive({**files, "package/train_lables.json": b"[1, 2]"}, tmp_path / "x.tgz")
    with pytest.raises(DataError, match=r"its train labels are uint8\(2,\), expected uint8\(100,\)"):
        data.load("cifar10", path=path)


@pytest.mark.parametrize("keep", [0, 1, 10, 100, 1000, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_found(keep: float, tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    path = archive(tiny_cifar10.binary(), tmp_path / "x.tar.gz")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"x\.tar\.gz") as caught:
        data.load("cifar10", path=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path_kind", ["nothing", "empty folder", "other folder", "other archive", "text", "device"])
def test_wrong_paths_say_what_was_expected(path_kind: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong"
    if path_kind == "empty folder":
        path.mkdir()
    elif path_kind == "other folder":
        extract({"a/b/c/d/data_batch_1": b"too deep", "x.txt": b""}, path)
    elif path_kind == "other archive":
        archive({"README": b"hello"}, path)
    elif path_kind == "text":
        path.write_text("hello")
    elif path_kind == "device":
        path = Path("/dev/null")
    words = {
        "nothing": "wrong does not exist: expected a folder or an archive",
        "text": "wrong is damaged, truncated or no tar archive",
        "device": "/dev/null is neither a folder nor a file: expected a folder or an archive",
    }.get(path_kind, r"wrong holds no CIFAR-10: expected data_batch_1 to 5 and test_batch")
    with pytest.raises(DataError, match=words) as caught:
        data.load("cifar10", path=path)
    assert "\n" not in str(caught.value)


class Attack:
    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.reduced


def test_a_hostile_pickle_runs_nothing(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    target = tmp_path / "was here"
    for function, arguments in (
        (os.system, (f"touch '{target}'",)),
        (exec, (f"open({str(target)!r}, 'w')",)),
        (Path.touch, (target,)),
        (np.save, (str(target), 1)),
        (getattr, ("x", "upper")),
    ):
        for protocol in (0, 2, 4):
            hostile = pickle.dumps({"data": Attack(function, *arguments), "labels": []}, protocol)
            files = {**tiny_cifar10.python2(), "cifar-10-batches-py/data_batch_3": hostile}
            path = archive(files, tmp_path / "x.tar.gz")
            with pytest.raises(DataError, match=r"data_batch_3: it asks for [\w.]+, which no CIFAR-10 batch needs"):
                data.load("cifar10", path=path)
    assert not list(tmp_path.glob("was here*"))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((20, 3072), np.int64),
        np.zeros((20, 3072), np.int8),
        np.zeros(20, np.uint8),
        np.array([None]),
        np.zeros((20, 3071), np.uint8),
        np.zeros((5, 3072), np.uint8),
        [1, 2, 3],
        None,
    ],
)
def test_pickled_data_of_another_kind_is_refused(value: object, tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    files = tiny_cifar10.python3(4)
    files["cifar-10-batches-py/test_batch"] = pickle.dumps({"data": value, "labels": [0] * 20})
    with pytest.raises(DataError, match="damaged or altered") as caught:
        data.load("cifar10", path=archive(files, tmp_path / "x.tar.gz"))
    assert "\n" not in str(caught.value)


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


NESTED = b"](K\x01K\x02eq\x00" + b"".join(
    b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
)
HOSTILE = {
    "a memo of two gigabytes": opcodes(b"}r\xff\xff\xff\x1f"),
    "many dictionaries": opcodes(b"}" * 3_000_000),
    "labels in labels": opcodes(b"(\x8c\x06labels", NESTED, b"d"),
    "a key that is long to hash": opcodes(b"}", NESTED.replace(b"](", b"(").replace(b"e", b"t"), b"K\x01s"),
    "text that is encoded again and again": opcodes(
        b"X" + struct.pack("<I", 1_000_000) + b"x" * 1_000_000 + b"q\x00",
        b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86R" * 100,
    ),
    "labels that are a scalar": pickle.dumps({"data": np.zeros((20, 3072), np.uint8), "labels": 3}, 2),
    "labels that are no numbers": pickle.dumps({"data": np.zeros((20, 3072), np.uint8), "labels": ["x"] * 20}, 2),
    "labels that are too large": pickle.dumps({"data": np.zeros((20, 3072), np.uint8), "labels": [256] * 20}, 2),
    "labels that are true": pickle.dumps({"data": np.zeros((20, 3072), np.uint8), "labels": [True] * 20}, 2),
    "other operations": pickle.dumps({"data": {1, 2}}, 4),
    "no opcodes": b"hello",
    "an empty stack": opcodes(),
    "no mark": opcodes(b"u"),
    "lists in lists": opcodes(b"(" * 400_000),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_pickles_that_want_memory_or_time_are_refused(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PickledBatchError):
            read_batch(content)
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
    finally:
        tracemalloc.stop()


def test_label_lists_that_are_deep(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    files = {**tiny_cifar10.npm(), "package/train_lables.json": b"[" * 1_000_000}
    with pytest.raises(DataError, match=r"train_lables\.json is no list of labels"):
        data.load("cifar10", path=archive(files, tmp_path / "x.tgz"))


def test_a_pickled_array_in_column_order(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    files = tiny_cifar10.python3(4)
    batch = pickle.loads(files["cifar-10-batches-py/test_batch"])
    batch["data"] = np.asfortranarray(batch["data"])
    files["cifar-10-batches-py/test_batch"] = pickle.dumps(batch, 4)
    path = archive(files, tmp_path / "x.tar.gz")
    assert_same(data.load("cifar10", path=path), tiny_cifar10.arrays)


def test_members_too_large_for_memory_are_refused(
    tiny_cifar10: TinyCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_LARGEST_MEMBER", 1000)
    files = tiny_cifar10.binary()
    for path in (archive(files, tmp_path / "x.tar.gz"), extract(files, tmp_path / "folder")):
        with pytest.raises(DataError, match=r"data_batch_1\.bin is 61460 bytes, larger than any file of a data set"):
            data.load("cifar10", path=path)


def test_links_in_archives_are_not_followed(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"holds no CIFAR-10"):
        data.load("cifar10", path=path)


def test_sheets_of_another_size_are_refused_before_decoding(tiny_cifar10: TinyCifar10, tmp_path: Path) -> None:
    from PIL import Image

    files = tiny_cifar10.npm()
    for mode, size in (("RGB", (1024, 21)), ("L", (1024, 20)), ("RGBA", (1024, 20))):
        content = io.BytesIO()
        Image.new(mode, size).save(content, "PNG")
        path = archive({**files, "package/test_batch.png": content.getvalue()}, tmp_path / "x.tgz")
        with pytest.raises(DataError, match=rf"test_batch\.png is {mode} \({size[0]}, {size[1]}\), expected RGB"):
            data.load("cifar10", path=path)


def test_the_published_constants() -> None:
    assert cifar10.DIGESTS.train_images.startswith("9d5c2edd")
    assert cifar10.DIGESTS.test_labels.endswith("f0afca9d5")
    assert cifar10.SHAPES == ((50000, 3, 32, 32), (50000,), (10000, 3, 32, 32), (10000,))
    assert cifar10.CLASSES[3] == "cat"
    assert len(cifar10.CLASSES) == 10
