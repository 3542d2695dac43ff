"""The system's C compiler, and a cache of compiled libraries that several processes may use at once.

A library is found in the cache without a compiler and without generating any C: its key is made of facts about the
network, of the options, of the generator's code and of the platform. The compiler's version is not part of the key.

A cached library is code that will run. It is loaded only if no other user could have written it: the library and its
folders must belong to this user, and no other user may have write permission. It must also be undamaged (sealed.py).
Otherwise, or if the cache cannot be written, libraries are compiled for the current process only.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from twoscale._environment import this_platform
from twoscale._files import cache_dir, lock
from twoscale._runtimes import sealed
from twoscale.errors import ExecutorError, TwoscaleError

__all__ = ["Library", "Sources", "build", "generator", "load"]

_WORKSHOP = ".compiling-"
_OTHERS_MAY_WRITE = 0o022
_SPARE_BYTES = 4 * 1024 * 1024
"""If less space is free than this, a full disk may be the reason why a compiler fails."""


@dataclass(frozen=True)
class Sources:
    """What to compile."""

    files: Mapping[str, str | bytes]
    """Names and contents. The .c files are compiled; the others are files that they include."""
    note: bytes = b""
    """Kept with the library."""


@dataclass(frozen=True)
class Library:
    """A loaded library."""

    handle: ctypes.CDLL
    note: bytes
    """That of its sources."""


def load(name: str, key: Sequence[str], make: Callable[[], Sources], flags: Sequence[str]) -> Library:
    """Return a compiled library, from the user's cache if it is there.

    Args:
        name: the network's name, for error messages.
        key: distinguishes this library from others with the same compiler command, flags, generator and platform.
        make: returns what to compile. It is called only if the library is not in the cache.
        flags: of the compiler.

    Raises:
        ExecutorError: there is no C compiler here, or it fails; the message says what is missing.
        TwoscaleError: there is no writable folder for temporary files.
    """
    _require_posix()
    parts = [*key, generator(), this_platform(), *_command(), *flags]
    folder = _private_folder()
    path = None if folder is None else folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.so"
    if path is not None and _is_private(path):
        with contextlib.suppress(OSError, sealed.SealError):  # a damaged file is compiled again
            return _open(path)
    compiler = _compiler()
    sources = make()
    if path is not None:
        try:
            build(path, name, sources, flags)
            return _open(path)
        except (OSError, sealed.SealError):  # the cache is optional
            pass
        except ExecutorError:
            if shutil.disk_usage(path.parent).free > _SPARE_BYTES:
                raise
    return Library(_compile_for_this_process(compiler, name, sources.files, flags), sources.note)


def build(path: Path, name: str, sources: Sources, flags: Sequence[str]) -> None:
    """Compile to ``path`` atomically, as a sealed file with the note.

    If another process compiles the same library meanwhile, either result will do.

    Raises:
        ExecutorError: there is no C compiler here, or it fails.
        OSError: the folder cannot be written.
    """
    _require_posix()
    compiler = _compiler()
    with _workshop(path.parent) as folder:
        library = _compile_in(folder, compiler, name, sources.files, flags)
        sealed.seal(library, sources.note)
        library.chmod(library.stat().st_mode & ~_OTHERS_MAY_WRITE)  # whatever the umask
        with library.open("rb+") as made:
            os.fsync(made.fileno())
        library.replace(path)


def _require_posix() -> None:
    if sys.platform == "win32":
        raise ExecutorError(
            "compiled networks need Linux or macOS, and this is Windows; "
            'use another executor, such as "onnxruntime" or "torch"'
        )


def _open(path: Path) -> Library:
    """Check a sealed library, and load it.

    Raises:
        SealError: it is damaged.
        OSError: it cannot be read or loaded.
    """
    note = sealed.read_note(path)
    return Library(ctypes.CDLL(str(path)), note)


def _private_folder() -> Path | None:
    """Return the folder of libraries, created if needed; None if it cannot be created or other users may write to
    it."""
    folder = cache_dir() / "c"
    try:
        if not folder.parent.exists():
            folder.parent.mkdir(mode=0o700, parents=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    for part in (folder.parent, folder):
        if not _is_private(part):
            warnings.warn(
                f"compiled networks are not kept: {part} belongs to another user, or others may write to it; "
                f"make it yours alone (chmod go-w {part}), or set TWOSCALE_CACHE to another folder",
                stacklevel=5,
            )
            return None
    return folder


def _is_private(path: Path) -> bool:
    """Whether a file or folder exists, belongs to this user, and is not writable by others."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_MAY_WRITE


def _command() -> list[str]:
    """Return the command of the C compiler: $CC, or cc. It need not exist."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def _compiler() -> list[str]:
    """Return the command of the C compiler.

    Raises:
        ExecutorError: there is none.
    """
    command = _command()
    if shutil.which(command[0]) is None:
        raise ExecutorError(
            f"the c executor needs a C compiler, and '{command[0]}' is not there; "
            "install gcc or clang, or name one in the environment variable CC"
        )
    return command


def generator() -> str:
    """Return a digest of the code that generates the C, so that libraries of older versions are not used."""
    digest = hashlib.sha256()
    for name, content in _files_of(resources.files("twoscale._codegen")):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _files_of(folder: Traversable, inside: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file of a package, in the order of their names."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_file():
            yield inside + entry.name, entry.read_bytes()
        elif entry.name != "__pycache__":
            yield from _files_of(entry, f"{inside}{entry.name}/")


def _compile_for_this_process(
    compiler: list[str], name: str, files: Mapping[str, str | bytes], flags: Sequence[str]
) -> ctypes.CDLL:
    """Compile in a private folder that is removed once the library is loaded."""
    try:
        with tempfile.TemporaryDirectory(prefix="twoscale-") as folder:
            return ctypes.CDLL(str(_compile_in(Path(folder), compiler, name, files, flags)))
    except OSError as error:
        raise TwoscaleError(
            f"cannot compile {name} in {tempfile.gettempdir()}: {error.strerror or error}; "
            "free space there, or set TMPDIR to another folder"
        ) from error


def _compile_in(
    folder: Path, compiler: list[str], name: str, files: Mapping[str, str | bytes], flags: Sequence[str]
) -> Path:
    """Return the library, made in ``folder``."""
    for file, content in files.items():
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    library = folder / "library.so"
    command = [*compiler, *flags, "-o", str(library), *(file for file in files if file.endswith(".c"))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise ExecutorError(
            f"the C compiler failed on {name}: {(errors or ['it says nothing'])[0].strip()}; "
            f"the command was {shlex.join(command)}"
        )
    return library


@contextlib.contextmanager
def _workshop(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder that is removed afterwards. If this process is killed, a later one removes it.

    A file beside the folder is locked as long as the process lives. If the file can be locked, no process uses the
    folder any more.
    """
    for leftover in parent.glob(f"{_WORKSHOP}*.lock"):
        _remove_abandoned(leftover)
    while True:
        handle, name = tempfile.mkstemp(prefix=_WORKSHOP, suffix=".lock", dir=parent)
        with contextlib.suppress(OSError):  # no locks on this system or file system: other processes never remove it
            lock(handle, wait=True)
        if Path(name).exists():  # otherwise another process removed it before it was locked
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
