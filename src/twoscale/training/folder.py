"""A run's folder belongs to one run at a time."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from twoscale.errors import ConfigurationError, TwoscaleError
from twoscale.training.record import MODEL_FILE, RECORD_FILE, STATE_FILE

if sys.platform != "win32":
    import fcntl

__all__ = ["held", "remove"]


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, and remove what killed ones left half written in it; it is made.

    The lock belongs to the open folder, so that it ends with the process however that ends. Where the system has no
    such lock, or the folder cannot be made, nothing is held.

    Raises:
        ConfigurationError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        yield  # writing to it says what is wrong
        return
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_leftovers(folder)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another process is training in {folder} at this moment; wait for its end, or choose another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(opened)


def _remove_leftovers(folder: Path) -> None:
    for name in (MODEL_FILE, RECORD_FILE, STATE_FILE):
        for leftover in folder.glob(f".{Path(name).stem}.*{Path(name).suffix}"):
            leftover.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, where there is one.

    Raises:
        TwoscaleError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise TwoscaleError(f"cannot remove {path}: {error.strerror or error}") from error
