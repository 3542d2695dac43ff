"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28 pixels in ten classes (Xiao et al. 2017)."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twoscale.data._arrays import Arrays, Digests, check
from twoscale.data._progress import FetchProgress
from twoscale.data._transfer import download, read_members
from twoscale.errors import DataError

__all__ = ["CLASSES", "DIGESTS", "SHAPES", "enlarge", "fetch", "installed", "read_path"]

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SHAPES = ((60_000, 1, 28, 28), (60_000,), (10_000, 1, 28, 28), (10_000,))
DIGESTS = Digests(
    train_images="2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    train_labels="657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    test_images="c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    test_labels="3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
)
URLS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
"""The authors' two places for the same files; the second has no TLS, but every file's hash is known."""
FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""From file names to MD5, in the order of ``Arrays``."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of the four files in Debian's package dataset-fashion-mnist (compressed again, so with other MD5s)."""


def installed() -> Path | None:
    """Return the folder of Debian's package, or None if it is not installed."""
    return DEBIAN if all((DEBIAN / name).is_file() for name in FILES) else None


def read_path(path: Path) -> tuple[Arrays, str]:
    """Read and check Fashion-MNIST from a folder or tar archive with the four IDX files, .gz or not.

    Returns:
        The arrays, images (N, 1, 28, 28), and where they came from.

    Raises:
        DataError: names what was expected and what was found.
    """
    plain = [name.removesuffix(".gz") for name in FILES]
    members = read_members(path, {*FILES, *plain})
    missing = [name for name in plain if name not in members and f"{name}.gz" not in members]
    if missing:
        raise DataError(
            f"{path} holds no {', '.join(missing)}: expected the four files of Fashion-MNIST, "
            f"{', '.join(FILES)}, compressed or not"
        )
    arrays = []
    for name, shape in zip(plain, SHAPES, strict=True):
        try:
            content = members[name] if name in members else _decompressed(members[f"{name}.gz"], shape)
            arrays.append(_from_idx(content, shape))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"{path}: {name} is damaged or altered: {error}") from error
    result = Arrays(*arrays)
    check(result, SHAPES, DIGESTS, str(path))
    return result, str(path)


def fetch(folder: Path, progress: FetchProgress) -> tuple[Arrays, str]:
    """Get Fashion-MNIST from Debian's package if installed, or else from its authors.

    Args:
        folder: an empty folder for the download.
        progress: draws the progress.

    Returns:
        The arrays, images (N, 1, 28, 28), and where they came from.

    Raises:
        DataError: all sources failed; the message gives the reasons.
        OSError: the download cannot be written.
    """
    failures = []
    package = installed()
    if package:
        try:
            return read_path(package)
        except DataError as error:
            failures.append(str(error))
    for base in URLS:
        try:
            for name, md5 in FILES.items():
                if not (folder / name).exists():
                    download(base + name, md5, folder, progress)
            return read_path(folder)[0], base
        except DataError as error:
            failures.append(str(error))
    raise DataError(
        f"fashion-mnist could not be fetched ({'; '.join(failures)}); install Debian's package "
        "dataset-fashion-mnist, or give a folder with its four files: "
        "twoscale data fetch fashion-mnist --path FOLDER"
    )


def _decompressed(content: bytes, shape: tuple[int, ...]) -> bytes:
    # One byte more than expected is enough to detect too many.
    with gzip.open(io.BytesIO(content)) as file:
        return file.read(int(np.prod(shape)) + 17)


def _from_idx(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode an IDX file of uint8: bytes 0, 0, 8, number of axes, each length big-endian, then the values."""
    lengths = (shape[0], *shape[2:])  # a file has no channel axis
    header = bytes([0, 0, 8, len(lengths)]) + b"".join(n.to_bytes(4, "big") for n in lengths)
    if content[: len(header)] != header:
        raise ValueError(f"its header is {content[: len(header)].hex(' ', 4)}, expected {header.hex(' ', 4)}")
    if len(content) - len(header) != np.prod(shape):
        raise ValueError(f"it has {len(content) - len(header)} values, expected {np.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def enlarge(images_n1hw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad (N, 1, 28, 28) with 0 to 32 x 32 and repeat it in three channels: (N, 3, 32, 32)."""
    padded = np.zeros((len(images_n1hw), 3, 32, 32), np.uint8)
    padded[:, :, 2:30, 2:30] = images_n1hw
    return padded
