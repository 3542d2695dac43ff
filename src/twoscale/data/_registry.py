"""The named data sets: listing, loading and fetching them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twoscale._extras import requires_extras
from twoscale._files import cache_dir
from twoscale.data import _cache as cache
from twoscale.data import _cifar10 as cifar10
from twoscale.data import _digits as digits
from twoscale.data import _fashion_mnist as fashion_mnist
from twoscale.data._array_files import read_arrays
from twoscale.data._arrays import Arrays, Digests
from twoscale.data._assembly import Options
from twoscale.data._dataset import LAB_MEAN, LAB_STD, Dataset, Split
from twoscale.data._folder import read_folder
from twoscale.data._function import is_function, read_function
from twoscale.data._parquet import is_parquet, read_parquet
from twoscale.data._pictures import Preprocessing
from twoscale.data._progress import FetchProgress
from twoscale.errors import DataError, UnknownNameError

__all__ = ["Description", "describe", "fetch", "load", "names"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """One line of ``twoscale data list``."""

    name: str
    about: str
    train_samples: int
    test_samples: int
    classes: int
    shape: tuple[int, int, int]
    """(C, H, W) of an image as loaded."""
    state: Literal["embedded", "cached", "installed", "not fetched"]
    """"installed": by a system package, and readable without fetching."""
    size_bytes: int
    """Size of the files on disk, or of the download if not fetched."""
    where: str
    """The file or folder on disk, or where a fetch would get it."""


@dataclass(frozen=True)
class _Fetchable:
    """A data set that is not part of the package."""

    about: str
    classes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    digests: Digests
    download_bytes: int
    home: str
    read_path: Callable[[Path], tuple[Arrays, str]]
    fetch: Callable[[Path, FetchProgress], tuple[Arrays, str]]
    installed: Callable[[], Path | None]
    to_input: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    """From images as published to (N, 3, 32, 32)."""


def _nowhere() -> None:
    """For data sets without a system package."""


def _unchanged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images


_FILES = (".npz", ".npy", ".parquet")
_DIGITS_ABOUT = "handwritten digits, 8x8"

_FETCHABLE = {
    "cifar10": _Fetchable(
        about="colour photos, 32x32",
        classes=cifar10.CLASSES,
        shapes=cifar10.SHAPES,
        digests=cifar10.DIGESTS,
        download_bytes=170_052_171,
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        read_path=cifar10.read_path,
        fetch=cifar10.fetch,
        installed=_nowhere,
        to_input=_unchanged,
    ),
    "fashion-mnist": _Fetchable(
        about="grey clothes, 28x28",
        classes=fashion_mnist.CLASSES,
        shapes=fashion_mnist.SHAPES,
        digests=fashion_mnist.DIGESTS,
        download_bytes=30_878_645,
        home="https://github.com/zalandoresearch/fashion-mnist",
        read_path=fashion_mnist.read_path,
        fetch=fashion_mnist.fetch,
        installed=fashion_mnist.installed,
        to_input=fashion_mnist.enlarge,
    ),
}


def names() -> tuple[str, ...]:
    """Return the names of all data sets, sorted."""
    return tuple(sorted(("digits", *_FETCHABLE)))


def class_names(name: str) -> tuple[str, ...] | None:
    """Return the names of a data set's classes, which need not be on this machine; None if it is not a named one."""
    if name == "digits":
        return digits.CLASSES
    return _FETCHABLE[name].classes if name in _FETCHABLE else None


def _find(name: str) -> _Fetchable:
    if name not in _FETCHABLE:
        raise UnknownNameError("data set", name, names())
    return _FETCHABLE[name]


@requires_extras("twoscale.data.load")
def load(
    name: str,
    *,
    path: Path | None = None,
    fetch: bool = True,
    preprocessing: Preprocessing | None = None,
    skip_damaged: bool = False,
    on_damaged: Callable[[str], None] | None = None,
) -> Dataset:
    """Load a named data set into memory and check its pixels against known hashes; or load pictures of your own.

    Args:
        name: one of ``names()``; or pictures of your own: a folder (:func:`twoscale.data.image_folder`), a .npz, .npy
            or .parquet file, a folder of Parquet files, or FILE.py:FUNCTION, whose code then runs.
        path: read it from this folder or archive, without the cache. None: from the package, the cache, a system
        package, or else by ``fetch``.
        fetch: whether it may be downloaded if it is not on this machine.
        preprocessing: of pictures. Default: ``Preprocessing()``; arrays stay as they are.
        skip_damaged: leave out pictures that cannot be decoded.
        on_damaged: is called with a line for each picture that is left out.

    Returns:
        The data set; images of a named one are (N, 3, 32, 32).

    Raises:
        UnknownNameError: there is no such data set.
        DataError: it is not on this machine and may not or cannot be fetched, or it is damaged.
    """
    if name not in names() and _is_place(name):
        options = Options(skip_damaged=skip_damaged, on_damaged=on_damaged)
        return _own(name, preprocessing, options)
    if name == "digits":
        _refuse_path(path)
        arrays, source = digits.embedded()
        return _dataset(name, digits.CLASSES, arrays, source)
    kind = _find(name)
    arrays, source = kind.read_path(path) if path is not None else _local_or_fetched(name, kind, may_fetch=fetch)
    prepared = arrays._replace(
        train_images=kind.to_input(arrays.train_images), test_images=kind.to_input(arrays.test_images)
    )
    return _dataset(name, kind.classes, prepared, source)


def _is_place(name: str) -> bool:
    """Return whether a name is the place of pictures: FILE.py:FUNCTION, a path, a file of arrays or Parquet."""
    suffix = Path(name).suffix
    return is_function(name) or "/" in name or os.sep in name or suffix in _FILES or Path(name).is_dir()


def _own(name: str, preprocessing: Preprocessing | None, options: Options) -> Dataset:
    if is_function(name):
        return read_function(name, preprocessing, options)
    path = Path(name).expanduser()
    if path.suffix in (".npz", ".npy"):
        return read_arrays(path, preprocessing, options)
    if is_parquet(path):
        return read_parquet(path, preprocessing or Preprocessing(), options)
    return read_folder(path, preprocessing or Preprocessing(), options)


def _refuse_path(path: Path | None) -> None:
    if path is not None:
        raise DataError(f"digits is part of twoscale and is not read from {path}: leave the path out")


def _dataset(name: str, classes: tuple[str, ...], arrays: Arrays, source: str) -> Dataset:
    return Dataset(
        name=name,
        classes=classes,
        train=Split(arrays.train_images, arrays.train_labels),
        test=Split(arrays.test_images, arrays.test_labels),
        mean=LAB_MEAN,
        std=LAB_STD,
        source=source,
    )


def _local_or_fetched(name: str, kind: _Fetchable, *, may_fetch: bool) -> tuple[Arrays, str]:
    try:
        cached = cache.read(name, kind.shapes, kind.digests)
    except DataError as error:
        if not may_fetch:
            raise DataError(f"{error}; replace it: twoscale data fetch {name}") from error
    else:
        if cached:
            return cached
        package = kind.installed()
        if package:
            return kind.read_path(package)
    if may_fetch:
        return _fetched(name, kind, FetchProgress())
    raise DataError(f"{name} is not on this machine; get it: twoscale data fetch {name}")


def _fetched(name: str, kind: _Fetchable, reporter: FetchProgress) -> tuple[Arrays, str]:
    """Return the cached arrays, or fetch them into the cache."""
    with cache.exclusive(name):
        try:
            cached = cache.read(name, kind.shapes, kind.digests)  # another process may just have fetched it
            if cached:
                return cached
        except DataError as error:
            _log.warning("%s; fetching it again", error)
        try:
            with cache.scratch_folder(name) as folder:
                arrays, source = kind.fetch(folder, reporter)
        except OSError as error:
            raise DataError(
                f"{name} cannot be fetched into {cache_dir()}: {error.strerror or error}; "
                "make room there or set TWOSCALE_CACHE to another folder"
            ) from error
        cache.write(name, arrays, source)
        return arrays, source


@requires_extras("twoscale.data.fetch")
def fetch(name: str, *, path: Path | None = None, progress: bool = True) -> Description:
    """Put a data set into the cache, unless a good copy is there.

    Args:
        name: one of ``names()``.
        path: take it from this folder or archive and replace what is cached.
        progress: draw the progress on standard error, if that is a terminal.

    Returns:
        Its new description.

    Raises:
        UnknownNameError: there is no such data set.
        TwoscaleError: it cannot be fetched, is not the published one, or the cache cannot be written.
    """
    if name == "digits":
        _refuse_path(path)
        return _describe_digits()
    kind = _find(name)
    reporter = FetchProgress(enabled=progress)
    if path is None:
        _fetched(name, kind, reporter)
    else:
        with reporter.working(f"reading {path}"):
            arrays, source = kind.read_path(path)
        with cache.exclusive(name):
            cache.write(name, arrays, source)
    return _describe(name, kind)


def describe() -> tuple[Description, ...]:
    """Describe every data set, sorted by name. Only checks which files exist, not their content."""
    return tuple(_describe_digits() if name == "digits" else _describe(name, _FETCHABLE[name]) for name in names())


def _describe_digits() -> Description:
    train, _, test, _ = digits.SHAPES
    return Description(
        name="digits",
        about=_DIGITS_ABOUT,
        train_samples=train[0],
        test_samples=test[0],
        classes=len(digits.CLASSES),
        shape=(3, 32, 32),
        state="embedded",
        size_bytes=digits.stored_bytes(),
        where="part of twoscale",
    )


def _describe(name: str, kind: _Fetchable) -> Description:
    train, _, test, _ = kind.shapes
    file, package = cache.cached_file(name), kind.installed()
    state: Literal["cached", "installed", "not fetched"]
    if file.is_file():
        state, size, where = "cached", file.stat().st_size, str(file)
    elif package:
        state, size, where = "installed", sum(f.stat().st_size for f in package.iterdir()), str(package)
    else:
        state, size, where = "not fetched", kind.download_bytes, kind.home
    return Description(
        name=name,
        about=kind.about,
        train_samples=train[0],
        test_samples=test[0],
        classes=len(kind.classes),
        shape=(3, 32, 32),
        state=state,
        size_bytes=size,
        where=where,
    )
