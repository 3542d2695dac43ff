"""From a picture file to the pixels of a network's input: decoding, conversion, resizing, cropping."""

from __future__ import annotations

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

__all__ = ["SUFFIXES", "Preprocessing"]

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
    ``Resize(resize_to)``, ``CenterCrop(size)``.

    Raises:
        ConfigurationError: a number outside its range.
    """

    size: int = 224
    """Height and width of the result, 1 to 4096."""
    resize: Literal["shorter", "exact"] = "shorter"
    """shorter: the shorter side becomes ``resize_to``, and the other keeps the ratio, rounded down. exact: both sides
    become ``size``, and the ratio changes; nothing is left to crop."""
    resize_to: int | None = None
    """Length of the shorter side. Default: ``size``; torchvision's evaluation of ImageNet has 256 for 224."""
    crop: Literal["center"] = "center"
    """center: the middle; a position between two pixels is rounded to the even one. Smaller pictures get black
    borders."""
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bilinear"
    channels: Literal[1, 3, 4] = 3

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("resize_to", self.resize_to)):
            if value is not None and not 1 <= value <= 4096:
                raise ConfigurationError(f"{name} is {value}; expected 1 to 4096")
        if self.channels not in _MODES:
            raise ConfigurationError(f"channels is {self.channels}; expected 1, 3 or 4")
        if self.resize == "exact" and self.resize_to is not None:
            raise ConfigurationError("resize_to is for resize shorter; exact resizes to size")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the result."""
        return self.channels, self.size, self.size

    def read(self, picture: Path | bytes) -> NDArray[np.uint8]:
        """Return the pixels of a picture file, uint8 (C, H, W).

        Args:
            picture: a file, or its content: PNG, JPEG, GIF, BMP, WebP, TIFF or PPM.

        Raises:
            DataError: it cannot be read, is damaged, is of another format, or has more than 2^27 pixels.
        """
        from PIL import Image

        name = str(picture) if isinstance(picture, Path) else "the picture"
        try:
            # Palettes with transparency and odd metadata make Pillow warn.
            with (
                warnings.catch_warnings(action="ignore"),
                Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=_FORMATS) as image,
            ):
                width, height = image.size
                if width * height > _LARGEST:
                    raise DataError(f"{name} has {width} x {height} pixels; expected at most {_LARGEST:,}")
                return self._pixels(image)
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"{name} is no readable picture: {error.strerror or _line(error)}") from error
        except Exception as error:  # Pillow's decoders can raise almost anything for damaged files
            raise DataError(f"{name} is damaged ({_line(error)})") from error

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        from PIL import Image, ImageOps

        image = _eight_bits(ImageOps.exif_transpose(image)).convert(_MODES[self.channels])
        resampling = Image.Resampling[self.interpolation.upper()]
        if self.resize == "exact":
            image = image.resize((self.size, self.size), resampling)
        else:
            image = image.resize(_shorter(image.size, self.resize_to or self.size), resampling)
        return _center(np.asarray(image).reshape(image.height, image.width, self.channels), self.size)


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


def _center(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the middle of (H, W, C) as (C, size, size), with black around where it is smaller."""
    height, width, _ = pixels.shape
    above, left = max(size - height, 0) // 2, max(size - width, 0) // 2
    below, right = max(size - height, 0) - above, max(size - width, 0) - left
    padded = np.pad(pixels, ((above, below), (left, right), (0, 0)))
    top, start = round((padded.shape[0] - size) / 2), round((padded.shape[1] - size) / 2)
    return np.ascontiguousarray(padded[top : top + size, start : start + size].transpose(2, 0, 1))
