"""The accuracy that an integer network's file records, and whether it is still this network's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["RecordedAccuracy", "recorded_accuracy", "with_accuracy"]

_KEY = "accuracy"


@dataclass(frozen=True)
class RecordedAccuracy:
    """Top-1 accuracy of an integer network and of the float network that it was made from, on the same images."""

    data: str
    """Name of the data set whose test images were used."""
    samples: int
    """Number of test images."""
    top1: float
    """Of the integer network, 0..1."""
    float_top1: float
    """Of the float network, 0..1."""


class _Entry(msgspec.Struct, frozen=True):
    """The entry in the metadata. The fingerprint ties it to the integers that it was measured with."""

    fingerprint: str
    measured: RecordedAccuracy


def with_accuracy(network: IntegerNetwork, measured: RecordedAccuracy) -> IntegerNetwork:
    """Return the network with its accuracy in the metadata, from where it reaches the file."""
    entry = msgspec.to_builtins(_Entry(network.fingerprint, measured))
    return dataclasses.replace(network, metadata={**network.metadata, _KEY: entry})


def recorded_accuracy(network: IntegerNetwork) -> RecordedAccuracy | None:
    """Return the accuracy that the metadata record; None where there is none, or it is that of other integers."""
    try:
        entry = msgspec.convert(network.metadata.get(_KEY), _Entry)
    except msgspec.ValidationError:
        return None
    return entry.measured if entry.fingerprint == network.fingerprint else None
