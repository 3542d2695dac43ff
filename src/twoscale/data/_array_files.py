"""Pictures as arrays in .npz and .npy files."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._environment import memory_bytes
from twoscale.data._assembly import Options
from twoscale.data._collected import Labelled, Pixels, collect, collected, pixels_of
from twoscale.data._dataset import Dataset
from twoscale.data._pictures import Preprocessing
from twoscale.errors import DataError

__all__ = ["read_arrays"]

_IMAGES = ("images", "image", "x")
_LABELS = ("labels", "label", "y")
_PARTS = ("train", "val", "test")
_EXPECTED = (
    'expected the arrays "images" and "labels", or "train_images", "train_labels", "test_images" and "test_labels" '
    '("val_" for "test_", "x" and "y" for "images" and "labels", and "x_train" for "train_x" are understood)'
)


def read_arrays(path: Path, preprocessing: Preprocessing | None, options: Options) -> Dataset:
    """Read a .npz file, or a .npy file of images with the labels in a file beside it.

    The arrays are named as the message says that any other name gets. ``images.npy`` belongs to ``labels.npy``, and
    ``train_images.npy`` to ``train_labels.npy``. Labels are integers from 0; an array "classes" of text names the
    classes. Images are uint8 or uint16, (N, H, W), (N, H, W, C) with C of at most 4, or (N, C, H, W). They stay as they
    are unless ``preprocessing`` is given. A .npy file is memory-mapped. Nothing is unpickled.

    Raises:
        DataError: no such file, another content, or a .npz file that needs more than half of the memory.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: expected a .npz or .npy file of pictures")
    arrays = _mapped(path) if path.suffix == ".npy" else _unpacked(path)
    classes = arrays.pop("classes", None)
    names = None
    if classes is not None:
        if classes.dtype.kind != "U" or classes.ndim != 1:
            raise DataError(f'{path}: "classes" is {classes.dtype}{classes.shape}; expected one text per class')
        names = tuple(map(str, classes))
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        if place := _place(name):
            found.setdefault(place[0], {})[place[1]] = array
    parts = {part: both for part, both in found.items() if both.keys() == {"images", "labels"}}
    if "train" in parts and parts.keys() & {"val", "test"}:
        parts.pop("", None)
    elif "" in parts:
        parts = {"": parts[""]}
    elif "train" in parts:
        parts = {"train": parts["train"]}
    else:
        raise DataError(f"{path} has only the arrays {', '.join(sorted(arrays))}; {_EXPECTED}")
    read = {part: _pixels(path, part, both, preprocessing) for part, both in parts.items()}
    return collected(str(path.absolute()), str(path), read, names, preprocessing, options)


def _place(name: str) -> tuple[str, str] | None:
    """Return the part and the kind of an array by its name; None if it has neither."""
    words = set(name.lower().split("_"))
    for kind, known in (("images", _IMAGES), ("labels", _LABELS)):
        for word in known:
            for part in (*_PARTS, ""):
                if words == ({part, word} if part else {word}):
                    return part, kind
    return None


def _unpacked(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        limit = memory_bytes()
        if limit is not None and size > limit // 2:
            raise DataError(
                f"{path} needs {size / 1e9:.1f} GB of memory; expected at most {limit / 2e9:.1f}: save its images with "
                "numpy.save, since a .npy file is not read into memory"
            )
        with np.load(path, allow_pickle=False) as file:
            if not any(map(_place, file.files)):
                raise DataError(f"{path} has the arrays {', '.join(file.files) or 'none'}; {_EXPECTED}")
            return {name: file[name] for name in file.files if _place(name) or name == "classes"}
    except DataError:
        raise
    except Exception as error:  # NumPy and zipfile raise almost anything for damaged files
        raise DataError(f"{path} is no readable .npz file: {_line(error)}") from error


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    beside = None
    for word, other in zip(_IMAGES, _LABELS, strict=True):
        if (place := _place(path.stem)) and place[1] == "images" and word in path.stem.lower().split("_"):
            words = [other if part.lower() == word else part for part in path.stem.split("_")]
            beside = path.with_name("_".join(words) + ".npy")
    if beside is None:
        raise DataError(f"{path}: a .npy file of pictures is called images.npy or train_images.npy, or x for images")
    if not beside.is_file():
        raise DataError(f"{path} has its labels in {beside.name}, which is not there")
    place = _place(path.stem)
    assert place is not None
    found = {path.stem: path, beside.stem: beside}
    if place[0] == "train":
        for part in ("val", "test"):
            for file in (path, beside):
                other_file = file.with_name(file.name.replace("train", part))
                if other_file.is_file():
                    found[other_file.stem] = other_file
    try:
        # Copies on write: torch warns about read-only arrays.
        return {name: np.load(file, mmap_mode="c", allow_pickle=False) for name, file in found.items()}
    except Exception as error:
        raise DataError(f"{path} is no readable .npy file: {_line(error)}") from error


def _pixels(path: Path, part: str, arrays: dict[str, NDArray[Any]], how: Preprocessing | None) -> Pixels:
    images, labels = arrays["images"], arrays["labels"]
    what = f"{part} images" if part else "images"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or len(labels) != len(images):
        raise DataError(
            f"{path}: {images.shape} {what} with labels {labels.dtype}{labels.shape}; expected one integer per image"
        )
    if images.ndim not in (3, 4) or images.dtype not in (np.uint8, np.uint16) or 0 in images.shape:
        raise DataError(
            f"{path}: {what} are {images.dtype}{images.shape}; expected uint8 or uint16, (N, H, W), (N, H, W, C) or "
            "(N, C, H, W)"
        )
    wrong = (labels.astype(np.int64) < 0) | (labels.astype(np.int64) >= 1 << 16)
    if wrong.any():
        raise DataError(f"{path}: a label is {labels[wrong][0]}; expected 0 to 65,535")
    if how is None and images.dtype == np.uint8:
        channels_last = images.ndim == 4 and images.shape[3] <= 4
        nchw = images.transpose(0, 3, 1, 2) if channels_last else images[:, None] if images.ndim == 3 else images
        return Pixels(nchw, labels.astype(np.int64))

    def pictures() -> Iterator[Labelled]:
        for number, label in enumerate(labels.tolist()):
            yield Labelled(f"image {number}", label, functools.partial(pixels_of, np.asarray(images[number]), how))

    return collect(pictures(), str(path), threads=True)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
