"""Writes files completely or not at all, locks folders, reads and writes JSON records, and finds the cache folder."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from twoscale._text import json_ascii
from twoscale.errors import ConfigurationError, TwoscaleError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "cache_dir",
    "held",
    "lock",
    "read_record",
    "record_to_json",
    "remove",
    "remove_leftovers",
    "replacing",
    "sorted_safetensors",
    "write_bytes",
    "write_files",
    "write_record",
    "write_text",
]

T = TypeVar("T")


def lock(handle: int, *, wait: bool) -> None:
    """Lock an open file or folder for this process. The lock ends when the handle is closed or the process ends.

    Raises:
        BlockingIOError: another process has locked it, and ``wait`` is false.
        OSError: this system (Windows) or file system has no such locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def held(folder: Path, doing: str) -> Iterator[None]:
    """Make a folder, and lock it for this process.

    The lock belongs to the open folder, so it ends with the process, however that ends. If the system or the folder's
    file system has no locks, nothing is locked.

    Args:
        folder: may already exist.
        doing: the activity of processes in it, for the message, such as "training".

    Raises:
        ConfigurationError: another process has locked it.
        TwoscaleError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "no permission")
    except OSError as error:
        raise TwoscaleError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            try:
                lock(handle, wait=False)
            except BlockingIOError as error:
                raise ConfigurationError(
                    f"another process is {doing} in {folder} at this moment; wait for its end, or choose another folder"
                ) from error
        yield


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``. On success it is renamed to ``path``; on failure it is removed.

    The temporary file is in the same folder, so that the rename is atomic (POSIX rename). It is first synced to disk.
    It has the suffix of ``path``, since some writers choose the format by it. Temporary files of killed processes for
    the same ``path`` are removed.

    Raises:
        TwoscaleError: the folder cannot be written, or the disk is full.
    """
    with _replacing_all((path,), path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def _replacing_all(paths: Sequence[Path], called: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path beside each path, and rename them only after all are written and synced.

    Args:
        paths: of the files.
        called: name for messages about errors that do not concern a single file.
    """
    temporaries: list[Path] = []
    renamed: list[str] = []
    at, unchanged = called, "nothing was changed"
    with contextlib.ExitStack() as locks:
        try:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(path)
                handle, temporary = _locked_temporary(path)
                locks.callback(os.close, handle)
                temporaries.append(temporary)
            unchanged = "what was there before is unchanged"
            yield tuple(temporaries)
            umask = os.umask(0)
            os.umask(umask)
            for temporary in temporaries:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.chmod(
                    0o666 & ~umask
                )  # mkstemp makes files private; a result should have the usual permissions
            for at in paths:
                if at.is_dir():  # the only obstacle to a rename within a folder
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if os.name == "nt":
                locks.close()  # where an open file cannot be renamed
            for temporary, at in zip(temporaries, paths, strict=True):
                temporary.replace(at)
                renamed.append(at.name)
        except OSError as error:
            if renamed:
                unchanged = f"already new: {', '.join(renamed)}; the others are unchanged"
            raise TwoscaleError(f"cannot write {at}: {error.strerror or error}; {unchanged}") from error
        finally:
            locks.close()
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    return f".{path.stem}.twoscale-"


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """Make a temporary file beside ``path``, locked as long as its handle is open. Return the handle and the file.

    A file that no process has locked is what a killed process left. Until the lock is there, another process may take
    the new file for that and remove it: then the next one is made.
    """
    while True:
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=path.suffix, dir=path.parent)
        try:
            with contextlib.suppress(OSError):  # without locks, no process removes it either
                lock(handle, wait=True)  # a process that has just found it holds it for a moment
            if os.fstat(handle).st_nlink:
                return handle, Path(name)
        except BaseException:
            os.close(handle)
            Path(name).unlink(missing_ok=True)
            raise
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` that killed processes left; those of running processes stay.

    Running processes hold a lock on theirs, and the system ends the lock with the process. Where the system or the file
    system has no locks, nothing is removed. What writes a temporary file must not put another file in its place, since
    that would not be locked.

    Args:
        path: the file that they were written for.
    """
    for leftover in path.parent.glob(f"{glob.escape(_prefix(path))}????????{glob.escape(path.suffix)}"):
        with contextlib.suppress(OSError):  # another user's, locked, or renamed at this moment
            handle = os.open(leftover, os.O_RDONLY)
            try:
                lock(handle, wait=False)
                leftover.unlink()
            finally:
                os.close(handle)


def remove(path: Path) -> None:
    """Remove a file if it exists.

    Raises:
        TwoscaleError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise TwoscaleError(f"cannot remove {path}: {error.strerror or error}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8, completely or not at all."""
    write_bytes(path, content.encode())


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write files of these names to ``folder``, texts as UTF-8: all of them or none."""
    with _replacing_all([folder / name for name in contents], folder) as temporaries:
        for temporary, content in zip(temporaries, contents.values(), strict=True):
            temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def record_to_json(record: object) -> str:
    """Return ``record`` as indented JSON: NaN and infinity as null, invisible characters escaped."""
    import msgspec

    return json_ascii(msgspec.json.format(msgspec.json.encode(record), indent=2).decode()) + "\n"


def write_record(path: Path, record: object) -> None:
    """Write ``record`` to ``path`` as JSON, completely or not at all."""
    write_bytes(path, record_to_json(record).encode())


def read_record(path: Path, kind: type[T]) -> T:
    """Read a record of type ``kind``.

    Raises:
        TwoscaleError: the file is missing, is not JSON, or does not hold such a record.
    """
    import msgspec

    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise TwoscaleError(f"cannot read {path}: {error.strerror or error}") from error
    # The record raises a TwoscaleError for a value outside its range.
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TwoscaleError) as error:
        raise TwoscaleError(f"{path} does not hold a {kind.__name__} record: {error}") from error


def sorted_safetensors(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in the order of the keys, so that equal contents are equal files.

    safetensors writes metadata in the order of a hash table, which differs from process to process.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if metadata := header.get("__metadata__"):
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[8 + length :]))


def cache_dir() -> Path:
    """Return the folder of fetched data sets and compiled networks: $TWOSCALE_CACHE, or the platform's cache folder.

    The folder need not exist.

    Raises:
        ConfigurationError: $TWOSCALE_CACHE begins with the home folder of a user who does not exist.
    """
    import platformdirs

    moved = os.environ.get("TWOSCALE_CACHE")
    if not moved:
        return platformdirs.user_cache_path("twoscale")
    try:
        return Path(moved).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigurationError(
            f"TWOSCALE_CACHE is {moved}, and that user has no home folder here; expected the path of a folder"
        ) from error
