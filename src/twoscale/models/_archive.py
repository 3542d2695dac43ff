"""Zip archives as torch writes them: not compressed, with a checksum for each member."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from twoscale.errors import CheckpointError

__all__ = ["ZIP_START", "opened_archive", "reason"]

ZIP_START = b"PK\x03\x04"
"""First bytes of a zip archive."""


@contextmanager
def opened_archive(file: BinaryIO, path: Path, check: Callable[[list[str]], None]) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose members take no more memory than its file, after checking every checksum.

    Args:
        file: the archive.
        path: of the file, for messages.
        check: called with the names of the members before they are read; it may raise CheckpointError.

    Raises:
        CheckpointError: damaged, or torch did not write it.
    """
    size = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            check([member.filename for member in members])
            # torch does not compress. A compressed member would take more memory than its size in the file.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members) or size < sum(
                member.file_size for member in members
            ):
                raise CheckpointError(f"{path} is a zip archive that torch.save did not write; expected a state dict")
            # All are 0 without checksums (torch.serialization.set_crc32_options).
            damaged = archive.testzip() if any(member.CRC for member in members) else None
            if damaged is not None:
                raise CheckpointError(
                    f"{path} is damaged: the checksum of {ascii(damaged)[1:-1]} is wrong; restore it from a copy, or "
                    "train again"
                )
            yield archive
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises BadZipFile, and other errors for unexpected content
        raise CheckpointError(f"{path} is truncated or damaged ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Return the first line of an exception, or its type's name."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
