from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from twoscale import data
from twoscale.data import _fashion_mnist as fashion_mnist
from twoscale.errors import DataError

if TYPE_CHECKING:
    from tests.data.conftest import TinyFashionMnist


def put(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_compressed_or_not(tiny_fashion: TinyFashionMnist, tmp_path: Path) -> None:
    torchvision = tmp_path / "data"
    for path in (
        put(tiny_fashion.gz(), tmp_path / "gz"),
        put(tiny_fashion.files(), tmp_path / "plain"),
        put({**tiny_fashion.gz(), **tiny_fashion.files()}, torchvision / "FashionMNIST" / "raw").parents[1],
    ):
        dataset = data.load("fashion-mnist", path=path)
        assert dataset.source == str(path)
        assert np.array_equal(dataset.train.labels, tiny_fashion.arrays.train_labels)
        assert np.array_equal(dataset.test.labels, tiny_fashion.arrays.test_labels)
        for split, images in (
            (dataset.train, tiny_fashion.arrays.train_images),
            (dataset.test, tiny_fashion.arrays.test_images),
        ):
            padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
            assert np.array_equal(split.images, np.concatenate([padded] * 3, axis=1))


def test_debians_package_is_read_without_fetching(
    tiny_fashion: TinyFashionMnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="fashion-mnist is not on this machine; get it: twoscale data fetch fashion"):
        data.load("fashion-mnist", fetch=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", put(tiny_fashion.gz(), tmp_path / "debian"))
    assert data.load("fashion-mnist", fetch=False).source == str(tmp_path / "debian")
    assert not data.cache_dir().exists()
    assert data.describe()[2].state == "installed"
    assert data.fetch("fashion-mnist").state == "cached"
    assert data.load("fashion-mnist", fetch=False).source == str(tmp_path / "debian")


@pytest.mark.skipif(not fashion_mnist.installed(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debians_real_package() -> None:
    dataset = data.load("fashion-mnist", fetch=False)
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert dataset.classes[dataset.test.labels[0]] == "ankle boot"
    assert dataset.train.images.shape == (60000, 3, 32, 32)


def test_damage_is_found_and_named(tiny_fashion: TinyFashionMnist, tmp_path: Path) -> None:
    good = tiny_fashion.gz()
    images, labels = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    plain = tiny_fashion.files()
    cases = [
        ({f"{images}.gz": good[f"{images}.gz"][:-100]}, f"{images} is damaged or altered"),
        ({f"{images}.gz": b"hello"}, f"{images} is damaged or altered: Not a gzipped file"),
        ({images: plain[images][:-1]}, "it has 23519 values, expected 23520"),
        ({images: plain[images] + b"0"}, "it has 23521 values, expected 23520"),
        ({images: plain[labels]}, "its header is 00000801"),
        ({images: plain["t10k-images-idx3-ubyte"]}, "its header is .*, expected 00000803 0000001e 0000001c"),
        ({labels: b""}, f"{labels} is damaged or altered: its header is"),
        ({labels: plain[labels][:-1] + b"\x0b"}, "its test labels have SHA-256"),
    ]
    for i, (files, words) in enumerate(cases):
        with pytest.raises(DataError, match=words):
            data.load("fashion-mnist", path=put({**good, **files}, tmp_path / str(i)))


def test_missing_files_are_named(tiny_fashion: TinyFashionMnist, tmp_path: Path) -> None:
    files = tiny_fashion.gz()
    del files["t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(DataError, match=r"holds no t10k-labels-idx1-ubyte: expected the four files of Fashion-MNIST"):
        data.load("fashion-mnist", path=put(files, tmp_path / "x"))
