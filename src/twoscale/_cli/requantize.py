"""``twoscale requantize``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from twoscale._cli.common import (
    AS_RECORDED,
    Channels,
    DataName,
    File,
    Pictures,
    at_least_one,
    batches_of,
    command,
    dataset_for,
    print_json,
    print_line,
    recorded,
    require_integer_file,
)
from twoscale.errors import ConfigurationError

__all__ = ["RequantizeRecord", "requantize_command"]


@dataclass(frozen=True)
class RequantizeRecord:
    """What ``twoscale requantize --json`` prints."""

    file: str
    fingerprint: str
    """SHA-256 over everything that decides the integers."""
    multipliers: int
    """Number of multipliers that changed."""
    largest_change: float
    """Of a multiplier, as a fraction of it."""
    channels_rounded_again: int
    zero_points: int
    """Number of tensors whose zero point moved by one."""
    data: str | None
    """The data set that the network was compared on; None where no data set has images of its shape."""
    samples: int
    sqnr_db: float | None
    """Of the logits, against the network in FILE."""
    agreement: float | None
    """Fraction of the images with the same class as before."""


def requantize_command(
    file: File,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="FILE.onnx")],
    data: DataName = None,
    mean: Channels = None,
    std: Channels = None,
    pictures: Pictures = AS_RECORDED,
    max_samples: int | None = None,
    json: bool = False,
) -> None:
    """Move an integer network with free multipliers onto the grid, so that it can be written as C.

    Networks of other tools, and of the scheme "course", multiply by free floating-point numbers. This rounds them to
    whole numbers of 65536ths, and odd zero points to even ones. It prints what that changes on the test images.

    Args:
        file: Integer network (.onnx or .tflite), ours or another tool's.
        out: The file to write.
        data: Data set to compare on. Default: the one recorded in the network, or else digits.
        mean: Mean of pixels / 255, for normalizing the images. Default: the mean recorded in the network, or else 0.5.
        std: Standard deviation of pixels / 255, with the same defaults.
        pictures: How pictures of your own become pixels. Default: as the file records.
        max_samples: Use only the first N images.
        json: Print JSON instead of text.
    """
    from twoscale._formats import load
    from twoscale._ir.onto_grid import onto_grid
    from twoscale._verification import verify

    if out.suffix != ".onnx":
        raise ConfigurationError(f"--out is {out}; expected a file name that ends in .onnx")
    at_least_one("--max-samples", max_samples)
    network = load(require_integer_file(file))
    found = onto_grid(network)
    dataset = dataset_for(data, recorded(network), mean, std, pictures)
    result = None
    if dataset.test.images.shape[1:] == network.input.output.shape:
        batches = batches_of(dataset.test, dataset, limit=max_samples)
        result = verify(found.network, batches, executors=["reference"], against=network)
    elif data is not None:
        raise ConfigurationError(
            f"{dataset.name} has images of shape {dataset.test.images.shape[1:]}, and {network.name} takes "
            f"{network.input.output.shape}; expected a data set of that shape"
        )
    found.network.save(out)
    record = RequantizeRecord(
        file=str(out),
        fingerprint=found.network.fingerprint,
        multipliers=found.multipliers,
        largest_change=found.largest_change,
        channels_rounded_again=found.channels_rounded_again,
        zero_points=found.zero_points,
        data=None if result is None else dataset.name,
        samples=0 if result is None else result.samples,
        sqnr_db=None if result is None else result.sqnr_db,
        agreement=None if result is None else result.agreement,
    )
    if json:
        print_json(record)
        return
    print_line(
        f"{record.multipliers:,} multipliers moved, by {record.largest_change:.2%} at most; weights of "
        f"{record.channels_rounded_again:,} channels rounded again; {record.zero_points:,} zero points moved by one"
    )
    if result is None:
        print_line(f"not compared: no images of shape {network.input.output.shape}; name a data set with --data")
    else:
        parts = [] if record.sqnr_db is None else [f"logit SQNR {record.sqnr_db:.1f} dB"]
        parts += [] if record.agreement is None else [f"the same class for {record.agreement:.2%}"]
        print_line(f"against {file}, over {record.samples:,} images of {dataset.name}: {', '.join(parts)}")
    print_line(f"Wrote {out}. Write it as C: {command('export', out, '--out', out.with_suffix(''))}")
