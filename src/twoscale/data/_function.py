"""Pictures from a function of the user's own, given as FILE.py:FUNCTION."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._user_code import attribute, imported_file, reason
from twoscale.data._assembly import Options
from twoscale.data._collected import Labelled, collect, collected, pixels_of
from twoscale.data._dataset import Dataset
from twoscale.data._pictures import Preprocessing
from twoscale.errors import ConfigurationError, DataError

__all__ = ["is_function", "read_function"]

_IMAGES = ("image", "img")
_LABELS = ("label", "labels")


def is_function(name: str) -> bool:
    """Return whether ``name`` is the place of a function: FILE.py:FUNCTION."""
    return name.rpartition(":")[0].endswith(".py")


def read_function(reference: str, preprocessing: Preprocessing | None, options: Options) -> Dataset:
    """Call a function and read the pictures that it returns, which runs its code.

    The function returns an iterable or a torch ``Dataset`` of pictures and labels; or a dictionary of two, "train" and
    "test" (or "val"). A function with a parameter ``split`` is called twice, with "train" and "test". Without a
    division, each class is divided as :func:`twoscale.data.image_folder` divides files, by number.

    A picture is a Pillow image, the bytes or the path of a picture file, or an array or tensor: uint8, or floating
    point from 0 to 1 as torchvision's ToTensor gives it; (H, W), (H, W, C) with C of at most 4, or (C, H, W). Arrays
    and tensors keep their size unless ``preprocessing`` is given. A label is an integer from 0. Pictures and labels are
    pairs, or dictionaries with "image" and "label". An attribute ``classes`` of what the function returns names the
    classes.

    Raises:
        ConfigurationError: there is no such function, or it fails.
        DataError: it returns something else, or pictures that cannot be read.
    """
    where, _, name = reference.rpartition(":")
    path = Path(where).expanduser()
    function = attribute(imported_file(path, "the pictures"), name, reference, "function")
    returned = _returned(function, reference)
    how = preprocessing or Preprocessing()
    read_files = False

    def pictures(part: str, values: Any) -> Iterator[Labelled]:
        nonlocal read_files
        for number, item in _numbered(values, reference):
            what = f"{part} picture {number} of {name}" if part else f"picture {number} of {name}"
            image, label = _pair(item, what)
            read_files = read_files or not _is_array(image)
            yield Labelled(what, label, functools.partial(_read, image, preprocessing, how))

    parts = {part: collect(pictures(part, values), reference, threads=False) for part, values in returned.items()}
    classes = next(filter(None, (getattr(values, "classes", None) for values in returned.values())), None)
    return collected(
        f"{path.absolute()}:{name}",
        reference,
        parts,
        None if classes is None else tuple(map(str, classes)),
        how if preprocessing is not None or read_files else None,
        options,
    )


def _returned(function: Any, reference: str) -> dict[str, Any]:
    """Return what the function returns, by part."""
    try:
        takes_split = "split" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes_split = False
    try:
        if takes_split:
            return {"train": function(split="train"), "test": function(split="test")}
        value = function()
    except Exception as error:  # the user's code
        raise ConfigurationError(f"{reference} failed: {reason(error)}") from error
    if not isinstance(value, Mapping):
        return {"": value}
    held_out = next((part for part in ("val", "validation", "test") if part in value), None)
    if "train" not in value or held_out is None:
        raise DataError(
            f"{reference} returns a dictionary with {', '.join(map(str, value)) or 'nothing'}; expected train and test"
        )
    return {"train": value["train"], "test" if held_out == "test" else "val": value[held_out]}


def _numbered(values: Any, reference: str) -> Iterator[tuple[int, Any]]:
    """Yield each item of an iterable, or of a torch ``Dataset``, with its number."""
    try:
        if hasattr(values, "__getitem__") and hasattr(values, "__len__"):
            yield from ((number, values[number]) for number in range(len(values)))
        elif isinstance(values, Iterable):
            yield from enumerate(values)
        else:
            raise DataError(
                f"{reference} returns {type(values).__name__}; expected a Dataset or pairs of pictures and labels"
            )
    except (DataError, ConfigurationError):
        raise
    except Exception as error:  # the user's code
        raise ConfigurationError(f"{reference} failed: {reason(error)}") from error


def _pair(item: Any, what: str) -> tuple[Any, int]:
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGES if key in item), None)
        label = next((item[key] for key in _LABELS if key in item), None)
    else:
        try:
            image, label = item
        except (TypeError, ValueError):
            image = label = None
    if image is None or label is None:
        raise DataError(f'{what} is {type(item).__name__}; expected (image, label), or "image" and "label"')
    try:
        number = int(label)
        if number != label:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} has the label {label!r:.40}; expected an integer from 0") from error
    return image, number


def _is_array(image: Any) -> bool:
    return isinstance(image, np.ndarray) or hasattr(image, "detach")


def _read(image: Any, given: Preprocessing | None, how: Preprocessing) -> NDArray[np.uint8]:
    if _is_array(image):
        return pixels_of(image.detach().cpu().numpy() if hasattr(image, "detach") else image, given)
    if isinstance(image, str | Path):
        return how.read_in_thread(Path(image))
    if isinstance(image, bytes):
        return how.read_in_thread(image)
    if hasattr(image, "convert") and hasattr(image, "getexif"):
        try:
            return how.pixels(image)
        except OSError as error:  # an image that Pillow opened and has not decoded yet
            raise DataError(f"it cannot be decoded: {error}") from error
    raise DataError(f"it is {type(image).__name__}; expected a Pillow image, bytes, a path, an array or a tensor")
