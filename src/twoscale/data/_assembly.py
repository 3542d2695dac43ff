"""From labelled pictures of any source to a data set: division, decoding, damaged pictures, normalization."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._environment import core_count
from twoscale._files import cache_dir
from twoscale.data._dataset import Dataset, Split
from twoscale.data._pictures import Preprocessing, quiet_pillow
from twoscale.data._streamed import StreamedImages
from twoscale.data._worker import fault
from twoscale.errors import ConfigurationError, DataError

__all__ = ["Options", "Part", "assemble", "divided", "new_array", "report"]

_IN_MEMORY = 1 << 29
"""Data sets with at most this many bytes of pixels stay in memory."""
_NAMED = 5
"""Largest number of damaged files that a message names."""
_CLASSES = 1 << 16


@dataclass(frozen=True)
class Options:
    """What the caller chooses, whatever the source.

    Raises:
        ConfigurationError: an argument outside its range.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    test_fraction: float = 0.2
    seed: int = 0
    skip_damaged: bool = False
    on_damaged: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ConfigurationError(f"test_fraction is {self.test_fraction}; expected more than 0 and less than 1")
        if self.seed < 0:
            raise ConfigurationError(f"seed is {self.seed}; expected at least 0")

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (mean, std), one per channel.

        Raises:
            ConfigurationError: not one mean and one positive deviation per channel.
        """
        mean, std = (
            (0.5,) * channels if given is None else tuple(map(float, given)) for given in (self.mean, self.std)
        )
        if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
            raise ConfigurationError(
                f"mean {mean}, std {std}; expected {channels} numbers each, and positive deviations"
            )
        return mean, std

    @property
    def rule(self) -> str:
        """How a source without a division is divided."""
        return f"{self.test_fraction:g} of each class for testing, seed {self.seed}"


@dataclass(frozen=True)
class Part:
    """Labelled pictures that are not decoded yet, for training or for testing."""

    labels: Sequence[int]
    read: Callable[[int], NDArray[np.uint8]]
    """Return the pixels of a picture by its place, (C, H, W); raises DataError."""
    names: Callable[[int], str]
    """Return what messages call a picture."""
    paths: Sequence[str] | None = None
    """Files of the pictures; with them, worker processes can decode."""
    threads: bool = True
    """Whether several threads may read at once."""


def divided(classes: Sequence[Sequence[str]], names: Sequence[str], options: Options) -> tuple[list[int], list[int]]:
    """Divide the pictures of each class.

    In the order of the SHA-256 of "seed:class/picture", the first are for testing. Their number is ``test_fraction`` of
    the class, rounded half to even, but at least one. So where a picture goes depends only on its name, its class, and
    the number of pictures of the class.

    Args:
        classes: for each class, the names of its pictures.
        names: of the classes.
        options: fraction and seed.

    Returns:
        The places for training and for testing, counted through all classes.

    Raises:
        DataError: a class with a single picture.
    """
    train: list[int] = []
    test: list[int] = []
    first = 0
    for name, pictures in zip(names, classes, strict=True):
        order = sorted(range(len(pictures)), key=lambda i: _place(f"{options.seed}:{name}/{pictures[i]}"))
        count = max(1, round(options.test_fraction * len(pictures)))
        if count >= len(pictures):
            raise DataError(f"{name} has {len(pictures)} pictures, of which none would be left to train with")
        test += sorted(first + i for i in order[:count])
        train += sorted(first + i for i in order[count:])
        first += len(pictures)
    return train, test


def _place(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def assemble(
    name: str,
    source: str,
    rule: str,
    classes: Sequence[str],
    parts: tuple[Part, Part],
    shape: tuple[int, int, int],
    preprocessing: Preprocessing | None,
    options: Options,
) -> Dataset:
    """Return a data set of pictures.

    Args:
        name: of the data set, which finds it again.
        source: for records.
        rule: how it was divided, for records.
        classes: names.
        parts: for training and for testing.
        shape: of a picture, (C, H, W).
        preprocessing: for records, and for worker processes.
        options: the caller's.

    Raises:
        ConfigurationError: not one mean and one positive deviation per channel.
        DataError: damaged pictures (named and counted), or none left.
    """
    mean, std = options.normalization(shape[0])
    if len(classes) > _CLASSES:
        raise DataError(f"{name} has {len(classes):,} classes; expected at most {_CLASSES:,}")
    size = sum(len(part.labels) for part in parts) * int(np.prod(shape, dtype=np.int64))
    damaged: list[str] = []
    train, test = (
        _streamed(part, preprocessing, len(classes), damaged, check=options.skip_damaged)
        if size > _IN_MEMORY and part.paths is not None and preprocessing is not None
        else _decoded(part, shape, len(classes), damaged, mapped=size > _IN_MEMORY)
        for part in parts
    )
    left_out = report(damaged, sum(len(part.labels) for part in parts), options)
    for half, split in (("train", train), ("test", test)):
        if not len(split):
            raise DataError(f"{name} has no readable picture to {half} with")
    return Dataset(
        name=name,
        classes=tuple(classes),
        train=train,
        test=test,
        mean=mean,
        std=std,
        source=f"{source} ({rule}{left_out})",
        preprocessing=preprocessing,
    )


def report(damaged: Sequence[str], total: int, options: Options) -> str:
    """Pass on the damaged pictures that are left out; return what a data set's source says about them.

    Raises:
        DataError: they are not to be left out; names and counts them.
    """
    if damaged and not options.skip_damaged:
        more = [f"and {len(damaged) - _NAMED} more"] if len(damaged) > _NAMED else []
        named = "; ".join([*damaged[:_NAMED], *more])
        raise DataError(
            f"{len(damaged)} of {total:,} pictures cannot be read: {named}; replace them, or leave them out "
            "(--skip-damaged, skip_damaged=True)"
        )
    if options.on_damaged is not None:
        for line in damaged:
            options.on_damaged(line)
    return f"; {len(damaged)} damaged pictures left out" if damaged else ""


def _labels(labels: Iterable[int], classes: int) -> NDArray[Any]:
    return np.array(list(labels), np.uint8 if classes <= 256 else np.uint16)


def _streamed(part: Part, how: Preprocessing, classes: int, damaged: list[str], *, check: bool) -> Split:
    """Return pictures that are decoded when they are used; with ``check``, without those that cannot be."""
    assert part.paths is not None
    labels, images = _labels(part.labels, classes), StreamedImages(part.paths, how)
    if check and (faults := images.damaged()):
        damaged += [line for _, line in faults]
        good = np.ones(len(labels), bool)
        good[[place for place, _ in faults]] = False
        return Split(images[good], labels[good])
    return Split(images, labels)


def _decoded(part: Part, shape: tuple[int, int, int], classes: int, damaged: list[str], *, mapped: bool) -> Split:
    """Decode pictures. Damaged ones are left out and named in ``damaged``."""
    pixels = new_array((len(part.labels), *shape), mapped=mapped)
    good = np.ones(len(part.labels), bool)

    def decode(place: int) -> str | None:
        try:
            pixels[place] = part.read(place)
        except DataError as error:
            return fault(part.names(place), error)
        return None

    workers = min(8, core_count()) if part.threads else 1
    with quiet_pillow(), concurrent.futures.ThreadPoolExecutor(max_workers=workers) as threads:
        for place, message in enumerate(threads.map(decode, range(len(part.labels)))):
            if message:
                good[place] = False
                damaged.append(message)
    labels = _labels(part.labels, classes)
    if good.all():
        return Split(pixels, labels)
    count = 0
    for place in np.flatnonzero(good).tolist():  # in place: the array may be larger than the memory
        pixels[count] = pixels[place]
        count += 1
    return Split(pixels[:count], labels[good])


def new_array(shape: tuple[int, ...], *, mapped: bool) -> NDArray[np.uint8]:
    """Return an array, in memory or in an unnamed file of the cache folder, which disappears with the process."""
    if not mapped:
        return np.empty(shape, np.uint8)
    size = int(np.prod(shape, dtype=np.int64))
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
