"""Results as frozen dataclasses that are written to and read from JSON.

A record holds plain values only: numbers, strings, tuples, other records. Units are in the field's name or
docstring. ``None`` means "not applicable" or "not measured", never zero; an SQNR without any error is
``None`` together with ``mismatches == 0`` or ``exact``.
"""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from twoscale.errors import TwoscaleError
from twoscale.files import write_bytes

__all__ = [
    "Environment",
    "Histogram",
    "LabNetwork",
    "LabResults",
    "LayerCheck",
    "RangeRecord",
    "StageResult",
    "TensorSummary",
    "VerifyResult",
    "current_environment",
    "read_record",
    "record_to_json",
    "write_record",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Environment:
    """Where a result was made."""

    date: str
    """UTC, ISO 8601, to the second."""
    machine: str
    """Processor or accelerator name."""
    cores: int
    python: str
    versions: dict[str, str]
    """Package name to version."""


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins over [lo, hi] (real units)."""

    lo: float
    hi: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TensorSummary:
    """Statistics of a weight tensor, or of an activation over many images."""

    name: str
    kind: str
    """"weight", "bias", "input" or "activation"."""
    count: int
    """Number of values seen."""
    mean: float
    std: float
    """Population standard deviation."""
    min: float
    max: float
    zeros: int
    """How many values are exactly 0."""
    histogram: Histogram

    @property
    def range(self) -> float:
        """Total range, max - min."""
        return self.max - self.min

    @property
    def three_sigma(self) -> tuple[float, float]:
        """(mean - 3 std, mean + 3 std)."""
        return self.mean - 3 * self.std, self.mean + 3 * self.std


@dataclass(frozen=True)
class RangeRecord:
    """How one tensor was quantized: r = scale * (q - zero_point), q in [lo, hi]."""

    name: str
    kind: str
    """"weight", "input" or "activation"."""
    scales: tuple[float, ...]
    """One, or one per output channel."""
    zero_point: int
    lo: int
    hi: int
    method: str
    """Range method, e.g. "minmax", "3-sigma", "percentile-99.99", "mse", "entropy"."""
    seen_lo: int
    """Smallest integer that occurred."""
    seen_hi: int
    """Largest integer that occurred."""
    sqnr_db: float | None
    """Signal to quantization noise of this tensor alone, where measured."""
    histogram: Histogram | None = None
    """Histogram of the integers themselves, where kept."""


@dataclass(frozen=True)
class StageResult:
    """One row of the lab's table."""

    network: str
    scheme: str
    """"float", "course" or "default"."""
    stage: str
    """"float", "weights", "activations", "bias-real" or "integer"."""
    title: str
    """For people, e.g. "weights int8, activations float"."""
    samples: int
    """Test images used."""
    top1: float
    """Fraction correct, 0..1."""
    agreement: float | None = None
    """Fraction of images with the float model's class, 0..1."""
    sqnr_db: float | None = None
    """Logit signal to quantization noise against the float model, dB."""
    mismatches: int | None = None
    """Differing integers between executors over all layers; None where only one computed it."""
    note: str = ""
    """One plain sentence, where the row has a lesson."""


@dataclass(frozen=True)
class LayerCheck:
    """What verify found about one layer."""

    name: str
    op: str
    mismatches: int
    """Differing integers over all images, reference against the others."""
    values: int
    """Integers compared."""
    sqnr_db: float | None
    """Output of this layer against the float network's, dB."""
    accumulator_bound: int | None = None
    """Largest |accumulator| that any input can produce, proved from the weights; None without accumulator."""
    float32_exact: bool | None = None
    """Whether that bound is below 2**24."""
    pair_saturation_safe: bool | None = None
    """Whether no 16-bit pair sum of AVX2's vpmaddubsw can saturate with these weights."""
    saturated: float | None = None
    """Fraction of outputs at a clamp bound that is not a ReLU's zero."""
    seen_lo: int | None = None
    """Smallest integer that occurred."""
    seen_hi: int | None = None
    """Largest integer that occurred."""
    outside: int = 0
    """Outputs that are no integers in [lo, hi]; 0 proves that every value is."""


@dataclass(frozen=True)
class VerifyResult:
    """Every executor over a whole data set, compared integer by integer."""

    network: str
    scheme: str
    on_grid: bool
    """Whether every multiplier is a whole number of 65536ths, so that 0 mismatches are promised."""
    executors: tuple[str, ...]
    samples: int
    mismatches: int
    """Over all layers and executors."""
    compared: int
    """Integers compared."""
    top1: float | None
    agreement: float | None
    sqnr_db: float | None
    layers: tuple[LayerCheck, ...]
    mismatches_by_executor: dict[str, int] = field(default_factory=dict)
    first_divergence: str | None = None
    """Layer, image, index, expected and found of the first differing integer."""
    divergence_by_executor: dict[str, str] = field(default_factory=dict)
    """The same for each executor that differs."""
    against: str | None = None
    """What agreement and SQNR refer to: "float", or another integer network's name and scheme; None: nothing."""
    uncompared: tuple[str, ...] = ()
    """Layers that have no counterpart there."""

    @property
    def ok(self) -> bool:
        """No integer differed."""
        return self.mismatches == 0

    def _repr_html_(self) -> str:
        from twoscale.report.networks import verify_html

        return verify_html(self)


@dataclass(frozen=True)
class LabNetwork:
    """Everything the lab found about one network."""

    name: str
    parameters: int
    train_loss: tuple[tuple[int, float], ...]
    """(mini-batches done, mean loss since the last entry)."""
    weights: tuple[TensorSummary, ...]
    activations: tuple[TensorSummary, ...]
    ranges: dict[str, tuple[RangeRecord, ...]]
    """Scheme to the ranges of its weights and activations."""
    stages: tuple[StageResult, ...]
    verify: dict[str, VerifyResult]
    """Scheme to the check of its integer network."""
    files: dict[str, str]
    """What ("checkpoint", "default", "course") to file name, relative to the results."""


@dataclass(frozen=True)
class LabResults:
    """results.json of ``twoscale lab``."""

    data: str
    seed: int
    train_samples: int
    test_samples: int
    calibration_samples: int
    recipe: dict[str, Any]
    """The training configuration as it ran."""
    networks: tuple[LabNetwork, ...]
    environment: Environment
    seconds: dict[str, float]
    """Stage to wall-clock seconds."""

    def __repr__(self) -> str:  # that of a dataclass would be all histograms
        accuracies = [
            f"{stage.network} {stage.scheme} {stage.top1:.2%}"
            for network in self.networks
            for stage in network.stages
            if stage.stage in {"float", "integer"}
        ]
        return f"LabResults({', '.join([self.data, *accuracies])})"

    def _repr_html_(self) -> str:
        from twoscale.report import stages_html

        return stages_html([stage for network in self.networks for stage in network.stages], self.data)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def current_environment(*packages: str) -> Environment:
    """Describe this machine, and the installed versions of twoscale, torch, numpy and ``packages``."""
    versions = {}
    for package in ("twoscale", "torch", "numpy", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        python=platform.python_version(),
        versions=versions,
    )


def record_to_json(record: object) -> str:
    """Return ``record`` as indented JSON; NaN and infinity, which JSON has not, become null."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n"


def write_record(path: Path, record: object) -> None:
    """Write ``record`` to ``path`` as JSON, all of it or nothing."""
    write_bytes(path, record_to_json(record).encode())


def read_record(path: Path, kind: type[T]) -> T:
    """Read a record of type ``kind``.

    Raises:
        TwoscaleError: the file is missing, is not JSON, or does not hold such a record.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise TwoscaleError(f"cannot read {path}: {error.strerror or error}") from error
    except msgspec.MsgspecError as error:
        raise TwoscaleError(f"{path} does not hold a {kind.__name__} record: {error}") from error
