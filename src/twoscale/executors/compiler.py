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
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from twoscale.errors import ExecutorError
from twoscale.files import replacing

__all__ = ["generator", "load"]


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
    from twoscale.data.cache import cache_dir

    compiler = _compiler()
    told = [*key, generator(), *compiler, _version(compiler), *flags]
    path = cache_dir() / "c" / f"{hashlib.sha256(repr(told).encode()).hexdigest()}.so"
    if path.exists():
        with contextlib.suppress(OSError):  # a damaged file is made again
            return ctypes.CDLL(str(path))
    _remove_leftovers(path.parent)
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
    for folder in ("", "fast", "kernels/portable", "kernels/fast", "templates"):
        entries = resources.files("twoscale.export.c").joinpath(folder).iterdir()
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_file():
                digest.update(entry.name.encode() + entry.read_bytes())
    return digest.hexdigest()


def _compile(compiler: list[str], name: str, files: Mapping[str, str], flags: Sequence[str], path: Path) -> None:
    """Compile to ``path``, all of it or nothing: what another process compiles meanwhile is as good."""
    with tempfile.TemporaryDirectory(prefix="twoscale-") as folder, replacing(path) as library:
        for file, text in files.items():
            Path(folder, file).write_text(text)
        command = [*compiler, *flags, "-o", str(library), *(file for file in files if file.endswith(".c"))]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise ExecutorError(
                f"the C compiler failed on {name}: {(errors or ['it says nothing'])[0].strip()}; "
                f"the command was {shlex.join(command)}"
            )


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed compilers left more than an hour ago; younger files may be another process's."""
    for leftover in folder.glob(".*.so"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()
