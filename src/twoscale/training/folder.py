"""What is cleared away in a run's folder."""

from __future__ import annotations

from pathlib import Path

from twoscale.errors import TwoscaleError
from twoscale.training.record import MODEL_FILE, RECORD_FILE, STATE_FILE

__all__ = ["remove", "remove_leftovers"]


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left half written in a folder, which no other process may have at that moment.

    Raises:
        TwoscaleError: a file cannot be removed.
    """
    for name in (MODEL_FILE, RECORD_FILE, STATE_FILE):
        for leftover in folder.glob(f".{Path(name).stem}.*{Path(name).suffix}"):
            remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, where there is one.

    Raises:
        TwoscaleError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise TwoscaleError(f"cannot remove {path}: {error.strerror or error}") from error
