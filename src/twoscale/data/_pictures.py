"""From a picture file to the pixels of a network's input: decoding, conversion, resizing, cropping."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SUFFIXES", "Preprocessing", "quiet_pillow"]

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Other formats of Pillow include EPS, for which it starts a program."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_LARGEST = 2**27
"""Largest number of pixels. Larger pictures are refused before they are decoded."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes uint8 pixels (C, H, W), by a fixed rule.

    1. The first frame is decoded, and turned and mirrored as its EXIF orientation says.
    2. It is converted to grey (1 channel), RGB (3) or RGBA (4) as Pillow's ``convert`` does: a palette becomes its
       colours, CMYK and YCbCr become RGB, and an alpha channel is dropped if the result has none. Grey pictures of
       16 bits become 8 bits by v · 255 / 65535, rounded half up. Pictures of 32 bits have no known range and are
       refused.
    3. It is resized with Pillow's filter, which averages over all pixels covered by a new one (antialias).
    4. It is cropped.

    Steps 3 and 4 are those of torchvision's reference transforms: ``resize="shorter"``, ``crop="center"`` is
    ``Resize(resize_to)``, ``CenterCrop(size)``; ``resize="stretch"`` is ``Resize((height, width))``.

    Raises:
        ConfigurationError: a number outside its range.
    """

    size: int | tuple[int, int] = 224
    """Height and width of the result, 1 to 4096: one number for both, or (height, width)."""
    resize: Literal["shorter", "stretch", "none"] = "shorter"
    """shorter: the shorter side becomes ``resize_to``, and the other keeps the ratio, rounded down. stretch: the
    picture becomes ``size``, and its ratio changes; nothing is left to crop. none: it keeps its size."""
    resize_to: int | None = None
    """Length of the shorter side. Default: the larger side of ``size``; torchvision's evaluation of ImageNet has 256
    for 224."""
    crop: Literal["center"] = "center"
    """center: the middle; a position between two pixels is rounded to the even one. Smaller pictures get black
    borders."""
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bilinear"
    channels: Literal[1, 3, 4] = 3

    def __post_init__(self) -> None:
        if isinstance(self.size, tuple) and self.size[0] == self.size[1]:
            object.__setattr__(self, "size", self.size[0])  # one form, so that equal preprocessing compares equal
        for name, value in (("size", min(self.hw)), ("size", max(self.hw)), ("resize_to", self.resize_to)):
            if value is not None and not 1 <= value <= 4096:
                raise ConfigurationError(f"{name} is {value}; expected 1 to 4096")
        if self.channels not in _MODES:
            raise ConfigurationError(f"channels is {self.channels}; expected 1, 3 or 4")
        if self.resize != "shorter" and self.resize_to is not None:
            raise ConfigurationError(f"resize_to is for resize shorter; resize is {self.resize}")

    @property
    def hw(self) -> tuple[int, int]:
        """(H, W) of the result."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the result."""
        return self.channels, *self.hw

    def __str__(self) -> str:
        """Describe the steps in the order in which they happen."""
        height, width = self.hw
        steps = {
            "shorter": f"the shorter side resized to {self.resize_to or max(self.hw)}",
            "stretch": f"stretched to {width}x{height}",
            "none": "not resized",
        }
        how = steps[self.resize] + ("" if self.resize == "none" else f" ({self.interpolation}, antialias)")
        cropped = "" if self.resize == "stretch" else f", center crop {width}x{height}"
        return f"{_MODES[self.channels]}, {how}{cropped}"

    def read(self, picture: Path | bytes) -> NDArray[np.uint8]:
        """Return the pixels of a picture file, uint8 (C, H, W).

        Args:
            picture: a file, or its content: PNG, JPEG, GIF, BMP, WebP, TIFF or PPM.

        Raises:
            DataError: it cannot be read, is damaged, is of another format, or has more than 2^27 pixels.
        """
        with quiet_pillow():
            return self.read_in_thread(picture)

    def read_in_thread(self, picture: Path | bytes) -> NDArray[np.uint8]:
        """Do what :meth:`read` does, with Pillow's warnings: filters of warnings belong to the process, not the thread.

        The threads that call it run inside one :func:`quiet_pillow`.
        """
        from PIL import Image, UnidentifiedImageError

        name = str(picture) if isinstance(picture, Path) else "the picture"
        try:
            opened = io.BytesIO(picture) if isinstance(picture, bytes) else picture
            with Image.open(opened, formats=_FORMATS) as image:
                width, height = image.size
                if width * height > _LARGEST:
                    raise DataError(f"{name} has {width} x {height} pixels; expected at most {_LARGEST:,}")
                return self.pixels(image)
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(f"{name} is no readable picture: expected {', '.join(_FORMATS)}") from error
        except OSError as error:
            raise DataError(f"{name} is no readable picture: {error.strerror or _line(error)}") from error
        except Exception as error:  # Pillow's decoders can raise almost anything for damaged files
            raise DataError(f"{name} is damaged ({_line(error)})") from error

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels of an opened picture, uint8 (C, H, W).

        Raises:
            DataError: it has 32 bits per pixel.
        """
        from PIL import ImageOps

        image = self._resized(_eight_bits(ImageOps.exif_transpose(image)).convert(_MODES[self.channels]))
        return _center(np.asarray(image).reshape(image.height, image.width, self.channels), *self.hw)

    def resized(self, pixels_chw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return pixels that are decoded already, uint8 (C, H, W) of any number of channels, resized and cropped."""
        from PIL import Image

        channels = [np.asarray(self._resized(Image.fromarray(np.ascontiguousarray(one)))) for one in pixels_chw]
        return _center(np.stack(channels, axis=-1), *self.hw)

    def _resized(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        if self.resize == "none":
            return image
        height, width = self.hw
        stretched = self.resize == "stretch"
        size = (width, height) if stretched else _shorter(image.size, self.resize_to or max(self.hw))
        if size[0] * size[1] > _LARGEST:
            raise DataError(
                f"{image.width} x {image.height} pixels would become {size[0]} x {size[1]} before the crop; "
                f"expected at most {_LARGEST:,}"
            )
        return image.resize(size, Image.Resampling[self.interpolation.upper()])


def quiet_pillow() -> contextlib.AbstractContextManager[object]:
    """Ignore warnings: Pillow warns of palettes with transparency and of odd metadata."""
    return warnings.catch_warnings(action="ignore")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture of 8 bits per channel.

    Raises:
        DataError: it has 32 bits, and so no known range.
    """
    from PIL import Image

    # Older Pillows open grey PNGs of 16 bits in 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 * 2 + 65535) // (2 * 65535)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError("a picture has 32 bits per pixel, whose range is not known; convert it to 8 or 16 bits")
    return image


def _shorter(size: tuple[int, int], to: int) -> tuple[int, int]:
    """Return (width, height) with ``to`` as the shorter side; the longer one is rounded down."""
    width, height = size
    if width <= height:
        return to, int(to * height / width)
    return int(to * width / height), to


def _center(pixels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Return the middle of (H, W, C) as (C, rows, columns), with black around where it is smaller."""
    height, width, _ = pixels.shape
    above, left = max(rows - height, 0) // 2, max(columns - width, 0) // 2
    below, right = max(rows - height, 0) - above, max(columns - width, 0) - left
    padded = np.pad(pixels, ((above, below), (left, right), (0, 0)))
    top, start = round((padded.shape[0] - rows) / 2), round((padded.shape[1] - columns) / 2)
    return np.ascontiguousarray(padded[top : top + rows, start : start + columns].transpose(2, 0, 1))
