"""The user's cache: one safetensors file per data set, checked whenever it is read."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from twoscale._files import cache_dir, lock, sorted_safetensors, write_bytes
from twoscale.data._arrays import Arrays, Digests, check
from twoscale.errors import DataError

__all__ = ["cached_file", "exclusive", "read", "scratch_folder", "write"]

_log = logging.getLogger(__name__)


def cached_file(name: str) -> Path:
    """Return where data set ``name`` is kept once fetched."""
    return cache_dir() / f"{name}.safetensors"


def write(name: str, arrays: Arrays, source: str) -> Path:
    """Write checked ``arrays`` to the cache, all or nothing, and return the file.

    Raises:
        TwoscaleError: the folder cannot be written, or the disk is full.
    """
    from safetensors.numpy import save

    path = cached_file(name)
    write_bytes(path, sorted_safetensors(save(arrays._asdict(), {"name": name, "source": source})))
    return path


def read(name: str, shapes: Sequence[tuple[int, ...]], digests: Digests) -> tuple[Arrays, str] | None:
    """Read data set ``name`` from the cache and check it.

    Returns:
        The arrays and where they once came from, or None where the data set is not cached.

    Raises:
        DataError: the file is damaged or cannot be read; names the file.
    """
    path = cached_file(name)
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = Arrays(*(file.get_tensor(field) for field in Arrays._fields))
            source = str((file.metadata() or {}).get("source", "unknown"))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"the cached file {path} is damaged or cannot be read: {error}") from error
    check(arrays, shapes, digests, f"the cached file {path}")
    return arrays, source


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold data set ``name`` for this process alone while it is fetched; others wait.

    The lock belongs to the open file, so that it ends with the process however that ends. Where the system
    has no such lock, two processes may both fetch: the last rename wins, and both files are right.

    Raises:
        DataError: the cache folder cannot be written.
    """
    path = cache_dir() / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise DataError(
            f"cannot write to the cache folder {path.parent}: {error.strerror or error}; "
            "set TWOSCALE_CACHE to a folder that can be written"
        ) from error
    with file:
        try:
            lock(file.fileno(), wait=False)
        except BlockingIOError:
            _log.warning("another process is fetching %s; waiting for it", name)
            lock(file.fileno(), wait=True)
        except OSError:  # a system or a file system without locks
            yield
            return
        _remove_leftovers(name)
        yield


def _remove_leftovers(name: str) -> None:
    """Remove what killed processes left; only for the holder of the lock."""
    for leftover in cache_dir().glob(f".{name}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Give a folder for downloads inside the cache folder (/tmp may be small); it is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=cache_dir(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)
