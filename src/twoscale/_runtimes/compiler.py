"""The system's C compiler, and a cache of what it made: whole libraries only, whoever else compiles meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from twoscale._files import cache_dir, lock
from twoscale.errors import ExecutorError, TwoscaleError

__all__ = ["generator", "load"]

_WORKSHOP = ".compiling-"


def load(name: str, key: Sequence[str], files: Mapping[str, str], flags: Sequence[str]) -> ctypes.CDLL:
    """Return the library that the files make, from the user's cache, or compiled.

    Args:
        name: of the network, for errors.
        key: what tells this library from others, besides compiler, flags and generator.
        files: file names and texts; the .c files among them are compiled.
        flags: of the compiler.

    Raises:
        ExecutorError: there is no C compiler here, or it fails; says what is missing.
        TwoscaleError: the cache cannot be written.
    """
    compiler = _compiler()
    told = [*key, generator(), *compiler, _version(compiler), *flags]
    path = cache_dir() / "c" / f"{hashlib.sha256(repr(told).encode()).hexdigest()}.so"
    if path.exists():
        with contextlib.suppress(OSError):  # a damaged file is made again
            return ctypes.CDLL(str(path))
    _compile(compiler, name, files, flags, path)
    return ctypes.CDLL(str(path))


def _compiler() -> list[str]:
    """Return the command of the C compiler: $CC, or cc.

    Raises:
        ExecutorError: there is none.
    """
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise ExecutorError(
            f"the c executor needs a C compiler, and '{command[0]}' is not there; "
            "install gcc or clang, or name one in the environment variable CC"
        )
    return command


def _version(compiler: list[str]) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout


def generator() -> str:
    """Return a digest of everything that writes the C, so that what an older version compiled is not used."""
    digest = hashlib.sha256()
    for folder in ("", "common", "portable", "small_ram", "vector", "kernels/portable", "kernels/vector", "templates"):
        entries = resources.files("twoscale._codegen.c").joinpath(folder).iterdir()
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_file():
                digest.update(entry.name.encode() + entry.read_bytes())
    return digest.hexdigest()


def _compile(compiler: list[str], name: str, files: Mapping[str, str], flags: Sequence[str], path: Path) -> None:
    """Compile to ``path``, all of it or nothing: what another process compiles meanwhile is as good."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _workshop(path.parent) as folder:
            _compile_in(folder, compiler, name, files, flags).replace(path)
    except OSError as error:
        raise TwoscaleError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error


def _compile_in(folder: Path, compiler: list[str], name: str, files: Mapping[str, str], flags: Sequence[str]) -> Path:
    """Return the library, made in ``folder`` and synced to disk."""
    for file, text in files.items():
        (folder / file).write_text(text)
    library = folder / "library.so"
    command = [*compiler, *flags, "-o", str(library), *(file for file in files if file.endswith(".c"))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise ExecutorError(
            f"the C compiler failed on {name}: {(errors or ['it says nothing'])[0].strip()}; "
            f"the command was {shlex.join(command)}"
        )
    with library.open("rb+") as made:
        os.fsync(made.fileno())
    return library


@contextlib.contextmanager
def _workshop(parent: Path) -> Iterator[Path]:
    """Give a folder of its own that is gone afterwards, even if this process is killed: then the next one removes it.

    Beside the folder is a file that is locked as long as the process lives. A folder whose file can be locked is
    nobody's any more.
    """
    for leftover in parent.glob(f"{_WORKSHOP}*.lock"):
        _remove_abandoned(leftover)
    while True:
        handle, name = tempfile.mkstemp(prefix=_WORKSHOP, suffix=".lock", dir=parent)
        with contextlib.suppress(OSError):  # a system or a file system without locks: no process can remove it
            lock(handle, wait=True)
        if Path(name).exists():  # else somebody found it before it was locked
            break
        os.close(handle)
    folder = Path(name).with_suffix("")
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def _remove_abandoned(marker: Path) -> None:
    with contextlib.suppress(OSError), marker.open() as file:
        lock(file.fileno(), wait=False)
        shutil.rmtree(marker.with_suffix(""), ignore_errors=True)
        marker.unlink()
