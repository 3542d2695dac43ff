"""Data sets from sources that are read once, in order: arrays, Parquet files, the user's own iterables."""

from __future__ import annotations

import concurrent.futures
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from twoscale._environment import core_count
from twoscale._files import cache_dir
from twoscale.data import _assembly as assembly
from twoscale.data._assembly import Options, divided
from twoscale.data._dataset import Dataset, Split
from twoscale.data._pictures import Preprocessing, quiet_pillow
from twoscale.data._worker import fault
from twoscale.errors import DataError

__all__ = ["Labelled", "Pixels", "collect", "collected", "pixels_of"]

_WINDOW = 64
"""Pictures that are decoded at the same time by threads."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Labelled:
    """A picture before it is decoded."""

    name: str
    """What messages call it."""
    label: int
    read: Callable[[], NDArray[np.uint8]]
    """Return its pixels, (C, H, W); raises DataError."""


@dataclass(frozen=True)
class Pixels:
    """Decoded pictures, in memory or in a memory-mapped file."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    damaged: tuple[str, ...] = ()

    def taken(self, places: Sequence[int]) -> NDArray[np.uint8]:
        """Return the images at ``places``; of a mapped file, in another one."""
        if not isinstance(self.images, np.memmap):
            return self.images[places]
        found = assembly.new_array((len(places), *self.images.shape[1:]), mapped=True)
        for start in range(0, len(places), _WINDOW):
            found[start : start + _WINDOW] = self.images[places[start : start + _WINDOW]]
        return found


def collect(pictures: Iterable[Labelled], where: str, *, threads: bool) -> Pixels:
    """Decode pictures in order. Beyond 512 MiB they go to an unnamed file in the cache folder.

    Args:
        pictures: in order; they are taken from the iterable a few at a time.
        where: their source, for messages.
        threads: whether several threads may decode at once.

    Raises:
        DataError: no picture, pictures of different shapes, or a label that is no class.
    """
    store, labels, damaged = _Store(where), list[int](), list[str]()

    def read(picture: Labelled) -> NDArray[np.uint8] | str:
        try:
            return picture.read()
        except DataError as error:
            return fault(picture.name, error)

    with quiet_pillow(), concurrent.futures.ThreadPoolExecutor(min(8, core_count())) as pool:
        for window in _windows(pictures, _WINDOW if threads else 1):
            found = pool.map(read, window) if threads else map(read, window)
            for picture, pixels in zip(window, found, strict=True):
                if not 0 <= picture.label < 1 << 16:
                    raise DataError(f"{picture.name} has the label {picture.label}; expected 0 to 65,535")
                if isinstance(pixels, str):
                    damaged.append(pixels)
                else:
                    store.add(pixels, picture.name)
                    labels.append(picture.label)
    if not labels and not damaged:
        raise DataError(f"{where} has no pictures")
    return Pixels(store.array(), np.array(labels, np.int64), tuple(damaged))


def collected(
    name: str,
    source: str,
    parts: dict[str, Pixels],
    classes: Sequence[str] | None,
    preprocessing: Preprocessing | None,
    options: Options,
) -> Dataset:
    """Return a data set of decoded pictures.

    Args:
        name: of the data set, which finds it again.
        source: for records.
        parts: "train" and "val" or "test"; or only one, which is divided.
        classes: names; by default the numbers that occur.
        preprocessing: for records.
        options: the caller's.

    Raises:
        ConfigurationError: not one mean and one positive deviation per channel.
        DataError: damaged pictures (named and counted), none left, or labels without a class.
    """
    damaged = [line for part in parts.values() for line in part.damaged]
    total = sum(len(part.labels) for part in parts.values()) + len(damaged)
    left_out = assembly.report(damaged, total, options)
    largest = max((int(part.labels.max(initial=-1)) for part in parts.values()), default=-1)
    names = tuple(classes) if classes is not None else tuple(map(str, range(largest + 1)))
    if largest >= len(names):
        raise DataError(f"{source} has the label {largest}, but {len(names)} classes")
    held_out = next((part for part in ("val", "test") if part in parts), None)
    if "train" in parts and held_out is not None:
        train, test = parts["train"], parts[held_out]
        rule = f"train and {held_out}"
        splits = [(part.images, part.labels) for part in (train, test)]
    else:
        [whole] = parts.values()
        members = [np.flatnonzero(whole.labels == label).tolist() for label in range(len(names))]
        present = [label for label, places in enumerate(members) if places]
        order = [place for label in present for place in members[label]]
        numbers = [[str(place) for place in members[label]] for label in present]
        try:
            chosen = divided(numbers, [names[label] for label in present], options)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        rule = options.rule
        places = [sorted(order[i] for i in part) for part in chosen]
        splits = [(whole.taken(part), whole.labels[part]) for part in places]
    for half, (images, _) in zip(("train", "test"), splits, strict=True):
        if not len(images):
            raise DataError(f"{source} has no readable picture to {half} with")
    if splits[0][0].shape[1:] != splits[1][0].shape[1:]:
        raise DataError(
            f"{source}: pictures to train with are {splits[0][0].shape[1:]}, those to test with "
            f"{splits[1][0].shape[1:]}; choose a size (--size)"
        )
    mean, std = options.normalization(splits[0][0].shape[1])
    kind = np.uint8 if len(names) <= 256 else np.uint16
    train_split, test_split = (Split(images, labels.astype(kind)) for images, labels in splits)
    return Dataset(name, names, train_split, test_split, mean, std, f"{source} ({rule}{left_out})", preprocessing)


def pixels_of(image: NDArray[Any], how: Preprocessing | None) -> NDArray[np.uint8]:
    """Return an array as pixels, uint8 (C, H, W).

    - Its axes are (H, W); or (H, W, C), if the last one has at most 4 entries; or else (C, H, W).
    - Values are uint8; or uint16, which become v · 255 / 65535, rounded half up; or floating point from 0 to 1, as
      torchvision's ToTensor gives them, which become v · 255, rounded.
    - With ``how``, an array of 1, 3 or 4 channels is treated as a grey, RGB or RGBA picture file would be. One of
      another number of channels is resized and cropped, and keeps its channels.

    Raises:
        DataError: another shape or type, or floating-point values outside 0 to 1.
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise DataError(f"an array of shape {image.shape}; expected (H, W), (H, W, C) or (C, H, W)")
    if image.dtype.kind == "f":
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise DataError(
                f"floating-point values from {image.min():g} to {image.max():g}; expected uint8 pixels, or 0 to 1: "
                "leave out Normalize, twoscale normalizes"
            )
        image = np.rint(image * image.dtype.type(255))
    elif image.dtype == np.uint16:
        image = (image.astype(np.int64) * 510 + 65535) // 131070
    elif image.dtype != np.uint8:
        raise DataError(f"an array of {image.dtype}; expected uint8, uint16 or floating point from 0 to 1")
    image = image.astype(np.uint8, copy=False)
    chw = image[None] if image.ndim == 2 else image.transpose(2, 0, 1) if image.shape[2] <= 4 else image
    if how is None:
        return np.ascontiguousarray(chw)
    if len(chw) not in (1, 3, 4):
        return how.resized(chw)
    from PIL import Image

    hwc = np.ascontiguousarray(chw.transpose(1, 2, 0))
    return how.pixels(Image.fromarray(hwc[:, :, 0] if hwc.shape[2] == 1 else hwc))


class _Store:
    """Pictures of one shape, in memory and, beyond a limit, in an unnamed file."""

    def __init__(self, where: str) -> None:
        self._where, self._shape = where, tuple[int, ...]()
        self._kept: list[NDArray[np.uint8]] = []
        self._file: IO[bytes] | None = None
        self._count = 0

    def add(self, pixels: NDArray[np.uint8], name: str) -> None:
        if not self._count:
            self._shape = pixels.shape
        elif pixels.shape != self._shape:
            raise DataError(
                f"{name} has pixels of shape {pixels.shape}, the pictures before it {self._shape}; expected one shape: "
                "choose a size (--size)"
            )
        self._count += 1
        self._kept.append(pixels)
        if len(self._kept) * pixels.nbytes > assembly._IN_MEMORY // (8 if self._file else 1):
            self._spill()

    def _spill(self) -> None:
        folder = cache_dir()
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for pixels in self._kept:
                self._file.write(pixels.tobytes())
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"the pixels of {self._where} do not fit into {folder}: {error.strerror or error}; "
                "make room there, set TWOSCALE_CACHE to another folder, or choose a smaller size"
            ) from error
        self._kept.clear()

    def array(self) -> NDArray[np.uint8]:
        if self._file is None:
            return np.stack(self._kept) if self._kept else np.empty((0, *(self._shape or (1, 1, 1))), np.uint8)
        self._spill()
        with self._file as file:
            return np.memmap(file, np.uint8, "r+", shape=(self._count, *self._shape))


def _windows(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(values)
    while window := list(itertools.islice(iterator, size)):
        yield window
