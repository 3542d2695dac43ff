"""What each choice of the default scheme is worth: one at a time is switched off or replaced.

    python -m benchmarks.accuracy resnet8=FILE resnet20=FILE resnet18=FILE net=FILE --main-only resnet18

Each argument is a model of the registry and a file of its weights, trained on CIFAR-10. A missing file is skipped with
a message. The record, results/accuracy.json, is rewritten after every choice; networks that are not named keep their
results. `python -m benchmarks.accuracy` alone prints the table of docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch

from benchmarks.common import RESULTS
from twoscale import data, models
from twoscale._calibration import affine_parameters, choose_range
from twoscale._calibration.profile import Profile, profile
from twoscale._environment import Environment, current_environment
from twoscale._files import read_record, write_record
from twoscale._page.numbers import MISSING, percent, signed
from twoscale._quantization import COURSE, DEFAULT, Scheme, float_graph
from twoscale._quantization.build import build
from twoscale._quantization.corrections import correct
from twoscale._quantization.plan import make_plan
from twoscale._quantization.range_tuning import tune_ranges
from twoscale._quantization.ranges import choose_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._quantization.plan import Plan

RECORD = RESULTS / "accuracy.json"
BATCH = 100


def without(**changes: Any) -> Scheme:
    return dataclasses.replace(DEFAULT, **changes)


NORMALIZED = "images normalized, then rounded"
ANY_ZERO_POINT = "zero points odd too"

CHOICES = {
    "default": DEFAULT,
    NORMALIZED: DEFAULT,
    "residuals added after rounding (7)": without(join_residuals=False),
    "no error feedback": without(error_feedback=False),
    "no bias correction": without(bias_correction=False),
    "neither correction": without(error_feedback=False, bias_correction=False),
    "activation ranges mse, not tuned": without(tune_ranges=False),
    "activation ranges minmax": without(activation_range="minmax"),
    "activation ranges percentile-99.99": without(activation_range="percentile-99.99"),
    "activation ranges 6-sigma": without(activation_range="6-sigma"),
    "activation ranges entropy": without(activation_range="entropy"),
    "weight ranges minmax": without(weight_range="minmax"),
    "one weight scale per layer": without(per_channel=False),
    "equalization by weights": without(equalization="weights"),
    "one weight scale per layer, equalization by weights": without(per_channel=False, equalization="weights"),
    "equalization by activations": without(equalization="activations"),
    "activations int8, zero point 0": without(activations="symmetric"),
    ANY_ZERO_POINT: DEFAULT,
    "scheme course": COURSE,
}
MAIN = tuple(CHOICES)[:7]
"""Choices for networks that take a long time."""


@dataclass(frozen=True)
class Row:
    """The integer network of one choice, compared with the float network."""

    choice: str
    sqnr_db: float
    """Of the logits."""
    agreement: float
    """Fraction of images with the float network's class."""
    top1: float


@dataclass(frozen=True)
class Measured:
    """One network under all choices."""

    network: str
    """Name in the registry, with options that differ from the usual."""
    float_top1: float
    test_images: int
    calibration_images: int
    rows: tuple[Row, ...]
    seconds: float
    environment: Environment


@dataclass(frozen=True)
class Record:
    """benchmarks/results/accuracy.json."""

    networks: tuple[Measured, ...]


class Network:
    """A float network, ready to be quantized by any scheme. Work common to all schemes is done once."""

    def __init__(self, name: str, path: Path, calibration: int) -> None:
        self.dataset = data.load("cifar10")
        made_here = models.read_info(path)
        self.model = models.load(name, path) if made_here is None else models.load_checkpoint(path)[0]
        info = made_here or models.published(name)
        self.normalization = (self.dataset.mean, self.dataset.std) if info is None else (info.mean, info.std)
        self.options: dict[str, Any] = getattr(info, "options", {})
        self.calibration = calibration
        self._graphs: dict[tuple[Any, ...], tuple[FloatGraph, Profile]] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def images(self, pixels_nchw: NDArray[np.uint8], *, normalized: bool) -> NDArray[np.float32]:
        """Return images in the form that the network takes."""
        mean, std = self.normalization if normalized else ((0.0,) * 3, (1 / 255,) * 3)
        return data.normalize(pixels_nchw, mean, std)

    def graph(self, scheme: Scheme, *, normalized: bool = False) -> tuple[FloatGraph, Profile]:
        key = (scheme.join_residuals, scheme.equalization, normalized)
        if key not in self._graphs:
            images = self.images(self.dataset.train.images[: self.calibration], normalized=normalized)
            taken = None if normalized else self.normalization
            graph = float_graph(self.model, images[:BATCH], scheme, normalization=taken)
            self._graphs[key] = graph, profile(graph, [images[i : i + BATCH] for i in range(0, len(images), BATCH)])
        return self._graphs[key]

    def quantized(self, choice: str) -> IntegerNetwork:
        scheme = CHOICES[choice]
        graph, found = self.graph(scheme, normalized=choice == NORMALIZED)
        # Weights and corrections are not part of a plan, so this is the default's.
        usual = {name: getattr(DEFAULT, name) for name in ("weight_range", "per_channel", *_CORRECTIONS, "name")}
        key = (dataclasses.replace(scheme, **usual), choice in (NORMALIZED, ANY_ZERO_POINT) and choice)
        with any_zero_point() if choice == ANY_ZERO_POINT else contextlib.nullcontext():
            if key not in self._plans:
                ranges = tune_ranges(choose_ranges(graph, found.statistics, scheme), graph, found, scheme)
                self._plans[key] = make_plan(graph, ranges, scheme)
            plan = dataclasses.replace(self._plans[key], scheme=scheme)
            return correct(build(plan), plan, found.samples_nchw)


_CORRECTIONS = ("error_feedback", "bias_correction")


@contextlib.contextmanager
def any_zero_point() -> Iterator[None]:
    """Allow odd zero points in plans, with which executors may round differently."""
    any_range = functools.partial(choose_range, even_zero_point=False)
    any_parameters = functools.partial(affine_parameters, even_zero_point=False)
    with (
        mock.patch("twoscale._quantization.ranges.choose_range", any_range),
        mock.patch("twoscale._quantization.plan.affine_parameters", any_parameters),
        mock.patch("twoscale._quantization.range_tuning.affine_parameters", any_parameters),
    ):
        yield


def measure(name: str, path: Path, choices: tuple[str, ...], calibration: int, samples: int) -> Iterator[Measured]:
    """Yield the network with the choices measured so far, after each."""
    from twoscale._ir.float_module import GraphModule
    from twoscale._runtimes import fastest

    start = time.perf_counter()
    network = Network(name, path, calibration)
    pixels, labels = network.dataset.test.images[:samples], network.dataset.test.labels[:samples]
    graph, _ = network.graph(DEFAULT)
    module = GraphModule(graph)

    def parts(*, normalized: bool = False) -> Iterator[NDArray[np.float32]]:
        for i in range(0, len(pixels), BATCH):
            yield network.images(pixels[i : i + BATCH], normalized=normalized)

    real = np.concatenate([module(torch.from_numpy(images)).numpy() for images in parts()]).astype(np.float64)
    label = name + "".join(f", {option} {value}" for option, value in network.options.items())
    float_top1 = float(np.mean(real.argmax(1) == labels))
    rows: list[Row] = []
    for choice in choices:
        if choice == NORMALIZED and network.normalization == ((0.0,) * 3, (1 / 255,) * 3):
            continue  # it was trained on pixels
        quantized = network.quantized(choice)
        executor = fastest(quantized)
        integers = [executor.run(x)[quantized.output] for x in parts(normalized=choice == NORMALIZED)]
        logits = quantized.logits(np.concatenate(integers)).astype(np.float64)
        error = float(np.square(logits - real).sum())
        agreement, top1 = (float(np.mean(logits.argmax(1) == best)) for best in (real.argmax(1), labels))
        rows.append(Row(choice, float(10 * np.log10(np.square(real).sum() / error)), agreement, top1))
        print(f"{name:14} {choice:50} {top1:.2%} {agreement:.2%} {rows[-1].sqnr_db:.2f} dB", flush=True)
        seconds = round(time.perf_counter() - start, 1)
        yield Measured(label, float_top1, len(pixels), calibration, tuple(rows), seconds, current_environment())


def table(record: Record) -> str:
    """Return the record as a Markdown table: SQNR and agreement, as differences from the default."""
    lines = [
        "| | " + " | ".join(network.network for network in record.networks) + " |",
        "|---|" + "--:|" * len(record.networks),
        "| float top-1 | " + " | ".join(f"{percent(network.float_top1)} %" for network in record.networks) + " |",
    ]
    images = (f"{network.test_images:,}" for network in record.networks)
    lines.append("| test images | " + " | ".join(images) + " |")
    for choice in CHOICES:
        cells = []
        for network in record.networks:
            rows = {row.choice: row for row in network.rows}
            cells.append(_cell(rows.get(choice), rows["default"]))
        if set(cells) != {MISSING}:
            lines.append(f"| {choice} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row | None, default: Row) -> str:
    if row is None:
        return MISSING
    if row is default:
        return f"**{row.sqnr_db:.2f} dB**, {percent(row.agreement)} %"
    return f"{signed(row.sqnr_db - default.sqnr_db, 2)}, {percent(row.agreement)} %"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what each choice of the default scheme is worth.")
    parser.add_argument("weights", nargs="*", metavar="MODEL=FILE")
    parser.add_argument("--calibration-images", type=int, default=400)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--main-only", nargs="*", default=[], metavar="MODEL", help="measure only the first choices")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for argument in arguments.weights:
        name, _, path = argument.partition("=")
        if not Path(path).is_file():
            print(f"{name:14} skipped: {path} is no file")
            continue
        choices = MAIN if name in arguments.main_only else tuple(CHOICES)
        for measured in measure(name, Path(path), choices, arguments.calibration_images, arguments.test_images):
            others = [n for n in read_record(RECORD, Record).networks if n.network != measured.network]
            write_record(RECORD, Record((*others, measured)))
    print(table(read_record(RECORD, Record)))


if __name__ == "__main__":
    main()
