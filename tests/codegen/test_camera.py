"""Camera pixels to integers in C: equal to a definition on Python's integers, and near to PyTorch's and Pillow's."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.codegen.compiling import SANITIZED, STRICT, build, need
from tests.integer_networks import random_network
from twoscale._codegen.c import export_c
from twoscale._codegen.pixels import pixel_table
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError

FORMATS = ("GREY", "RGB888", "RGB565", "RGB565_SWAPPED", "YUYV", "UYVY")
SIZES = [(9, 8), (20, 14), (5, 6), (1, 2), (33, 50)]


class Picture(ctypes.Structure):
    """The C struct."""

    _fields_ = [
        ("pixels", ctypes.c_void_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("row_bytes", ctypes.c_int32),
        ("format", ctypes.c_int),
    ]


def network_for(channels: int) -> IntegerNetwork:
    rng = np.random.default_rng(channels)
    made = random_network(
        rng, operators={"max_pool"}, length=1, dtype="uint8", image_shape=(channels, 9, 8), name="net"
    )
    return dataclasses.replace(made, metadata={"mean": [0.5] * channels, "std": [0.25] * channels})


@dataclasses.dataclass(frozen=True)
class Camera:
    """The compiled functions of a network."""

    network: IntegerNetwork
    library: ctypes.CDLL

    def read(self, how: str, content: bytes, height: int, width: int, row_bytes: int, form: str) -> NDArray[np.uint8]:
        """Return the integers (C, 9, 8) of a picture."""
        buffer = ctypes.create_string_buffer(content, len(content))
        picture = Picture(ctypes.addressof(buffer), height, width, row_bytes, FORMATS.index(form))
        channels, rows, columns = self.network.input.output.shape
        image = np.zeros((rows, columns, channels), np.uint8)
        getattr(self.library, f"net_read_{how}")(ctypes.byref(picture), ctypes.c_void_p(image.ctypes.data))
        return image.transpose(2, 0, 1)

    @property
    def table(self) -> NDArray[np.uint8]:
        """The integers of pixels, (C, 256)."""
        table = pixel_table(self.network.input.output, self.network.metadata)
        assert table is not None
        return np.asarray(table)


@pytest.fixture(scope="module", params=[1, 3])
def camera(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Camera:
    need("gcc")
    folder = tmp_path_factory.mktemp("camera")
    network = network_for(request.param)
    export_c(network, folder, name="net", camera=True)
    flags = [flag for flag in STRICT if flag != "-O2"]
    built = build("gcc", folder, ["net.c", "net_camera.c"], *flags, "-O1", "-fPIC", "-shared", out="net.so")
    return Camera(network, ctypes.CDLL(str(built)))


def pixels_of(form: str, height: int, width: int) -> tuple[bytes, int, NDArray[np.int64]]:
    """Return random pixels, the bytes of a row with padding, and what they are as RGB (H, W, 3) by definition."""
    rng = np.random.default_rng([FORMATS.index(form), height, width])
    item = {"GREY": 1, "RGB888": 3}.get(form, 2)
    row_bytes = item * width + 5
    raw = rng.integers(0, 256, (height, row_bytes))
    rgb = np.zeros((height, width, 3), np.int64)
    for y in range(height):
        for x in range(width):
            at = raw[y]
            if form == "GREY":
                rgb[y, x] = at[x]
            elif form == "RGB888":
                rgb[y, x] = at[3 * x : 3 * x + 3]
            elif form.startswith("RGB565"):
                low, high = at[2 * x : 2 * x + 2] if form == "RGB565" else at[2 * x : 2 * x + 2][::-1]
                word = int(low) + 256 * int(high)
                parts = ((word >> 11, 31), (word >> 5 & 63, 63), (word & 31, 31))
                rgb[y, x] = [nearest(Fraction(255 * value, most)) for value, most in parts]
            else:
                four = [int(byte) for byte in at[4 * (x // 2) : 4 * (x // 2) + 4]]
                first, u, second, v = four if form == "YUYV" else (four[1], four[0], four[3], four[2])
                luma = second if x % 2 else first
                exact = (
                    luma + Fraction(91881, 65536) * (v - 128),
                    luma - Fraction(22554, 65536) * (u - 128) - Fraction(46802, 65536) * (v - 128),
                    luma + Fraction(116130, 65536) * (u - 128),
                )
                rgb[y, x] = [min(255, max(0, nearest(value))) for value in exact]
    return raw.astype(np.uint8).tobytes(), row_bytes, rgb


def nearest(value: Fraction) -> int:
    """Return the nearest integer, the larger of two."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def in_channels(rgb: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """Return the pixels (C, H, W) of a network with that many channels."""
    if channels == 3:
        return rgb.transpose(2, 0, 1)
    luma: NDArray[np.int64] = (rgb @ np.array([19595, 38470, 7471]) + 32768) >> 16
    return luma[None]


def place_of(index: int, count: int, size: int) -> tuple[int, int, Fraction]:
    """Return the pixels before and after a center, and the weight of the second, in steps of 1/2048."""
    center = min(max(Fraction((2 * index + 1) * size, 2 * count) - Fraction(1, 2), Fraction(0)), Fraction(size - 1))
    before = int(center)
    weight = Fraction(nearest((center - before) * 2048), 2048)
    return before, min(before + 1, size - 1), weight


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMATS)
def test_nearest(form: str, size: tuple[int, int], camera: Camera) -> None:
    content, row_bytes, rgb = pixels_of(form, *size)
    found = camera.read("nearest", content, *size, row_bytes, form)
    channels, rows, columns = found.shape
    pixels = in_channels(rgb, channels)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels[None]).double(), (rows, columns), mode="nearest-exact"
    )
    expected = [table[channel] for table, channel in zip(camera.table, resized[0].long().numpy(), strict=True)]
    assert np.array_equal(found, np.stack(expected))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMATS)
def test_bilinear(form: str, size: tuple[int, int], camera: Camera) -> None:
    content, row_bytes, rgb = pixels_of(form, *size)
    found = camera.read("bilinear", content, *size, row_bytes, form)
    channels, rows, columns = found.shape
    pixels = in_channels(rgb, channels)
    expected = np.zeros(found.shape, np.int64)
    for row in range(rows):
        top, bottom, down = place_of(row, rows, size[0])
        for column in range(columns):
            left, right, across = place_of(column, columns, size[1])
            for channel in range(channels):
                p = pixels[channel]
                upper = int(p[top, left]) * (1 - across) + int(p[top, right]) * across
                lower = int(p[bottom, left]) * (1 - across) + int(p[bottom, right]) * across
                expected[channel, row, column] = nearest(upper * (1 - down) + lower * down)
    assert np.array_equal(
        found, np.stack([table[channel] for table, channel in zip(camera.table, expected, strict=True)])
    )
    near = torch.nn.functional.interpolate(torch.from_numpy(pixels[None]).double(), (rows, columns), mode="bilinear")
    assert np.abs(near[0].numpy() - expected).max() <= 0.75


def test_yuv_is_that_of_pillow() -> None:
    _, _, rgb = pixels_of("YUYV", 20, 14)
    content, row_bytes, _ = pixels_of("YUYV", 20, 14)
    raw = np.frombuffer(content, np.uint8).reshape(20, row_bytes)[:, :28].reshape(20, 7, 4)
    full = np.stack([raw[:, :, ::2].reshape(20, 14), *(raw[:, :, i].repeat(2, 1) for i in (1, 3))], -1)
    pillow = np.asarray(Image.fromarray(full, "YCbCr").convert("RGB"))
    assert np.abs(pillow.astype(int) - rgb).max() <= 1


def test_it_reads_within_the_picture(tmp_path: Path) -> None:
    """AddressSanitizer, with pictures whose last byte is the last of the memory."""
    need("gcc")
    export_c(network_for(3), tmp_path, name="net", camera=True)
    sizes = ", ".join(f"{{{height}, {width}}}" for height, width in SIZES)
    (tmp_path / "main.c").write_text(f"""
#include "net_camera.h"
#include <stdlib.h>
int main(void)
{{
    static const int sizes[][2] = {{{sizes}}};
    static uint8_t image[NET_INPUT_COUNT];
    for (int s = 0; s < {len(SIZES)}; s++)
        for (int form = NET_GREY; form <= NET_UYVY; form++) {{
            const int row = sizes[s][1] * (form == NET_GREY ? 1 : form == NET_RGB888 ? 3 : 2);
            uint8_t *pixels = calloc((size_t)(row * sizes[s][0]), 1);
            const net_picture picture = {{pixels, sizes[s][0], sizes[s][1], row, (net_pixel_format)form}};
            net_read_nearest(&picture, image);
            net_read_bilinear(&picture, image);
            free(pixels);
        }}
    return 0;
}}
""")
    program = build("gcc", tmp_path, ["net.c", "net_camera.c", "main.c"], *SANITIZED, "-O0")
    subprocess.run([program], check=True)


def test_it_is_also_cpp(tmp_path: Path) -> None:
    need("g++")
    export_c(network_for(1), tmp_path, name="net", camera=True)
    build("g++", tmp_path, ["-x", "c++", "net_camera.c"], "-Wall", "-Wextra", "-Werror", "-c", out="a.o")


def test_networks_without_pixels_have_none(tmp_path: Path) -> None:
    made = dataclasses.replace(network_for(3), metadata={})
    with pytest.raises(ConfigurationError, match=re.escape("net does not record how pixels are normalized")):
        export_c(made, tmp_path / "out", camera=True)
    with pytest.raises(ConfigurationError, match="camera is for microcontrollers; expected target portable"):
        export_c(network_for(3), tmp_path / "out", target="native", camera=True)
    assert not (tmp_path / "out").exists()
