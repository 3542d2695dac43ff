"""What commands that learn roundings share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from twoscale import data as datasets
from twoscale._cli.common import batches_of

if TYPE_CHECKING:
    from twoscale._calibration.profile import Profile
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._quantization import Scheme
    from twoscale._search import LearnedRounding

__all__ = ["announce", "further_batches", "learning_from"]

_FURTHER_IMAGES = 10_000
"""Training images besides those for calibration that learned rounding learns from at most."""


def announce(seconds: float) -> None:
    """Say on stderr how long learning takes."""
    about = f"{max(1, seconds):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    sys.stderr.write(f"twoscale: learning takes about {about}\n")


def further_batches(dataset: datasets.Dataset, inputs: datasets.Dataset, calibration_images: int) -> Iterable[Any]:
    """Return the training images after those for calibration, in batches.

    Args:
        dataset: the data set.
        inputs: the data set as the network takes it.
        calibration_images: how many calibrate.
    """
    more = slice(calibration_images, calibration_images + _FURTHER_IMAGES)
    further = datasets.Split(dataset.train.images[more], dataset.train.labels[more])
    return batches_of(further, inputs, batch_size=100)


def learning_from(
    inputs: datasets.Dataset, calibration_images: int, learning: LearnedRounding
) -> Callable[[FloatGraph, Profile, Scheme], IntegerNetwork]:
    """Return the function that makes a network with learned roundings.

    Args:
        inputs: the data set as the network takes it.
        calibration_images: how many calibrate.
        learning: iterations and rates.
    """
    import numpy as np

    from twoscale._calibration.memory import DEFAULT_MEMORY
    from twoscale._search.learned_rounding import learn_network, within

    def make(graph: FloatGraph, found: Profile, scheme: Scheme) -> IntegerNetwork:
        some = [images for images, _ in batches_of(inputs.train, inputs, batch_size=100, limit=calibration_images)]
        further = within(further_batches(inputs, inputs, calibration_images), DEFAULT_MEMORY, some[0].shape[1:])
        return learn_network(graph, found, np.concatenate(some), scheme, learning, further=further, announce=announce)

    return make
