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
    """Return the path of data set ``name`` in the cache."""
    return cache_dir() / f"{name}.safetensors"


def write(name: str, arrays: Arrays, source: str) -> Path:
    """Write checked ``arrays`` to the cache, completely or not at all, and return the file.

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
        The arrays and their source, or None if the data set is not cached.

    Raises:
        DataError: the file is damaged or cannot be read; the message names it.
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
    """Lock data set ``name`` for this process while it is fetched. Others wait.

    The lock belongs to the open file, so it ends with the process, however that ends. Without such locks, two processes
    may both fetch: the last rename wins, and both files are right.

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
    """Remove files of killed processes. Only the holder of the lock may call it."""
    for leftover in cache_dir().glob(f".{name}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Yield a folder for downloads inside the cache folder (/tmp may be small). It is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=cache_dir(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)
