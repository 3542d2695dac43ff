"""From a picture file to the pixels of a network's input: decoding, conversion, resizing, cropping."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.preprocessing import PictureSteps
from twoscale.errors import DataError

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
class Preprocessing(PictureSteps):
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
