"""Sealed files: content of any kind, a note about it, and a digest of both.

The note follows the content, and a footer follows the note: the length of the note (8 bytes, little-endian), the
SHA-256 of everything before the digest, and a mark. Loaders of shared libraries ignore what follows a library, so a
sealed library can be loaded as it is. The digest detects damage. It does not prove who wrote the file.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

__all__ = ["SealError", "read_note", "seal"]

_MARK = b"twoscale sealed\n"
_LENGTH_BYTES = 8
_FOOTER_BYTES = _LENGTH_BYTES + hashlib.sha256().digest_size + len(_MARK)
_LONGEST_NOTE = 4 * 1024 * 1024


class SealError(Exception):
    """The file is not a sealed file, or it is damaged. The message says which of the two."""


def seal(path: Path, note: bytes) -> None:
    """Append a note and the footer to a file."""
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256")
        end = note + len(note).to_bytes(_LENGTH_BYTES, "little")
        digest.update(end)
        file.write(end + digest.digest() + _MARK)


def read_note(path: Path) -> bytes:
    """Check the digest of a sealed file, and return its note.

    Raises:
        SealError: it is not sealed, or it is damaged.
        OSError: it cannot be read.
    """
    if path.stat().st_size < _FOOTER_BYTES:
        raise SealError("is not a sealed file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        footer = content[-_FOOTER_BYTES:]
        if not footer.endswith(_MARK):
            raise SealError("is not a sealed file, or its end is missing")
        length = int.from_bytes(footer[:_LENGTH_BYTES], "little")
        first = len(content) - _FOOTER_BYTES - length
        if length > _LONGEST_NOTE or first < 0:
            raise SealError("is damaged")
        with memoryview(content) as view, view[: len(content) - _FOOTER_BYTES + _LENGTH_BYTES] as covered:
            found = hashlib.sha256(covered).digest()
        if found != footer[_LENGTH_BYTES : -len(_MARK)]:
            raise SealError("is damaged: its contents do not have the digest that it was written with")
        return content[first : first + length]
