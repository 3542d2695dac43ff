"""Pictures against Pillow, and against a reimplementation of torchvision's transforms."""

from __future__ import annotations

import array
import fcntl
import gc
import io
import pickle
import random
import signal
import struct
import termios
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from twoscale import data
from twoscale.data import Preprocessing
from twoscale.data import _assembly as assembly
from twoscale.data import _pictures as pictures
from twoscale.data._worker import Request, Worker
from twoscale.errors import ConfigurationError, DataError

ORIENTATION = 0x0112
SIZES = [
    *((1, 1), (1, 2), (2, 1), (3, 5), (7, 7), (31, 33), (33, 31), (64, 64), (100, 30), (30, 100), (640, 3), (4000, 30)),
    *((2, 2), (5, 3), (23, 24), (24, 24), (25, 24)),
]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]
FORMATS = {
    "CMYK": ["TIFF", "JPEG"],
    "YCbCr": ["JPEG"],
    "I;16": ["PNG", "TIFF"],
    "P": ["PNG", "GIF"],
    "RGB": ["PNG", "BMP", "WEBP", "TIFF"],
    "RGBA": ["PNG", "WEBP"],
}

Pixels = NDArray[np.uint8]


def odd_pictures() -> Iterator[tuple[str, bytes, int]]:
    """Yield (name, file, EXIF orientation) of pictures of many sizes, modes and formats."""
    generator = np.random.default_rng(0)
    for mode in MODES:
        for width, height in SIZES:
            colour = Image.fromarray(generator.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
            if mode == "I;16":
                image = Image.fromarray(generator.integers(0, 65536, (height, width), dtype=np.uint16))
            elif mode in ("LA", "RGBA"):
                image = colour.convert(mode)
            else:
                image = colour.convert("RGB").convert(mode)
            for form in FORMATS.get(mode, ["PNG"]):
                options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
                orientation = int(generator.integers(0, 9)) if form in ("PNG", "JPEG", "WEBP", "TIFF") else 0
                if orientation:
                    exif = Image.Exif()
                    exif[ORIENTATION] = orientation
                    options["exif"] = exif
                image.save(content := io.BytesIO(), form, **options)
                yield f"{mode} {width}x{height} {form} {orientation}", content.getvalue(), orientation


PICTURES = list(odd_pictures())


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return (H, W, ...) oriented by the table of Orientation in EXIF 2.3."""
    swap = (1, 0, *range(2, pixels.ndim))
    found: NDArray[Any] = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(swap),
        6: lambda p: p.transpose(swap)[:, ::-1],
        7: lambda p: p.transpose(swap)[::-1, ::-1],
        8: lambda p: p.transpose(swap)[::-1],
    }.get(orientation, lambda p: p)(pixels)
    return found


def expected(content: bytes, orientation: int, size: int, to: int, resampling: Image.Resampling, mode: str) -> Pixels:
    """Return the result of torchvision's Resize(to) and CenterCrop(size), after EXIF."""
    with Image.open(io.BytesIO(content)) as image:
        if image.mode.startswith("I"):
            values = np.asarray(image).astype(float)
            grey = Image.fromarray(np.floor(values * 255 / 65535 + 0.5).astype(np.uint8))
            converted = grey.convert(mode)
        else:
            converted = image.convert(mode)
        if image.format == "TIFF":
            orientation = 1  # Pillow rotates it when decoding
    upright = Image.fromarray(np.ascontiguousarray(turned(np.asarray(converted), orientation)), mode)
    # torchvision.transforms.functional._compute_resized_output_size
    width, height = upright.size
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(to * long / short)
    upright = upright.resize((to, new_long) if width <= height else (new_long, to), resampling)
    pixels = np.asarray(upright).reshape(upright.height, upright.width, -1)
    # torchvision.transforms.functional.center_crop
    height, width = pixels.shape[:2]
    if size > width or size > height:
        left = (size - width) // 2 if size > width else 0
        top = (size - height) // 2 if size > height else 0
        right = (size - width + 1) // 2 if size > width else 0
        bottom = (size - height + 1) // 2 if size > height else 0
        pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)))
        height, width = pixels.shape[:2]
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return pixels[top : top + size, left : left + size].transpose(2, 0, 1)


def test_there_are_enough_odd_pictures() -> None:
    assert len(PICTURES) >= 200
    assert {orientation for _, _, orientation in PICTURES} == set(range(9))


@pytest.mark.parametrize(("size", "to"), [(24, 24), (24, 32), (33, 21)])
@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
@pytest.mark.filterwarnings("ignore")
def test_pixels_are_those_of_pillow_and_torchvision(size: int, to: int, filter_: Any) -> None:
    for channels, mode in ((3, "RGB"), (1, "L")):
        how = Preprocessing(size, resize_to=to, interpolation=filter_, channels=channels)  # type: ignore[arg-type]
        for name, content, orientation in PICTURES:
            right = expected(content, orientation, size, to, Image.Resampling[filter_.upper()], mode)
            found = how.read(content)
            assert found.dtype == np.uint8
            assert found.shape == how.shape
            assert np.array_equal(found, right), name


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_brings_the_same_picture_upright(orientation: int, form: str) -> None:
    upright = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    # The orientation turns the stored picture into the upright one.
    stored = next(
        candidate
        for turn in range(4)
        for candidate in (np.rot90(upright, turn), np.rot90(upright[:, ::-1], turn))
        if turned(candidate, orientation).shape == upright.shape
        and np.array_equal(turned(candidate, orientation), upright)
    )
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(content := io.BytesIO(), form, exif=exif)
    found = Preprocessing(12, resize="stretch", interpolation="nearest").read(content.getvalue())
    assert np.array_equal(found, upright.repeat(2, 0).repeat(3, 1).transpose(2, 0, 1))


def test_alpha_is_kept_for_four_channels_and_dropped_for_fewer() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    for channels in (3, 4):
        found = Preprocessing(8, channels=channels).read(content.getvalue())
        assert np.array_equal(found, pixels[:, :, :channels].transpose(2, 0, 1))


def test_sixteen_bits_become_eight_by_rounding() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(content := io.BytesIO(), "PNG")
    found = Preprocessing(256, channels=1).read(content.getvalue())
    assert np.array_equal(found[0], ((values.astype(np.int64) * 510 + 65535) // 131070).astype(np.uint8))
    assert (found[0, 0, 128], found[0, 0, 129]) == (0, 1)  # 0.5 is at 128.5


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_files_that_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(good := io.BytesIO(), "PNG")
    huge = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b"")
    )
    Image.fromarray(np.zeros((4, 4), np.float32)).save(floats := io.BytesIO(), "TIFF")
    for content, message in (
        (b"", "is no readable picture"),
        (b"hello", "is no readable picture"),
        (good.getvalue()[:60], "is no readable picture|is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "is no readable picture"),
        (huge, "pixels; expected at most|is damaged"),
        (floats.getvalue(), "32 bits per pixel"),
    ):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            Preprocessing().read(tmp_path / "x.png")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"none\.png is no readable picture: No such file"):
        Preprocessing().read(tmp_path / "none.png")


def outcome(how: Preprocessing, content: bytes) -> str:
    """Return "" if a file gives pixels, else the message."""
    try:
        assert how.read(content).shape == how.shape
    except DataError as error:
        return str(error)
    return ""


def test_mutated_files_give_pixels_or_one_line() -> None:
    generator = random.Random(0)
    how = Preprocessing(16)
    contents = [content for name, content, _ in PICTURES if " 31x33 " in name or " 7x7 " in name]
    for number in range(600):
        content = bytearray(generator.choice(contents))
        for _ in range(generator.randrange(1, 5)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        if number % 3 == 0:
            del content[generator.randrange(len(content)) :]
        assert "\n" not in outcome(how, bytes(content))


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"size": 5000}, {"resize_to": 0}, {"channels": 2}, {"resize": "stretch", "resize_to": 3}],
    ids=str,
)
def test_numbers_outside_their_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Preprocessing(**options)


def make(path: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write pictures of one colour each, which names class and number."""
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            file = path / name / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 7), (label, number, seed)).save(file)


HOW = Preprocessing(8)


def test_a_folder_divided_by_the_user(tmp_path: Path) -> None:
    for part, seed in (("train", 1), ("val", 2)):
        make(tmp_path / "my pictures" / part, {"cat": 5, "dog": 3}, seed)
    found = data.image_folder(tmp_path / "my pictures", HOW)
    assert (found.name, found.classes) == (str(tmp_path / "my pictures"), ("cat", "dog"))
    assert found.preprocessing == HOW
    assert (len(found.train), len(found.test)) == (8, 8)
    assert found.train.labels.tolist() == [0] * 5 + [1] * 3
    assert found.train.images[:, :, 0, 0].tolist() == [[int(i > 4), i if i < 5 else i - 5, 1] for i in range(8)]
    assert set(found.test.images[:, 2].flatten().tolist()) == {2}
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    assert found.source.endswith("my pictures (train and val)")


def test_a_folder_that_is_divided_here(tmp_path: Path) -> None:
    make(tmp_path / "x", {"a": 50, "b": 10, "c": 2})
    found = data.image_folder(tmp_path / "x", HOW)
    assert np.bincount(found.test.labels).tolist() == [10, 2, 1]
    assert np.bincount(found.train.labels).tolist() == [40, 8, 1]
    both = np.concatenate([split.images[:, :2, 0, 0] for split in (found.train, found.test)])
    assert len({tuple(row) for row in both.tolist()}) == 62
    again, other = data.image_folder(tmp_path / "x", HOW), data.image_folder(tmp_path / "x", HOW, seed=1)
    assert np.array_equal(again.test.images, found.test.images)
    assert not np.array_equal(other.test.images, found.test.images)
    assert found.source.endswith("(0.2 of each class for testing, seed 0)")


def test_damaged_files_are_named_and_counted(tmp_path: Path) -> None:
    make(tmp_path / "x", {"a": 10, "b": 10})
    for number in range(7):
        (tmp_path / "x" / "b" / f"{number:03}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"7 of 20 pictures cannot be read: .*b/00\d\.png .*; and 2 more; replace them"):
        data.image_folder(tmp_path / "x", HOW)
    lines: list[str] = []
    found = data.image_folder(tmp_path / "x", HOW, skip_damaged=True, on_damaged=lines.append)
    assert (len(lines), len(found.train) + len(found.test)) == (7, 13)
    assert "; 7 damaged pictures left out)" in found.source
    places = np.concatenate([split.images[split.labels == 1][:, 1, 0, 0] for split in (found.train, found.test)])
    assert sorted(places.tolist()) == [7, 8, 9]


def test_more_than_256_classes_and_other_channels(tmp_path: Path) -> None:
    make(tmp_path / "x", {f"{i:03}": 2 for i in range(300)})
    found = data.image_folder(tmp_path / "x", Preprocessing(1, channels=1), mean=[0.1], std=[0.2])
    assert found.train.labels.dtype == np.uint16
    assert found.train.labels.tolist() == list(range(300))
    assert (found.train.images.shape, found.mean, found.std) == ((300, 1, 1, 1), (0.1,), (0.2,))


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    make(tmp_path / "one", {"a": 3})
    make(tmp_path / "few", {"a": 3, "b": 1})
    make(tmp_path / "differ" / "train", {"a": 3, "b": 3})
    make(tmp_path / "differ" / "test", {"a": 3, "c": 3})
    make(tmp_path / "empty", {"a": 3})
    (tmp_path / "empty" / "b").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        ("none", "none does not exist: expected a folder of pictures"),
        ("file", "file is no folder: expected a folder of pictures"),
        ("one", "one has 1 folders with pictures; expected at least 2"),
        ("few", "b has 1 pictures, of which none would be left to train with"),
        ("differ", r"train and test have different classes \(b, c\)"),
        ("empty", r"b has no pictures \(.*\); expected a folder per class"),
    ):
        with pytest.raises(DataError, match=message):
            data.image_folder(tmp_path / name, HOW)
    for options in ({"test_fraction": 0.0}, {"test_fraction": 1.0}, {"seed": -1}, {"std": [0, 1, 1]}, {"mean": [1, 2]}):
        with pytest.raises(ConfigurationError):
            data.image_folder(tmp_path / "one", HOW, **options)


def test_the_largest_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 20)).save(content := io.BytesIO(), "PNG")
    monkeypatch.setattr(pictures, "_LARGEST", 399)
    with pytest.raises(DataError, match="the picture has 20 x 20 pixels; expected at most 399"):
        Preprocessing(8).read(content.getvalue())


@pytest.fixture
def streaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data.Dataset:
    """A data set that is too large for memory, with a damaged picture."""
    make(tmp_path / "x", {"a": 23, "b": 19})
    monkeypatch.setattr(assembly, "_IN_MEMORY", 100)
    return data.image_folder(tmp_path / "x", HOW)


def test_streamed_pixels_are_those_in_memory(tmp_path: Path, streaming: data.Dataset) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "_IN_MEMORY", 1 << 29)
        whole = data.image_folder(tmp_path / "x", HOW)
    train, expected = streaming.train, whole.train
    assert train.streamed
    assert not expected.streamed
    images = train.images
    assert isinstance(images, data.StreamedImages)
    assert (images.shape, len(images)) == (expected.images.shape, len(expected))
    assert images.dtype == np.uint8
    assert np.array_equal(np.asarray(images), expected.images)
    assert np.array_equal(images[3], expected.images[3])
    assert np.array_equal(np.asarray(images[5:30:2]), expected.images[5:30:2])
    assert np.array_equal(np.asarray(train.head(4).images), expected.images[:4])
    order = data.epoch_order(len(train), seed=1, epoch=2)
    streamed = list(data.batches(images, train.labels, 5, order))
    kept = list(data.batches(expected.images, expected.labels, 5, order))
    assert len(streamed) == len(kept) == 7
    for (a, a_labels), (b, b_labels) in zip(streamed, kept, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a_labels, b_labels)


def test_a_reader_that_stops_early_leaves_workers_that_go_on(streaming: data.Dataset) -> None:
    images = streaming.train.images
    first = next(iter(data.batches(images, streaming.train.labels, 3)))[0]
    assert np.array_equal(first, np.asarray(images[:3]))


def test_a_damaged_picture_is_reported_when_it_is_reached(tmp_path: Path, streaming: data.Dataset) -> None:
    damaged = tmp_path / "x" / "a" / "003.png"
    damaged.write_bytes(b"no picture")
    part = next(part for part in (streaming.train, streaming.test) if str(damaged) in part.images._paths)
    with pytest.raises(DataError, match=r"003\.png is no readable picture: .*; replace it, or leave damaged") as caught:
        for _ in data.batches(part.images, part.labels, 4):
            pass
    assert str(caught.value).count("003.png") == 1
    lines: list[str] = []
    found = data.image_folder(tmp_path / "x", HOW, skip_damaged=True, on_damaged=lines.append)
    assert (len(lines), len(found.train) + len(found.test)) == (1, 41)
    assert "003.png" in lines[0]
    assert "; 1 damaged pictures left out)" in found.source
    for split in (found.train, found.test):
        assert len(np.asarray(split.images)) == len(split)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the state of a process in /proc")
def test_a_worker_that_is_stopped_and_continued_sends_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system call that writes into a full pipe then returns early."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    worker = Worker()
    try:
        process = worker._process

        def wait_for(state: str) -> None:
            while psutil.Process(process.pid).status() != state:
                time.sleep(0.001)

        def full() -> bool:
            assert process.stdout is not None
            waiting = array.array("i", [0])
            fcntl.ioctl(process.stdout, termios.FIONREAD, waiting)
            return waiting[0] >= 1 << 15

        def stop_and_continue() -> None:
            while not full():
                time.sleep(0.001)
            wait_for(psutil.STATUS_SLEEPING)
            process.send_signal(signal.SIGSTOP)
            wait_for(psutil.STATUS_STOPPED)
            process.send_signal(signal.SIGCONT)

        request = pickle.dumps(Request((str(tmp_path / "large.png"),), Preprocessing((300, 400), resize="none")))
        assert process.stdin is not None
        process.stdin.write(len(request).to_bytes(8, "little") + request)
        process.stdin.flush()
        stop_and_continue()
        process.stdin.close()  # it ends, and so does what it has sent
        assert process.stdout is not None
        assert process.stdout.read() == b"\0" + pixels.transpose(2, 0, 1).tobytes()
    finally:
        worker.close()


def test_workers_end_with_the_images(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7)).save(tmp_path / "x.png")
    before = set(psutil.Process().children())
    images = data.StreamedImages([str(tmp_path / "x.png")], HOW)
    np.asarray(images)
    workers = set(psutil.Process().children()) - before
    assert workers
    del images
    gc.collect()
    gone, alive = psutil.wait_procs(list(workers), timeout=30)
    assert len(gone) == len(workers)
    assert not alive


def test_a_worker_that_dies_is_one_line(streaming: data.Dataset) -> None:
    images = streaming.train.images
    np.asarray(images[:1])
    for worker in psutil.Process().children():
        worker.kill()
    with pytest.raises(DataError, match=r"a process that decodes pictures (ended|was killed, usually)"):
        np.asarray(images)


def test_other_shapes_than_squares() -> None:
    content = next(content for name, content, _ in PICTURES if name.startswith("RGB 100x30 PNG"))
    wide = Preprocessing((8, 20), resize="stretch", interpolation="bicubic")
    assert wide.shape == (3, 8, 20)
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    right = np.asarray(upright.resize((20, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(wide.read(content), right.transpose(2, 0, 1))
    cropped = Preprocessing((8, 20), resize="none").read(content)
    pixels = np.asarray(upright)
    top, left = round((pixels.shape[0] - 8) / 2), round((pixels.shape[1] - 20) / 2)
    assert np.array_equal(cropped, pixels[top : top + 8, left : left + 20].transpose(2, 0, 1))
    assert Preprocessing((8, 8)) == Preprocessing(8)
    assert str(Preprocessing(224, resize_to=256)) == (
        "RGB, the shorter side resized to 256 (bilinear, antialias), center crop 224x224"
    )


def test_a_thin_picture_does_not_take_the_memory() -> None:
    Image.new("L", (60_000, 1)).save(content := io.BytesIO(), "PNG")
    with pytest.raises(DataError, match="60000 x 1 pixels would become 13440000 x 224 before the crop"):
        Preprocessing(224).read(content.getvalue())
