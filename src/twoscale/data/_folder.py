"""Data sets of picture files in class folders."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._environment import core_count
from twoscale._files import cache_dir
from twoscale.data._dataset import Dataset, Split
from twoscale.data._pictures import SUFFIXES, Preprocessing
from twoscale.errors import ConfigurationError, DataError

__all__ = ["image_folder"]

_IN_MEMORY = 1 << 30
"""Splits with at most this many bytes of pixels stay in memory. Larger ones are in a memory-mapped file."""
_NAMED = 5
"""Largest number of damaged files that a message names."""

Entry = tuple[Path, int]
"""A picture and its class."""


def image_folder(
    path: Path | str,
    preprocessing: Preprocessing | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    skip_damaged: bool = False,
    on_damaged: Callable[[str], None] | None = None,
) -> Dataset:
    """Read picture files whose folders are their classes.

    ``path`` holds ``train/`` and ``val/`` or ``test/``, each with a folder per class; or the class folders themselves.
    In that case each class is divided: its files in the order of the SHA-256 of "seed:class/file", the first
    ``test_fraction`` of them, rounded half to even but at least one, are for testing. So the split of a file depends
    only on its name, its class, and the number of files of the class.

    Pixels are decoded once, by one thread per core. Up to 1 GiB per split stay in memory. Larger splits are written to
    an unnamed file in the cache folder, which disappears with the process, and are memory-mapped.

    Args:
        path: the folder.
        preprocessing: from file to pixels. Default: ``Preprocessing()``.
        mean: per channel, of pixels / 255. Default: 0.5.
        std: per channel, of pixels / 255, positive. Default: 0.5.
        test_fraction: of each class, if the folder has no division; more than 0 and less than 1.
        seed: of that division, at least 0.
        skip_damaged: leave out files that cannot be decoded.
        on_damaged: is called with a line for each file that is left out.

    Returns:
        The data set. Its classes are the names of the folders, sorted.

    Raises:
        ConfigurationError: an argument outside its range.
        DataError: no such folder, fewer than two classes, a class without pictures, classes that differ between train
            and test, or damaged files (named and counted).
    """
    path, preprocessing = Path(path), preprocessing or Preprocessing()
    if not 0 < test_fraction < 1:
        raise ConfigurationError(f"test_fraction is {test_fraction}; expected more than 0 and less than 1")
    if seed < 0:
        raise ConfigurationError(f"seed is {seed}; expected at least 0")
    halves = (0.5,) * preprocessing.channels
    mean, std = (halves if given is None else tuple(map(float, given)) for given in (mean, std))
    if len(mean) != len(halves) or len(std) != len(halves) or not all(value > 0 for value in std):
        raise ConfigurationError(
            f"mean {mean}, std {std}; expected {len(halves)} numbers each, and positive deviations"
        )
    classes, train, test, rule = _entries(path, test_fraction, seed)
    damaged: list[str] = []
    train_split, test_split = (_read(part, preprocessing, len(classes), damaged) for part in (train, test))
    if damaged and not skip_damaged:
        more = [f"and {len(damaged) - _NAMED} more"] if len(damaged) > _NAMED else []
        named = "; ".join([*damaged[:_NAMED], *more])
        raise DataError(
            f"{len(damaged)} of {len(train) + len(test):,} pictures cannot be read: {named}; replace them, or "
            "leave them out (skip_damaged)"
        )
    if on_damaged is not None:
        for line in damaged:
            on_damaged(line)
    for name, split in (("train", train_split), ("test", test_split)):
        if not len(split):
            raise DataError(f"{path} has no readable picture to {name} with")
    left_out = f"; {len(damaged)} damaged pictures left out" if damaged else ""
    return Dataset(
        name=str(path.absolute()),
        classes=classes,
        train=train_split,
        test=test_split,
        mean=mean,
        std=std,
        source=f"{path} ({rule}{left_out})",
        preprocessing=preprocessing,
    )


def _entries(path: Path, fraction: float, seed: int) -> tuple[tuple[str, ...], list[Entry], list[Entry], str]:
    """Return the classes, the pictures for training and testing, and how they were divided."""
    if not path.is_dir():
        raise DataError(
            f"{path} {'is no folder' if path.exists() else 'does not exist'}: expected a folder of pictures"
        )
    folders = {folder.name for folder in _folders(path)}
    held_out = next((name for name in ("val", "test") if name in folders), None)
    if "train" in folders and held_out:
        train, test = _pictures(path / "train"), _pictures(path / held_out)
        if train.keys() != test.keys():
            differ = ", ".join(sorted(train.keys() ^ test.keys())[:_NAMED])
            raise DataError(
                f"{path}: train and {held_out} have different classes ({differ}); expected the same folders"
            )
        rule = f"train and {held_out}"
    else:
        both = _pictures(path)
        train, test = {}, {}
        for name, files in both.items():
            ordered = sorted(
                files, key=lambda file: _place(f"{seed}:{name}/{file.relative_to(path / name).as_posix()}")
            )
            count = max(1, round(fraction * len(files)))
            if count >= len(files):
                raise DataError(f"{path / name} has {len(files)} pictures, of which none would be left to train with")
            train[name], test[name] = sorted(ordered[count:]), sorted(ordered[:count])
        rule = f"{fraction:g} of each class for testing, seed {seed}"
    classes = tuple(sorted(train))
    if len(classes) < 2:
        raise DataError(f"{path} has {len(classes)} folders with pictures; expected at least 2, one per class")

    def flat(part: dict[str, list[Path]]) -> list[Entry]:
        return [(file, label) for label, name in enumerate(classes) for file in part[name]]

    return classes, flat(train), flat(test), rule


def _place(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(path: Path) -> dict[str, list[Path]]:
    """Return the pictures of each class folder, in its subfolders too, sorted."""
    found = {}
    for folder in _folders(path):
        files = [
            Path(parent) / name
            for parent, _, names in os.walk(folder)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
        if not files:
            raise DataError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}); expected a folder per class")
        found[folder.name] = sorted(files)
    return found


def _read(entries: Sequence[Entry], how: Preprocessing, classes: int, damaged: list[str]) -> Split:
    """Decode pictures. Damaged ones are left out and named in ``damaged``."""
    pixels = _array((len(entries), *how.shape))
    good = np.ones(len(entries), bool)

    def decode(place: int) -> str | None:
        try:
            pixels[place] = how.read(entries[place][0])
        except DataError as error:
            return str(error) if str(entries[place][0]) in str(error) else f"{entries[place][0]}: {error}"
        return None

    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, core_count())) as threads:
        for place, fault in enumerate(threads.map(decode, range(len(entries)))):
            if fault:
                good[place] = False
                damaged.append(fault)
    labels: NDArray[Any] = np.array([label for _, label in entries], np.uint8 if classes <= 256 else np.uint16)
    if good.all():
        return Split(pixels, labels)
    count = 0
    for place in np.flatnonzero(good).tolist():  # in place: the array may be larger than the memory
        pixels[count] = pixels[place]
        count += 1
    return Split(pixels[:count], labels[good])


def _array(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = int(np.prod(shape, dtype=np.int64))
    if size <= _IN_MEMORY:
        return np.empty(shape, np.uint8)
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"{size / 1e9:.1f} GB of pixels do not fit into {folder}: {error.strerror or error}; "
            "make room there, set TWOSCALE_CACHE to another folder, or choose a smaller size"
        ) from error
