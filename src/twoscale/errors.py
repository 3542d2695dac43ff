"""Every error that a user can cause.

    TwoscaleError                    one clear line: what was wrong, what was expected, what to do
    ├── UnknownNameError             a name that is not in a registry; suggests the nearest one
    ├── ConfigurationError           an option outside its range, or options that exclude each other
    ├── DataError                    a data set that is missing, damaged, altered, or of the wrong shape
    ├── CheckpointError              a checkpoint that is missing, damaged, or does not fit the model
    ├── CaptureError                 a model that cannot be turned into a FloatGraph
    │   └── UnsupportedOperatorError an operator that has no integer form here
    ├── CalibrationError             calibration without images, or with NaN or infinity in it
    ├── QuantizationError            a network whose integers would not fit; names layer and channel
    ├── NetworkFileError             a file that is not an integer network of this library
    ├── ExecutorError                an executor that cannot run on this machine; names what is missing
    ├── ForecastError                a forecast for what no measurement covers; names the missing measurement
    └── MissingPackageError          a package of an extra is not installed; gives the pip command

The command line prints the message and exits with code 2; anything else that escapes is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from twoscale._text import printable

__all__ = [
    "CalibrationError",
    "CaptureError",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "ExecutorError",
    "ForecastError",
    "MissingPackageError",
    "NetworkFileError",
    "QuantizationError",
    "TwoscaleError",
    "UnknownNameError",
    "UnsupportedOperatorError",
]


_LONGEST_MESSAGE = 2000


class TwoscaleError(Exception):
    """Base of every error that a user can cause; its message is one clear line."""

    def __str__(self) -> str:  # messages quote names from files, and errors of other libraries that have several lines
        return printable(" ".join(super().__str__().split()), _LONGEST_MESSAGE)


class UnknownNameError(TwoscaleError):
    """A name that is not in a registry.

    Args:
        kind: of the name, in the singular ("model", "data set").
        name: given by the user.
        known: all valid names.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        super().__init__(f"unknown {kind} '{name}': {hint}known names: {', '.join(names)}")


class ConfigurationError(TwoscaleError):
    """An option outside its range, or options that exclude each other."""


class DataError(TwoscaleError):
    """A data set that is missing, damaged, altered, or of the wrong shape."""


class CheckpointError(TwoscaleError):
    """A checkpoint that is missing, damaged, or does not fit the model."""


class CaptureError(TwoscaleError):
    """A model that cannot be turned into a FloatGraph."""


class UnsupportedOperatorError(CaptureError):
    """An operator that has no integer form here."""


class CalibrationError(TwoscaleError):
    """Calibration without images, or with NaN or infinity in it."""


class QuantizationError(TwoscaleError):
    """A network whose integers would not fit; names layer and channel."""


class NetworkFileError(TwoscaleError):
    """A file that is not an integer network of this library."""


class ExecutorError(TwoscaleError):
    """An executor that cannot run on this machine; the message names what is missing."""


class ForecastError(TwoscaleError):
    """A forecast without the measurement that it needs; the message names it."""


class MissingPackageError(TwoscaleError, ImportError):
    """A missing package of one of twoscale's extras; the message has the pip command."""
