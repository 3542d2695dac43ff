"""What several verbs share: finding models, networks and images from what the user named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from twoscale import data
from twoscale.errors import ConfigurationError
from twoscale.records import record_to_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console
    from torch import nn

__all__ = ["File", "batches_of", "console", "load_model", "print_json", "require_file"]

File = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
"""A file that the user names without an option."""


def console() -> Console:
    """Return a console for tables on standard output."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(record: object) -> None:
    """Print a record for programs."""
    sys.stdout.write(record_to_json(record))


def require_file(path: Path, what: str) -> Path:
    """Return ``path`` if it is a file.

    Raises:
        ConfigurationError: it is not; says what was expected.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigurationError(f"{path} {found}; expected {what}")
    return path


def load_model(path: Path, model: str | None) -> nn.Module:
    """Load a checkpoint: of this library, which says what model it is, or of any origin for a named model."""
    from twoscale import models

    require_file(path, "a checkpoint (.safetensors, .pt or .pth)")
    return models.load(model, path)


def batches_of(
    split: data.Split, dataset: data.Dataset, *, batch_size: int = 500, limit: int | None = None
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield (normalized float32 images, labels), at most ``limit`` images."""
    count = len(split) if limit is None else min(limit, len(split))
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        yield data.normalize(split.images[start:stop], dataset.mean, dataset.std), split.labels[start:stop]
