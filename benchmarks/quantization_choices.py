"""What each choice of the quantizer is worth: the logits' SQNR and the processor time without it, or with another.

    python -m benchmarks.quantization_choices --models DIR [--only TEXT,...] [--calibration 400] [--images 1000]
    python -m benchmarks.quantization_choices --table      # the recorded figures as a table

DIR holds the published weights NAME-cifar10.safetensors; TWOSCALE_BENCH_MODELS names it too. Networks take pixels. The
SQNR is that of the logits over test images, against the float network; seconds are processor time of one thread, with
capture and profile. Rows that are no option of a scheme change a constant of the module that is named.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, write_result
from twoscale import data, models, quantize
from twoscale._environment import Environment
from twoscale._files import read_record
from twoscale._quantization.scheme import DEFAULT, FAST, Scheme
from twoscale._runtimes.torch import TorchExecutor

NETWORKS = ("resnet8", "resnet20")
BATCH = 250


@dataclass(frozen=True)
class Choice:
    """One row."""

    scheme: Scheme = DEFAULT
    constants: Mapping[str, Any] = field(default_factory=dict)
    """From "package.module:NAME" below twoscale to the value that replaces the constant."""
    calibration: int | None = None
    """Images, if not the number that was asked for."""


CORRECTIONS, FEEDBACK = "_quantization.corrections", "_quantization.error_feedback"
CHOICES = {
    "default": Choice(),
    "without error feedback": Choice(replace(DEFAULT, error_feedback=False)),
    "without tuned ranges": Choice(replace(DEFAULT, tune_ranges=False)),
    "without bias correction": Choice(replace(DEFAULT, bias_correction=False)),
    "fast: neither error feedback nor tuned ranges": Choice(FAST),
    "fast without bias correction": Choice(replace(FAST, bias_correction=False)),
    "additions rounded by (7) instead of (7b)": Choice(replace(DEFAULT, join_residuals=False)),
    "four steps of Newton's method instead of two": Choice(constants={f"{CORRECTIONS}:_NEWTON_STEPS": 4}),
    "second moments of half as many positions": Choice(constants={f"{CORRECTIONS}:_LEAST_COLUMNS": 1 << 12}),
    "error feedback in parts of 288 inputs": Choice(constants={f"{FEEDBACK}:_WIDEST": 288}),
    "error feedback in parts of 144 inputs": Choice(constants={f"{FEEDBACK}:_WIDEST": 144}),
    "16 calibration images": Choice(calibration=16),
}


@dataclass(frozen=True)
class Result:
    """One choice on one network."""

    choice: str
    network: str
    sqnr_db: float
    agreement: float
    """Fraction of images of the same class as in float."""
    cpu_seconds: float


@dataclass(frozen=True)
class Record:
    """benchmarks/results/quantization_choices.json."""

    results: tuple[Result, ...]
    calibration_images: int
    test_images: int
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def measure(name: str, network: str, folder: Path, calibration: int, images: int) -> Result:
    """Quantize one network with one choice, and run the integer network."""
    choice = CHOICES[name]
    dataset = data.load("cifar10")
    model = models.load(network, folder / f"{network}-cifar10.safetensors")
    normalization = models.normalization(network)
    assert normalization is not None
    pixels = dataset.train.images[: choice.calibration or calibration].astype(np.float32)
    replaced = []
    for place, value in choice.constants.items():
        module = importlib.import_module(f"twoscale.{place.partition(':')[0]}")
        replaced.append((module, place.partition(":")[2], getattr(module, place.partition(":")[2])))
        setattr(*replaced[-1][:2], value)
    start = time.process_time()
    try:
        batches = [pixels[i : i + 100] for i in range(0, len(pixels), 100)]
        made = quantize(model, batches, scheme=choice.scheme, normalization=normalization)
    finally:
        for module, constant, value in replaced:
            setattr(module, constant, value)
    seconds = time.process_time() - start
    executor = TorchExecutor(made)
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    signal = noise = agree = 0.0
    for i in range(0, images, BATCH):
        x = dataset.test.images[i : min(i + BATCH, images)].astype(np.float32)
        found = made.logits(executor.run(x, {made.output})[made.output])
        assert isinstance(found, np.ndarray)
        with torch.inference_mode():
            expected = model((torch.from_numpy(x) / 255 - mean) / std).numpy().astype(np.float64)
        signal += np.square(expected).sum()
        noise += np.square(expected - found).sum()
        agree += (expected.argmax(1) == found.argmax(1)).sum()
    return Result(name, network, 10 * float(np.log10(signal / noise)), float(agree) / images, seconds)


def table(results: tuple[Result, ...]) -> str:
    """Return the results as Markdown, a row for each choice."""
    lines = [
        "| | " + " | ".join(f"{network}, dB | CPU s" for network in NETWORKS) + " |",
        "|---|" + "--:|--:|" * len(NETWORKS),
    ]
    found = {(one.choice, one.network): one for one in results}
    for name in CHOICES:
        row = [found.get((name, network)) for network in NETWORKS]
        cells = ("– | –" if one is None else f"{one.sqnr_db:.2f} | {one.cpu_seconds:.1f}" for one in row)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=os.environ.get("TWOSCALE_BENCH_MODELS"))
    parser.add_argument("--only", default="", help="choices that contain one of these, separated by commas")
    parser.add_argument("--calibration", type=int, default=400, help="images (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="test images (default: %(default)s)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--table", action="store_true", help="print the recorded figures, and measure nothing")
    chosen = parser.parse_args()
    if chosen.table:
        print(table(read_record(RESULTS / "quantization_choices.json", Record).results))
        return
    if chosen.models is None:
        parser.error("give the folder of the published weights with --models")
    torch.set_num_threads(1)
    importlib.import_module("twoscale._frontends.torch_export.capture")  # not part of the first row's time
    results = []
    for name in CHOICES:
        if any(text in name for text in chosen.only.split(",")):
            for network in NETWORKS:
                results.append(measure(name, network, chosen.models, chosen.calibration, chosen.images))
                print(results[-1], flush=True)
    print(table(tuple(results)))
    if not chosen.no_record:
        record = Record(tuple(results), chosen.calibration, chosen.images)
        print(f"written to {write_result('quantization_choices', record)}")


if __name__ == "__main__":
    main()
