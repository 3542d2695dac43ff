"""What several verbs share: output, and loading the models, networks and images that the user names."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import msgspec
import tyro
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from twoscale import data
from twoscale._cli.ending import say
from twoscale._cli.filekinds import PROGRAM, TFLITE, foreign_kind
from twoscale._files import record_to_json
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.preprocessing import pixel_normalization
from twoscale._metrics import CountedBatches
from twoscale._text import printable
from twoscale.data import Preprocessing
from twoscale.data._function import is_function
from twoscale.data._pipeline import fitting_batch
from twoscale.errors import ConfigurationError, DataError, NetworkFileError
from twoscale.models._files import MODEL_FILE, program
from twoscale.models._references import options_of

if TYPE_CHECKING:
    from torch import nn

    from twoscale._codegen.c import Budget
    from twoscale.models import ModelInfo, Published

__all__ = [
    "AS_RECORDED",
    "Channels",
    "DataName",
    "File",
    "ImageOrigin",
    "ModelArgs",
    "ModelName",
    "PictureOptions",
    "Pictures",
    "Size",
    "as_pixels",
    "at_least_one",
    "batches_of",
    "budget_of",
    "check_takes_pictures",
    "command",
    "console",
    "dataset_for",
    "is_integer_file",
    "load_data",
    "load_float",
    "load_model",
    "origin_of",
    "parse_bits",
    "parse_memory",
    "print_json",
    "print_line",
    "recorded",
    "require_file",
    "require_integer_file",
    "require_weights",
    "verify_with",
]

File = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
"""A file given as a positional argument."""

DataName = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
"""A data set; by default the one recorded in the file."""

ModelName = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
"""A model by its name, or where the user's own stands; by default the one recorded in the file."""

ModelArgs = Annotated[str | None, tyro.conf.arg(metavar="NAME=VALUE,...")]
"""Options of the model."""

Size = Annotated[str | None, tyro.conf.arg(metavar="SIZE")]
"""Bytes, such as 512M."""

Channels = Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="R G B")]
"""One number per channel of the images."""


@dataclass(frozen=True)
class PictureOptions:
    """How pictures of the user's own become pixels, each unset unless given."""

    size: Annotated[str | None, tyro.conf.arg(metavar="N|HxW")] = None
    """Height and width of the pictures that the network gets, e.g. 224 or 96x128 (height x width): the center of
    the resized picture. Default: the recorded size, or else 224."""
    resize: Literal["shorter", "stretch", "none"] | None = None
    """shorter: the shorter side becomes resize-to, and the ratio stays. stretch: the picture becomes the size, and its
    ratio changes. none: it is only cropped. Default: shorter."""
    resize_to: int | None = None
    """Length of the shorter side before the crop. Default: the size."""
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] | None = None
    """Filter that resizes, with antialias, as Pillow and torchvision do. Default: bilinear."""
    channels: Literal[1, 3, 4] | None = None
    """Channels: 1 for grey, 3 for RGB, 4 for RGBA. Default: 3."""
    skip_damaged: bool = False
    """Leave out pictures that cannot be read, and name them."""

    def given(self) -> dict[str, Any]:
        """Return the fields of ``Preprocessing`` that are given.

        Raises:
            ConfigurationError: the size has another form.
        """
        found = {name: value for name, value in asdict(self).items() if value is not None and name != "skip_damaged"}
        if self.size is not None:
            words = self.size.lower().split("x")
            if not (1 <= len(words) <= 2 and all(word.isdecimal() for word in words)):
                raise ConfigurationError(f"--size is {self.size}; expected pixels, e.g. 224 or 96x128 (height x width)")
            found["size"] = int(words[0]) if len(words) == 1 else (int(words[0]), int(words[1]))
        return found


AS_RECORDED = PictureOptions()
"""No option given."""

Pictures = Annotated[PictureOptions, tyro.conf.arg(name="")]
"""The options of pictures, among a verb's own."""


_WEIGHTS = "weights (.safetensors, .pt, .pth, .ckpt, .pt2, float .onnx, .tflite, or a folder with a model.safetensors)"

_UNLIMITED = 100_000
"""Columns of an output that is no terminal."""


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # rich would exit with 1, which here means that integers differ

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = (printable(line) for line in segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)


def console() -> Console:
    """Return a console for standard output that shows text from files safely.

    Its width is that of the terminal. Piped output is not wrapped unless COLUMNS is set, so that a name stays in one
    line for grep and awk.
    """
    unlimited = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _Console(highlight=False, width=_UNLIMITED if unlimited else None)


def print_line(text: str) -> None:
    """Write one line to standard output; a terminal wraps it, and nothing in it is taken as markup."""
    console().print(text, markup=False, soft_wrap=True)


def print_json(record: object) -> None:
    """Write a record to standard output as JSON."""
    sys.stdout.write(record_to_json(record))


def command(*words: str | Path) -> str:
    """Return a command line of ``twoscale`` for the user to copy."""
    return shlex.join(["twoscale", *map(str, words)])


def verify_with(
    network: Path, weights: Path, model: str | None, model_args: str | None, pictures: PictureOptions
) -> str:
    """Return the command that compares an integer network with the weights that it was made from."""
    words: list[str | Path] = ["verify", network, "--checkpoint", weights]
    for option, value in (("--model", model), ("--model-args", model_args)):
        words += [] if value is None else [option, value]
    return command(*words, *(["--skip-damaged"] if pictures.skip_damaged else []))


def require_integer_file(path: Path) -> Path:
    """Return ``path`` if it is a file that may hold an integer network.

    Raises:
        ConfigurationError: it is not; says what was expected.
    """
    return require_file(path, "an integer network (.onnx or .tflite)", tflite=True)


def require_file(path: Path, what: str, *, tflite: bool = False) -> Path:
    """Return ``path`` if it is a file.

    Args:
        path: any.
        what: a description of what is expected.
        tflite: whether a TensorFlow Lite file is.

    Raises:
        ConfigurationError: it is not; says what was expected.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is no ordinary file" if path.exists() else "does not exist"
        raise ConfigurationError(f"{path} {found}; expected {what}")
    if (kind := foreign_kind(path)) is not None and not (tflite and kind == TFLITE):
        if kind == TFLITE:
            raise ConfigurationError(f"{path} is {kind}, which this command does not read; expected {what}")
        raise ConfigurationError(f"{path} is {kind}, which twoscale does not read; expected {what}")
    return path


def require_weights(path: Path, what: str, *, tflite: bool = False) -> None:
    """Check that ``path`` is a file of weights or of a program, or a folder with weights in it.

    Raises:
        ConfigurationError: it is neither; says what was expected.
    """
    if not (path / MODEL_FILE).is_file() and not (path.is_file() and foreign_kind(path) == PROGRAM):
        require_file(path, what, tflite=tflite)


def at_least_one(option: str, value: int | None) -> None:
    """Check a number of images.

    Raises:
        ConfigurationError: it is less than 1.
    """
    if value is not None and value < 1:
        raise ConfigurationError(f"{option} is {value}; expected at least 1")


def parse_memory(option: str, text: str) -> int:
    """Return bytes from "512M", "2G", "1.5G", "800K" or "1000000"; units are powers of 1,024.

    Raises:
        ConfigurationError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([kKmMgG]?)(?:i?[bB])?", text.strip())
    size = float(match[1]) * 1024 ** " KMG".index(match[2].upper() or " ") if match else 0.0
    if not 1 <= size < 2**63:
        raise ConfigurationError(f"{option} is {text}; expected a size such as 512M or 2G")
    return int(size)


def budget_of(max_ram: str | None, max_flash: str | None) -> Budget:
    """Return the bytes of --max-ram and --max-flash.

    Raises:
        ConfigurationError: one of them is no size.
    """
    from twoscale._codegen.c import Budget

    return Budget(
        None if max_ram is None else parse_memory("--max-ram", max_ram),
        None if max_flash is None else parse_memory("--max-flash", max_flash),
    )


def parse_bits(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of bits in a list such as 2,3,4.

    Raises:
        ConfigurationError: something else, or a number outside 2 to 8.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and 2 <= int(word) <= 8 for word in words):
        raise ConfigurationError(f"{option} is {text}; expected numbers from 2 to 8 with commas, e.g. 4,6")
    return tuple(int(word) for word in words)


def load_float(
    path: Path, model: str | None, model_args: str | None = None
) -> tuple[nn.Module, ModelInfo | Published | None]:
    """Load weights: of this library, whose files name their model, or of any origin for a named model.

    Args:
        path: the file; "#part" after it names the weights to take where it holds several that fit.
        model: name of the model, or where the user's own stands; None: the file names it.
        model_args: options of the named model.

    Returns:
        The model, and what is known of the images it expects: the file's metadata, or else how the model's published
        weights were trained.
    """
    from twoscale import models

    part = None
    if not path.exists() and "#" in path.name:
        name, part = path.name.split("#", 1)
        path = path.with_name(name)
    require_weights(path, _WEIGHTS, tflite=True)
    if path.suffix in (".onnx", ".tflite"):
        _refuse_integers(path)
        if model is not None:
            raise ConfigurationError(f"{path} is a whole network, which needs no model; leave out --model")
    if model is None:
        if model_args is not None:
            raise ConfigurationError("--model-args are options of the model that --model names; give --model too")
        if (network := program(path)) is not None:
            return network, None
        return models.load_checkpoint(path)
    options = {} if model_args is None else options_of(model_args)
    network = models.load(model, path, part=part, **options)
    return network, models.read_info(path) or models.published(model)


def is_integer_file(path: Path) -> bool:
    """Whether a file is to be read as an integer network: every .onnx or .tflite file that is not a float network."""
    from twoscale._formats import is_tflite
    from twoscale._frontends import onnx_float, tflite_float

    if is_tflite(path):
        return not tflite_float.is_float(path)
    return path.suffix == ".onnx" and not onnx_float.is_float(path)


def _refuse_integers(path: Path) -> None:
    """Refuse an integer network in place of a float one.

    Raises:
        ConfigurationError: it is one.
        NetworkFileError: it is neither, or damaged.
    """
    from twoscale._formats import load

    if is_integer_file(path):
        load(path)
        raise ConfigurationError(
            f"{path} is an integer network already; check it with twoscale verify, write its C with twoscale export, "
            "or give the float network (.safetensors, .pt, .pth, .pt2, float .onnx or .tflite)"
        )


def load_model(path: Path, model: str | None, model_args: str | None) -> nn.Module:
    """Load weights without their description."""
    return load_float(path, model, model_args)[0]


class ImageOrigin(msgspec.Struct, frozen=True):
    """The images that a network was made with, as far as its file records them."""

    data: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    """Their names."""


def recorded(origin: ModelInfo | Published | IntegerNetwork | None) -> ImageOrigin:
    """Return what a file records of the images.

    Raises:
        NetworkFileError: the metadata of an integer network has other types.
        ConfigurationError: an integer network has several inputs, and a data set has one image per label.
    """
    if origin is None:
        return ImageOrigin()
    if not isinstance(origin, IntegerNetwork):
        preprocessing = getattr(origin, "preprocessing", None)  # published weights have none
        classes = getattr(origin, "classes", None)
        return ImageOrigin(origin.data, tuple(origin.mean), tuple(origin.std), preprocessing, classes)
    if len(origin.inputs) > 1:
        raise ConfigurationError(
            f"{origin.name} has {len(origin.inputs)} inputs, {origin.input_layout.text()}, and a data set has images "
            "alone; use the library, e.g. twoscale.verify(network, batches of tuples)"
        )
    try:
        found = msgspec.convert({key: origin.metadata.get(key) for key in ImageOrigin.__struct_fields__}, ImageOrigin)
    except msgspec.ValidationError as error:
        raise NetworkFileError(
            f"the metadata of {origin.name} does not describe its images: {error}; expected a name in data, and one "
            "number per channel in mean and std"
        ) from error
    for key, values in (("mean", found.mean), ("std", found.std)):
        if values is not None and not all(map(math.isfinite, values)):
            raise NetworkFileError(f"the metadata of {origin.name} has a {key} that is not finite")
    if found.mean is None and found.std is None:  # made by twoscale.quantize, with the normalization inside or without
        inside = pixel_normalization(origin.metadata, origin.input.output.shape[0])
        if inside is not None:
            found = ImageOrigin(found.data, *inside, found.preprocessing, found.classes)
    return found


def load_data(name: str, known: Preprocessing | None, pictures: PictureOptions) -> data.Dataset:
    """Load a data set by its name or path.

    Args:
        name: of the data set, or where the user's own pictures are.
        known: the recorded preprocessing.
        pictures: the options given, which take precedence.

    Raises:
        ConfigurationError: options that the data set does not take.
        UnknownNameError: there is no such data set.
        DataError: it cannot be had.
    """
    given = pictures.given()
    if name in data.names():
        if given or pictures.skip_damaged:
            raise ConfigurationError(
                f"the data set {name} has images of a fixed size; --size, --resize, --channels and "
                "--skip-damaged are for pictures of your own"
            )
        return data.load(name)
    if "size" in given and "resize_to" not in given and known is not None:
        known = replace(known, resize_to=None)  # it belonged to the recorded size
    if given.get("resize", "shorter") != "shorter" and known is not None and "resize_to" not in given:
        known = replace(known, resize_to=None)
    how = replace(known or Preprocessing(), **given) if given else known
    return data.load(
        name,
        preprocessing=how,
        skip_damaged=pictures.skip_damaged,
        on_damaged=lambda line: say(f"left out: {line}"),
    )


def dataset_for(
    name: str | None,
    known: ImageOrigin,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pictures: PictureOptions = AS_RECORDED,
) -> data.Dataset:
    """Load a data set with the normalization that a network expects.

    Args:
        name: the data set, or a folder of pictures; None: the one in ``known``, or else digits, with a warning.
        known: from ``recorded``.
        mean: of pixels / 255 in each channel, instead of the recorded mean.
        std: standard deviation likewise.
        pictures: how pictures become pixels, instead of what is recorded.

    Raises:
        ConfigurationError: a deviation that is not positive.
        UnknownNameError: there is no such data set.
        DataError: it cannot be had.
    """
    if std is not None and not all(value > 0 for value in std):
        raise ConfigurationError(f"--std is {_numbers(std)}; expected positive numbers")
    if name is None and known.data is not None and is_function(known.data):
        raise ConfigurationError(
            f"the file names {known.data} as its pictures, whose code runs only if you name it (--data {known.data})"
        )
    if name is None and known.data is None:
        say("the file does not record a data set; using digits (choose another with --data)")
    chosen = name or known.data or "digits"
    dataset = load_data(chosen, known.preprocessing, pictures)
    means, deviations = (
        tuple(float(value) for value in given or recorded or own)
        for given, recorded, own in ((mean, known.mean, dataset.mean), (std, known.std, dataset.std))
    )
    channels = f"--channels {len(means)}, or " if dataset.preprocessing is not None and len(means) in (1, 3, 4) else ""
    if len(means) != len(dataset.mean) or len(deviations) != len(dataset.std) or not all(x > 0 for x in deviations):
        raise ConfigurationError(
            f"the file records mean {_numbers(means)} and std {_numbers(deviations)}, but images of {dataset.name} "
            f"have {len(dataset.mean)} channels; give {channels}--mean and --std"
        )
    return replace(dataset, mean=means, std=deviations)


def check_takes_pictures(network: nn.Module | IntegerNetwork, dataset: data.Dataset) -> None:
    """Check that a network takes pictures of the user's own as they are prepared.

    Raises:
        DataError: it does not; names the options that change their size.
    """
    split = dataset.train if len(dataset.train) else dataset.test
    if dataset.preprocessing is None or not len(split):
        return
    if not isinstance(network, IntegerNetwork):
        from twoscale.training._accuracy import output_for_one, picture_options

        output_for_one(network, split, dataset.mean, dataset.std, hint=picture_options(dataset))
        return
    expected, shape = network.input.output.shape, tuple(split.images.shape[1:])
    if shape != expected:
        options = f"--channels {expected[0]} --size {'x'.join(map(str, expected[1:]))}" if len(expected) == 3 else ""
        raise DataError(
            f"{network.name} takes images of {' x '.join(map(str, expected))}, but the pictures of {dataset.name} "
            f"become {' x '.join(map(str, shape))}" + (options and f"; give {options}")
        )


def origin_of(dataset: data.Dataset) -> dict[str, Any]:
    """Return what an integer network records of the images it is made with; :func:`recorded` reads it."""
    origin = ImageOrigin(dataset.name, dataset.mean, dataset.std, dataset.preprocessing, dataset.classes)
    return {key: value for key, value in msgspec.to_builtins(origin).items() if value is not None}


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def as_pixels(dataset: data.Dataset) -> data.Dataset:
    """Return a data set whose images are pixels 0..255, not normalized."""
    channels = len(dataset.mean)
    return replace(dataset, mean=(0.0,) * channels, std=(1 / 255,) * channels)


def batches_of(
    split: data.Split, dataset: data.Dataset, *, batch_size: int = 500, limit: int | None = None
) -> CountedBatches:
    """Return batches of (normalized float32 images, labels), at most ``limit`` images, to be iterated once.

    Batches have fewer than ``batch_size`` images if these are large.
    """
    part = split if limit is None else split.head(limit)
    batches = data.batches(part.images, part.labels, fitting_batch(batch_size, split.images.shape))
    normalized = ((data.normalize(images, dataset.mean, dataset.std), labels) for images, labels in batches)
    return CountedBatches(normalized, len(part))
