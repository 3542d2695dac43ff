"""Things that several test processes use and one of them makes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from twoscale._files import lock


def once_in(folders: pytest.TempPathFactory, name: str, make: Callable[[], Any]) -> Any:
    """Return the result of ``make`` as plain JSON values. It runs once per session, one of its kind at a time."""
    folder = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # shared by the test processes of this run
    kept = folder / f"{name}.json"
    with (folder / "making").open("w") as file:
        with contextlib.suppress(OSError):  # Windows has no such locks, and there each process makes its own
            lock(file.fileno(), wait=True)
        if not kept.exists():
            kept.write_bytes(msgspec.json.encode(make()))
        return msgspec.json.decode(kept.read_bytes())
