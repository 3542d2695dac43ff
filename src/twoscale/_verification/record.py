"""The record of a verification: what was compared, on what, and with what result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twoscale._environment import Environment, current_environment
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._verification.results import LayerCheck, OutputCheck, VerifyResult
from twoscale.errors import ConfigurationError

__all__ = ["ImagesHash", "VerificationRecord", "is_of", "verification_record"]

_PACKAGES = ("onnx", "onnxruntime", "pillow")
_LARGEST = 1 << 30
"""Largest file in which a fingerprint is searched, in bytes."""


@dataclass(frozen=True)
class VerificationRecord:
    """``net.verify.json``: what ``twoscale verify`` measured, for whoever runs the network later."""

    file: str
    """Name of the network's file, without its folder."""
    network: str
    scheme: str
    fingerprint: str
    """SHA-256 of everything that determines the integers."""
    on_grid: bool
    weights_sha256: str | None
    """Of the float weights that the network was made from; None if they are not recorded."""
    same_weights: bool | None
    """Whether the float network that it was compared with has those weights; None without one."""
    data: str
    data_sha256: str
    """SHA-256 of the normalized float32 images and the labels, in order."""
    samples: int
    preprocessing: str | None
    """From picture files to pixels, in words; None for a data set of pixels."""
    mean: tuple[float, ...]
    """Subtracted from pixels / 255, per channel. The network's own input, after any normalization inside it."""
    std: tuple[float, ...]
    executors: tuple[str, ...]
    compared: int
    """Integers compared."""
    mismatches: int
    """Integers that differ."""
    mismatches_by_executor: dict[str, int]
    top1: float | None
    """Fraction of the images classified correctly, 0..1."""
    agreement: float | None
    """Fraction of the images with the float network's class; None without one."""
    sqnr_db: float | None
    """Of the output, against the float network; of several, each with the same weight."""
    environment: Environment
    """Date, processor and versions."""
    layers: tuple[LayerCheck, ...] = ()
    """Results of each layer; older records have none."""
    outputs: tuple[OutputCheck, ...] = ()
    """One per output of the network."""
    exact: bool = False
    """Whether the network has TensorFlow Lite's arithmetic in every layer that computes, or is on the grid."""


class ImagesHash:
    """Hashes batches of images and labels as they pass."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def passing(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yield the batches; how the images are divided into batches does not change the hash."""
        for images, labels in batches:
            for image, label in zip(np.ascontiguousarray(images, np.float32), labels, strict=True):
                self._digest.update(image.tobytes())
                self._digest.update(int(label).to_bytes(8, "little", signed=True))
            yield images, labels

    @property
    def hexadecimal(self) -> str:
        """SHA-256 of what has passed."""
        return self._digest.hexdigest()


def verification_record(
    file: Path,
    network: IntegerNetwork,
    result: VerifyResult,
    *,
    data: str,
    data_sha256: str,
    preprocessing: str | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> VerificationRecord:
    """Return the record of a verification on this machine.

    Args:
        file: the network's.
        network: that was verified.
        result: of the verification.
        data: name of the data set.
        data_sha256: from :class:`ImagesHash`.
        preprocessing: of the data set's pictures.
        mean: per channel.
        std: per channel.
    """
    weights = network.metadata.get("weights_sha256")
    return VerificationRecord(
        file=file.name,
        network=network.name,
        scheme=network.scheme,
        fingerprint=network.fingerprint,
        on_grid=network.on_grid,
        exact=network.exact,
        weights_sha256=weights if isinstance(weights, str) else None,
        same_weights=result.same_weights,
        data=data,
        data_sha256=data_sha256,
        samples=result.samples,
        preprocessing=preprocessing,
        mean=mean,
        std=std,
        executors=result.executors,
        compared=result.compared,
        mismatches=result.mismatches,
        mismatches_by_executor=result.mismatches_by_executor,
        top1=result.top1,
        agreement=result.agreement,
        sqnr_db=result.sqnr_db,
        environment=current_environment(*_PACKAGES),
        layers=result.layers,
        outputs=result.outputs,
    )


def is_of(record: VerificationRecord, file: Path) -> bool:
    """Return whether a compiled library or exported source carries the fingerprint of the record's network.

    Raises:
        ConfigurationError: the record has no fingerprint, or the file is larger than 1 GiB.
    """
    if len(record.fingerprint) != 64 or not set(record.fingerprint) <= set("0123456789abcdef"):
        raise ConfigurationError("the record has no fingerprint of a network; expected 64 hexadecimal digits")
    if file.stat().st_size > _LARGEST:
        raise ConfigurationError(f"{file} is larger than 1 GiB; expected a compiled or exported network")
    return record.fingerprint.encode() in file.read_bytes()
