"""Pictures of the user's own from arrays, Parquet files and functions, each against what was put in."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from twoscale import data
from twoscale.data import Preprocessing
from twoscale.data import _array_files as array_files
from twoscale.data import _assembly as assembly
from twoscale.errors import ConfigurationError, DataError, UnknownNameError

GENERATOR = np.random.default_rng(0)
HWC = GENERATOR.integers(0, 256, (40, 9, 12, 3), np.uint8)
LABELS = (np.arange(40) % 4).astype(np.int64)
NCHW = HWC.transpose(0, 3, 1, 2)


def whole(found: data.Dataset) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return all images and labels of a data set that was divided, in an order that does not depend on the division."""
    images = np.concatenate([np.asarray(split.images) for split in (found.train, found.test)])
    labels = np.concatenate([split.labels for split in (found.train, found.test)])
    order = sorted(range(len(labels)), key=lambda i: images[i].tobytes())
    return images[order], labels[order]


def assert_holds(found: data.Dataset, images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    order = sorted(range(len(labels)), key=lambda i: np.ascontiguousarray(images[i]).tobytes())
    got, got_labels = whole(found)
    assert np.array_equal(got, images[order])
    assert np.array_equal(got_labels, labels[order])


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (HWC, NCHW),
        (np.ascontiguousarray(NCHW), NCHW),
        (HWC[..., 0], NCHW[:, :1]),
        (HWC[..., :2], NCHW[:, :2]),
        (np.tile(NCHW, (1, 3, 1, 1)), np.tile(NCHW, (1, 3, 1, 1))),
    ],
    ids=["NHWC", "NCHW", "NHW", "two channels", "nine channels"],
)
def test_arrays_of_any_layout(tmp_path: Path, stored: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=stored, labels=LABELS[:, None], classes=["a", "b", "c", "d"])
    found = data.load(f"{tmp_path}/x.npz")
    assert_holds(found, expected, LABELS)
    assert (found.classes, found.preprocessing) == (("a", "b", "c", "d"), None)
    assert np.bincount(found.test.labels).tolist() == [2, 2, 2, 2]
    assert len(found.mean) == expected.shape[1]


@pytest.mark.parametrize("names", ["{part}_images {part}_labels", "x_{part} y_{part}"])
@pytest.mark.parametrize("held_out", ["test", "val"])
def test_arrays_that_are_divided(tmp_path: Path, names: str, held_out: str) -> None:
    arrays: dict[str, Any] = {}
    for part, places in (("train", slice(0, 30)), (held_out, slice(30, 40))):
        images, labels = names.format(part=part).split()
        arrays |= {images: HWC[places], labels: LABELS[places]}
    np.savez(tmp_path / "x.npz", **arrays)
    found = data.load(str(tmp_path / "x.npz"))
    assert np.array_equal(found.train.images, NCHW[:30])
    assert np.array_equal(found.test.labels, LABELS[30:])
    assert found.source.endswith(f"(train and {held_out})")


def test_an_array_file_is_mapped(tmp_path: Path) -> None:
    for part, places in (("train", slice(0, 30)), ("test", slice(30, 40))):
        np.save(tmp_path / f"{part}_images.npy", HWC[places])
        np.save(tmp_path / f"{part}_labels.npy", LABELS[places])
    found = data.load(str(tmp_path / "train_images.npy"))
    assert isinstance(found.train.images, np.memmap)
    assert np.array_equal(found.train.images, NCHW[:30])
    assert np.array_equal(found.test.images, NCHW[30:])
    np.save(tmp_path / "images.npy", HWC)
    np.save(tmp_path / "labels.npy", LABELS)
    assert_holds(data.load(str(tmp_path / "images.npy")), NCHW, LABELS)


def test_sixteen_bits_and_sizes(tmp_path: Path) -> None:
    deep = GENERATOR.integers(0, 65536, (40, 9, 12), np.uint16)
    np.savez(tmp_path / "deep.npz", images=deep, labels=LABELS)
    right = np.floor(deep.astype(float) * 255 / 65535 + 0.5).astype(np.uint8)[:, None]
    assert_holds(data.load(str(tmp_path / "deep.npz")), right, LABELS)
    np.savez(tmp_path / "x.npz", images=HWC, labels=LABELS)
    how = Preprocessing(6, interpolation="bicubic")
    resized = [Image.fromarray(image).resize((8, 6), Image.Resampling.BICUBIC).crop((1, 0, 7, 6)) for image in HWC]
    found = data.load(str(tmp_path / "x.npz"), preprocessing=how)
    assert found.preprocessing == how
    assert_holds(found, np.stack([np.asarray(image).transpose(2, 0, 1) for image in resized]), LABELS)
    np.savez(tmp_path / "two.npz", images=HWC[..., :2], labels=LABELS)
    two = data.load(str(tmp_path / "two.npz"), preprocessing=how)
    assert_holds(two, np.stack([np.asarray(image).transpose(2, 0, 1)[:2] for image in resized]), LABELS)


def test_arrays_that_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "object.npz", images=np.array([{}, {}], object), labels=LABELS[:2])
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "images.npy", HWC)
    np.save(tmp_path / "other.npy", HWC)
    for name, arrays, message in (
        ("none", {}, "expected the arrays"),
        ("named", {"pixels": HWC, "target": LABELS}, "has the arrays pixels, target; expected the arrays"),
        ("float", {"images": HWC / 255, "labels": LABELS}, "images are float64"),
        ("few", {"images": HWC, "labels": LABELS[:-1]}, "expected one integer per image"),
        ("real", {"images": HWC, "labels": LABELS / 2}, "expected one integer per image"),
        ("negative", {"images": HWC, "labels": LABELS - 1}, "a label is -1; expected 0 to 65,535"),
        ("classes", {"images": HWC, "labels": LABELS, "classes": ["a"]}, "has the label 3, but 1 classes"),
        ("single", {"images": HWC[:5], "labels": LABELS[:5]}, "1 has 1 pictures, of which none would be left"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(DataError, match=message):
            data.load(str(tmp_path / f"{name}.npz"))
    for name, message in (
        ("object.npz", r"is no readable \.npz file: Object arrays cannot be loaded"),
        ("text.npz", r"is no readable \.npz file"),
        ("missing.npz", "does not exist"),
        ("images.npy", r"has its labels in labels\.npy, which is not there"),
        ("other.npy", r"is called images\.npy"),
    ):
        with pytest.raises(DataError, match=message):
            data.load(str(tmp_path / name))
    np.savez(tmp_path / "good.npz", images=HWC, labels=LABELS)
    monkeypatch.setattr(array_files, "memory_bytes", lambda: 2000)
    with pytest.raises(DataError, match=r"good\.npz needs 0\.0 GB of memory; expected at most"):
        data.load(str(tmp_path / "good.npz"))


def png(pixels: NDArray[np.uint8]) -> bytes:
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def parquet(path: Path, places: range, *, names: bool = True, struct: bool = True, damaged: int = -1) -> None:
    """Write pictures as Hugging Face's datasets does."""
    contents = [b"no picture" if i == damaged else png(HWC[i]) for i in places]
    images = [{"bytes": content, "path": None} for content in contents] if struct else contents
    table = pa.table({"image": images, "label": LABELS[places.start : places.stop]})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}}
        described = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": described})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)


HOW = Preprocessing((9, 12), resize="none")


def test_parquet(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", range(40), struct=False, names=False)
    found = data.load(str(tmp_path / "x.parquet"), preprocessing=HOW)
    assert_holds(found, NCHW, LABELS)
    assert (found.classes, found.preprocessing) == (("0", "1", "2", "3"), HOW)
    hub = tmp_path / "hub" / "data"
    parquet(hub / "train-00000-of-00002.parquet", range(20))
    parquet(hub / "train-00001-of-00002.parquet", range(20, 30))
    parquet(hub / "validation-00000-of-00001.parquet", range(30, 40))
    found = data.load(str(tmp_path / "hub"), preprocessing=HOW)
    assert np.array_equal(found.train.images, NCHW[:30])
    assert np.array_equal(found.test.images, NCHW[30:])
    assert (found.classes, found.source) == (("a", "b", "c", "d"), f"{tmp_path / 'hub'} (train and val)")


def test_damaged_pictures_in_parquet(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", range(40), damaged=5)
    with pytest.raises(DataError, match=r"1 of 40 pictures cannot be read: .*x\.parquet, row 5: .* is no readable"):
        data.load(str(tmp_path / "x.parquet"), preprocessing=HOW)
    lines: list[str] = []
    found = data.load(str(tmp_path / "x.parquet"), preprocessing=HOW, skip_damaged=True, on_damaged=lines.append)
    assert (len(lines), len(found.train) + len(found.test)) == (1, 39)


def test_parquet_files_that_hold_no_pictures(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "text.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no table PAR1")
    parquet(tmp_path / "cut.parquet", range(40))
    content = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:200] + content[300:])
    for name, message in (
        ("text", "has the columns text, label; expected pictures as bytes"),
        ("damaged", "is no readable Parquet file"),
        ("cut", "is no readable Parquet file|is damaged after row|cannot be read"),
        ("missing", "does not exist: expected a Parquet file"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            data.load(str(tmp_path / f"{name}.parquet"), preprocessing=HOW)
        assert "\n" not in str(caught.value)


CODE = """
from pathlib import Path
import numpy as np
from PIL import Image

HWC = np.load(Path(__file__).parent / "hwc.npy")

class Dataset:
    classes = ["a", "b", "c", "d"]
    def __init__(self, places): self.places = places
    def __len__(self): return len(self.places)
    def __getitem__(self, i): return self.give(self.places[i]), self.places[i] % 4
    def give(self, i): return HWC[i]

class Tensors(Dataset):
    def give(self, i):
        import torch
        return torch.from_numpy(HWC[i]).permute(2, 0, 1).float() / 255

class Pictures(Dataset):
    def give(self, i): return Image.fromarray(HWC[i])

def arrays(): return Dataset(range(40))
def tensors(): return Tensors(range(40))
def pictures(): return Pictures(range(40))
def generator(): yield from ({"image": HWC[i], "label": np.int64(i % 4)} for i in range(40))
def both(): return {"train": Dataset(range(30)), "validation": Dataset(range(30, 40))}
def parts(split): return Dataset(range(30)) if split == "train" else Dataset(range(30, 40))
def fails(): raise KeyError("no")
def late():
    yield HWC[0], 0
    raise OSError("gone")
def normalized(): return [(HWC[0] / 255.0 * 2 - 1, 0)] * 4
def sizes(): return [(HWC[0], 0), (HWC[0, 1:], 0)]
def labels(): return [(HWC[0], "cat")]
def one(): return [(HWC[0],)]
def nothing(): return 3
number = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    np.save(tmp_path / "hwc.npy", HWC)
    (tmp_path / "mydata.py").write_text(CODE)
    yield str(tmp_path / "mydata.py")
    sys.modules.pop("twoscale_user_mydata", None)


@pytest.mark.parametrize("name", ["arrays", "tensors", "generator"])
def test_functions(code: str, name: str) -> None:
    found = data.load(f"{code}:{name}")
    assert_holds(found, NCHW, LABELS)
    assert found.classes == (("0", "1", "2", "3") if name == "generator" else ("a", "b", "c", "d"))
    assert (found.name, found.preprocessing) == (f"{code}:{name}", None)


def test_functions_that_divide_or_return_pictures(code: str) -> None:
    for name in ("both", "parts"):
        found = data.load(f"{code}:{name}")
        assert np.array_equal(found.train.images, NCHW[:30])
        assert np.array_equal(found.test.images, NCHW[30:])
    found = data.load(f"{code}:pictures", preprocessing=HOW)
    assert_holds(found, NCHW, LABELS)
    assert data.load(f"{code}:pictures").preprocessing == Preprocessing()


def test_pixels_beyond_the_memory_go_to_a_file(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "_IN_MEMORY", 2000)
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path / "cache"))
    found = data.load(f"{code}:generator")
    assert isinstance(found.train.images, np.memmap)
    assert_holds(found, NCHW, LABELS)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("fails", ConfigurationError, r"mydata\.py:fails failed: KeyError: 'no' \(mydata\.py, line \d+\)"),
        ("late", ConfigurationError, r"mydata\.py:late failed: OSError: gone"),
        ("normalized", DataError, "floating-point values from -1 to 1; expected uint8 pixels, or 0 to 1: leave out"),
        ("sizes", DataError, r"has pixels of shape \(3, 8, 12\).*choose a size"),
        ("labels", DataError, "has the label 'cat'; expected an integer"),
        ("one", DataError, "is tuple; expected"),
        ("nothing", DataError, "returns int; expected a Dataset or pairs"),
        ("number", ConfigurationError, "is int; expected a function"),
        ("missing", UnknownNameError, "missing"),
    ],
)
def test_functions_that_give_no_pictures(code: str, name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        data.load(f"{code}:{name}")
    assert "\n" not in str(caught.value)


def test_an_archive_whose_array_claims_too_much(tmp_path: Path) -> None:
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 9, 9, 3), }".ljust(117)
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", header + b"\n")
        archive.writestr("labels.npy", header + b"\n")
    with pytest.raises(DataError, match=r"is no readable \.npz file"):
        data.load(str(tmp_path / "x.npz"))
