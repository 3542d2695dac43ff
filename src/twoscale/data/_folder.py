"""Data sets of picture files in class folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from twoscale.data._assembly import Options, Part, assemble, divided
from twoscale.data._dataset import Dataset
from twoscale.data._pictures import SUFFIXES, Preprocessing
from twoscale.errors import DataError

__all__ = ["image_folder", "read_folder"]

_NAMED = 5
"""Largest number of classes that a message names."""

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

    If all pixels together are at most 512 MiB, they are decoded once, by one thread per core, and stay in memory.
    Larger sets are streamed: worker processes decode pictures when they are used, a bounded number ahead. A damaged
    file is then reported when it is reached; with ``skip_damaged``, every file is decoded once beforehand to find
    damaged ones.

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
    options = Options(
        None if mean is None else tuple(mean), None if std is None else tuple(std), test_fraction, seed, skip_damaged,
        on_damaged,
    )  # fmt: skip
    return read_folder(Path(path), preprocessing or Preprocessing(), options)


def read_folder(path: Path, preprocessing: Preprocessing, options: Options) -> Dataset:
    """Do what :func:`image_folder` does."""
    options.normalization(preprocessing.channels)  # before the folder is searched
    classes, train, test, rule = _entries(path, options)
    parts = (_part(train, preprocessing), _part(test, preprocessing))
    return assemble(str(path.absolute()), str(path), rule, classes, parts, preprocessing.shape, preprocessing, options)


def _part(entries: list[Entry], how: Preprocessing) -> Part:
    return Part(
        [label for _, label in entries],
        lambda place: how.read_in_thread(entries[place][0]),
        lambda place: str(entries[place][0]),
        [str(path) for path, _ in entries],
    )


def _entries(path: Path, options: Options) -> tuple[tuple[str, ...], list[Entry], list[Entry], str]:
    """Return the classes, the pictures for training and testing, and how they were divided."""
    if not path.is_dir():
        raise DataError(
            f"{path} {'is no folder' if path.exists() else 'does not exist'}: expected a folder of pictures"
        )
    folders = {folder.name for folder in _folders(path)}
    held_out = next((name for name in ("val", "test") if name in folders), None)
    if "train" in folders and held_out:
        parts = [_pictures(path / "train"), _pictures(path / held_out)]
        if parts[0].keys() != parts[1].keys():
            differ = ", ".join(sorted(parts[0].keys() ^ parts[1].keys())[:_NAMED])
            raise DataError(
                f"{path}: train and {held_out} have different classes ({differ}); expected the same folders"
            )
        classes = _classes(path, parts[0])
        train, test = (_flat(part, classes) for part in parts)
        return classes, train, test, f"train and {held_out}"
    found = _pictures(path)
    classes = _classes(path, found)
    inside = [[file.relative_to(path / name).as_posix() for file in found[name]] for name in classes]
    try:
        places = divided(inside, classes, options)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    both = _flat(found, classes)
    train, test = ([both[place] for place in part] for part in places)
    return classes, train, test, options.rule


def _classes(path: Path, found: dict[str, list[Path]]) -> tuple[str, ...]:
    if len(found) < 2:
        raise DataError(f"{path} has {len(found)} folders with pictures; expected at least 2, one per class")
    return tuple(sorted(found))


def _flat(part: dict[str, list[Path]], classes: tuple[str, ...]) -> list[Entry]:
    return [(file, label) for label, name in enumerate(classes) for file in part[name]]


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
