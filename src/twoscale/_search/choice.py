"""Makes and measures the network of a choice of bits, to check the prediction behind the choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twoscale._quantization.scheme import DEFAULT, Scheme
from twoscale._search.bits import BitsChoice

if TYPE_CHECKING:
    from twoscale._calibration.profile import Profile
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["MeasuredChoice", "measure_choice"]


@dataclass(frozen=True)
class MeasuredChoice:
    """A choice and its network."""

    choice: BitsChoice
    samples: int
    sqnr_db: float | None
    agreement: float | None
    top1: float | None


def measure_choice(
    choice: BitsChoice,
    graph: FloatGraph,
    found: Profile,
    batches: Iterable[Any],
    *,
    scheme: Scheme = DEFAULT,
    make: Callable[[FloatGraph, Profile, Scheme], IntegerNetwork] | None = None,
) -> tuple[IntegerNetwork, MeasuredChoice]:
    """Make the network of a choice, with each layer corrected for those before it, and measure it.

    Args:
        choice: from ``Sensitivity.choose``.
        graph: as for ``measure_sensitivity``.
        found: as for ``measure_sensitivity``.
        batches: as for ``measure_sensitivity``. With the same images, measured and predicted figures are comparable.
        scheme: as for ``measure_sensitivity``.
        make: makes the network. Default: ``quantize_graph``.
    """
    from twoscale._quantization import quantize_graph
    from twoscale._verification import verify

    how = dataclasses.replace(scheme, layer_weight_bits=choice.layer_weight_bits)
    network = (make or quantize_graph)(graph, found, how)
    result = verify(network, batches, executors=("torch",), model=graph)
    return network, MeasuredChoice(choice, result.samples, result.sqnr_db, result.agreement, result.top1)
