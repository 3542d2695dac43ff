from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from twoscale import data
from twoscale.data import Dataset, Split
from twoscale.errors import ConfigurationError, DataError


def split(n: int = 5, channels: int = 3) -> Split:
    images = np.arange(n * channels * 4, dtype=np.uint8).reshape(n, channels, 2, 2)
    return Split(images, np.arange(n, dtype=np.uint8))


def test_head_takes_the_first_without_copying() -> None:
    whole = split()
    part = whole.head(2)
    assert len(whole) == 5
    assert len(part) == 2
    assert part.labels.tolist() == [0, 1]
    assert np.shares_memory(part.images, whole.images)
    assert len(whole.head(0)) == 0
    assert len(whole.head(99)) == 5
    with pytest.raises(ConfigurationError, match=r"head\(-1\): expected a number of images of at least 0"):
        whole.head(-1)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), np.zeros(2, np.uint8), r"images float32\(2, 3, 4, 4\)"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.uint8), r"expected uint8 \(N, C, H, W\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64), r"labels int64\(2,\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 1), np.uint8), r"labels uint8\(2, 1\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(3, np.uint8), "2 images with 3 labels"),
    ],
)
def test_split_refuses_wrong_arrays(images: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Split(images, labels)


def test_dataset_refuses_a_label_without_class() -> None:
    with pytest.raises(DataError, match=r"toy: train has label 4, expected 0\.\.3"):
        Dataset("toy", tuple("abcd"), split(), split(), (0.5,) * 3, (0.5,) * 3, "here")


def test_dataset_refuses_means_that_do_not_fit_the_channels() -> None:
    with pytest.raises(DataError, match="toy: train has 1 channels, but there are 3 means"):
        Dataset("toy", tuple("abcde"), split(channels=1), split(channels=1), (0.5,) * 3, (0.5,) * 3, "here")


def test_repr_does_not_print_pixels() -> None:
    dataset = Dataset("toy", tuple("abcde"), split(), split(3), (0.5,) * 3, (0.5,) * 3, "here")
    assert repr(dataset) == (
        "Dataset('toy', train=Split(5 images of 3 x 2 x 2), test=Split(3 images of 3 x 2 x 2), source='here')"
    )


def test_all_is_sorted_and_true() -> None:
    # Constants, classes, functions: the order of ruff's RUF022.
    assert set(data.__all__) <= set(dir(data))
    assert len(set(data.__all__)) == len(data.__all__)


def test_torch_is_not_needed() -> None:
    code = """
import sys
sys.modules["torch"] = None  # any import of it raises
import numpy as np
from twoscale import data
digits = data.load("digits")
order = data.epoch_order(len(digits.train), seed=0, epoch=0)
for images, labels in data.batches(digits.train.images, digits.train.labels, 500, order):
    x = data.normalize(images, digits.mean, digits.std)
data.describe()
print(x.dtype, x.min(), x.max())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout == "float32 -1.0 1.0\n"
