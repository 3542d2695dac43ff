"""Pictures in Parquet files, as Hugging Face's datasets stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from twoscale._extras import requires_extras
from twoscale.data._assembly import Options
from twoscale.data._collected import Labelled, collect, collected
from twoscale.data._dataset import Dataset
from twoscale.data._pictures import Preprocessing
from twoscale.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["is_parquet", "read_parquet"]

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")
_PARTS = {"train": "train", "validation": "val", "val": "val", "valid": "val", "test": "test"}
_ROWS = 64
"""Rows that are read at a time."""


class _Feature(msgspec.Struct):
    names: list[str] | None = None


class _Info(msgspec.Struct):
    features: dict[str, Any] = {}


class _Described(msgspec.Struct):
    info: _Info


def is_parquet(path: Path) -> bool:
    """Return whether ``path`` is a Parquet file or a folder with some (in it, or in its folder ``data``)."""
    return path.suffix == ".parquet" or (path.is_dir() and bool(_files(path)))


@requires_extras("reading a Parquet file")
def read_parquet(path: Path, preprocessing: Preprocessing, options: Options) -> Dataset:
    """Read a Parquet file, or a folder of ``train-*.parquet``, ``validation-*`` or ``test-*``.

    A column "image" or "img" holds the files of the pictures, as bytes or as a struct with a field "bytes"; a column
    "label", "labels" or "fine_label" holds integers from 0. The names of the classes come from the description that
    Hugging Face's datasets writes into the file, where there is one.

    Raises:
        MissingPackageError: pyarrow is not installed.
        DataError: no such file, or another content.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: expected a Parquet file of pictures")
    files = {"": [path]} if path.is_file() else _files(path)
    if "train" in files and files.keys() & {"val", "test"}:
        files.pop("", None)
        files = {part: files[part] for part in ("train", "val" if "val" in files else "test")}
    else:
        files = {"": [file for part in files.values() for file in part]}
    parts, names = {}, None
    for part, members in files.items():
        opened = [_opened(member) for member in members]
        names = names or next(filter(None, map(_class_names, opened)), None)
        parts[part] = collect(_pictures(members, opened, preprocessing), str(path), threads=True)
    return collected(str(path.absolute()), str(path), parts, names, preprocessing, options)


def _files(path: Path) -> dict[str, list[Path]]:
    """Return a folder's Parquet files by the part that their names begin with."""
    found: dict[str, list[Path]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        word = file.name.split("-")[0].split(".")[0].split("_")[0].lower()
        found.setdefault(_PARTS.get(word, ""), []).append(file)
    return found


def _opened(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(path)
        _columns(path, opened)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file: {_line(error)}") from error
    return opened


def _columns(path: Path, opened: pq.ParquetFile) -> tuple[str, str]:
    """Return the names of the columns of pictures and labels."""
    import pyarrow as pa

    schema = opened.schema_arrow

    def find(known: Sequence[str], fits: Any) -> str | None:
        return next((name for name in known if name in schema.names and fits(schema.field(name).type)), None)

    def binary(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def picture(kind: Any) -> bool:
        return binary(kind) or (
            pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and binary(kind.field("bytes").type)
        )

    images, labels = find(_IMAGES, picture), find(_LABELS, pa.types.is_integer)
    if images is None or labels is None:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}; expected pictures as bytes in image or img, and "
            "integers in label, labels or fine_label"
        )
    return images, labels


def _class_names(opened: pq.ParquetFile) -> tuple[str, ...] | None:
    text = (opened.schema_arrow.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        features = msgspec.json.decode(text, type=_Described).info.features
        for column in _LABELS:
            if column in features and (names := msgspec.convert(features[column], _Feature).names):
                return tuple(names)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    return None


def _pictures(paths: list[Path], files: list[pq.ParquetFile], how: Preprocessing) -> Iterator[Labelled]:
    import pyarrow as pa

    for path, opened in zip(paths, files, strict=True):
        images, labels = _columns(path, opened)
        row = 0
        try:
            for batch in opened.iter_batches(_ROWS, columns=[images, labels]):
                column = batch.column(batch.schema.get_field_index(images))
                numbers = batch.column(batch.schema.get_field_index(labels)).to_pylist()
                for cell, label in zip(column.to_pylist(), numbers, strict=True):
                    content = cell.get("bytes") if isinstance(cell, dict) else cell
                    yield Labelled(f"{path}, row {row}", -1 if label is None else label, _reader(content, how))
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is damaged after row {row}: {_line(error)}") from error


def _reader(content: bytes | None, how: Preprocessing) -> Any:
    def read() -> NDArray[np.uint8]:
        if content is None:
            raise DataError("there are no bytes of a picture")
        return how.read_in_thread(content)

    return read


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
