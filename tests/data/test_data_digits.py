from __future__ import annotations

import numpy as np
import pytest
import torch

from twoscale import data
from twoscale.data import _digits as digits
from twoscale.errors import DataError


def test_the_embedded_pictures_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    expected = datasets.load_digits()
    images, labels = digits.original()
    assert images.dtype == labels.dtype == np.uint8
    assert np.array_equal(images, expected.images)
    assert np.array_equal(labels, expected.target)


def test_enlarging_is_bilinear_of_the_real_values() -> None:
    images, _ = digits.original()
    wide = torch.from_numpy(images.astype(np.float64))[:, None] * 255 / 16
    expected = torch.nn.functional.interpolate(wide, scale_factor=4, mode="bilinear", align_corners=False)
    # Every value is a whole number of 1/1024ths, so float64 holds it exactly and halves are real halves.
    rounded = torch.floor(expected + 0.5).to(torch.uint8)
    assert np.array_equal(digits.enlarge(images), rounded.expand(-1, 3, -1, -1).numpy())


def test_enlarging_keeps_flat_pictures_flat_and_uses_the_whole_range() -> None:
    for value, pixel in ((0, 0), (16, 255), (8, 128), (1, 16)):
        assert (digits.enlarge(np.full((1, 8, 8), value, np.uint8)) == pixel).all()


def test_the_split_is_fixed_stratified_and_complete() -> None:
    images, labels = digits.original()
    test = digits.test_indices(labels)
    assert len(set(test.tolist())) == 360
    assert np.bincount(labels[test]).tolist() == [36] * 10
    dataset = data.load("digits")
    assert len(dataset.train) == 1437
    assert len(dataset.test) == 360
    enlarged = digits.enlarge(images)
    assert np.array_equal(dataset.test.images, enlarged[test])
    together = np.concatenate([dataset.train.images, dataset.test.images])
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in enlarged)


def test_the_data_set() -> None:
    dataset = data.load("digits", fetch=False)
    assert dataset.name == "digits"
    assert dataset.classes == tuple("0123456789")
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == (3, 32, 32)
    assert dataset.mean == data.LAB_MEAN
    assert dataset.std == data.LAB_STD
    assert "UCI" in dataset.source


def test_an_altered_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = digits.original()
    images[100, 4, 4] ^= 1
    monkeypatch.setattr(digits, "original", lambda: (images, labels))
    with pytest.raises(DataError, match=r"embedded file digits\.npz is damaged or altered: its train images have"):
        data.load("digits")


def test_digits_are_not_read_from_a_path(tmp_path: object) -> None:
    with pytest.raises(DataError, match=r"digits is part of twoscale and is not read from .*: leave the path out"):
        data.load("digits", path=tmp_path)  # type: ignore[arg-type]


def test_source_and_licence_lie_beside_the_file() -> None:
    from importlib import resources

    text = resources.files("twoscale.data").joinpath("digits.txt").read_text()
    assert "CC BY 4.0" in text
    assert "Optical Recognition of Handwritten Digits" in text
