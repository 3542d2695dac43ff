"""Files of other programs, recognized by their first bytes, so that an error can call them what they are."""

from __future__ import annotations

import zipfile
from pathlib import Path

__all__ = ["PROGRAM", "TFLITE", "foreign_kind"]

PROGRAM = "a program of torch.export"
"""A float network, for the verbs that take one."""

TFLITE = "a TensorFlow Lite model"
"""An integer network, for the verbs that take one."""

_MAGIC = (
    (4, b"TFL3", TFLITE),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x1f\x8b", "a gzip archive"),
)
_MEMBERS = (
    ("constants.pkl", "a TorchScript program"),
    ("serialized_exported_program.json", PROGRAM),
    ("models/model.json", PROGRAM),
    ("archive_format", PROGRAM),
    ("model.weights.h5", "a Keras model"),
)


def foreign_kind(path: Path) -> str | None:
    """Return what a file is that twoscale does not read, such as "a TensorFlow Lite model"; None if unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
        for offset, magic, kind in _MAGIC:
            if head[offset : offset + len(magic)] == magic:
                return kind
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            for member, kind in _MEMBERS:
                if any(name == member or name.endswith(f"/{member}") for name in names):
                    return kind
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        pass
    return None
