"""A choice of bits made into a network and measured: how good the model behind the choice was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
    """A choice, and the network that was made by it."""

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
) -> tuple[IntegerNetwork, MeasuredChoice]:
    """Make the network of a choice, every layer corrected for those before it, and measure it.

    Args:
        choice: from ``Sensitivity.choose``.
        graph: as for ``measure_sensitivity``.
        found: likewise.
        batches: likewise; the same images make measured and predicted figures comparable.
        scheme: likewise.
    """
    from twoscale._quantization import quantize_graph
    from twoscale._verification import verify

    how = dataclasses.replace(scheme, layer_weight_bits=choice.layer_weight_bits)
    network = quantize_graph(graph, found, how)
    result = verify(network, batches, executors=("torch",), model=graph)
    return network, MeasuredChoice(choice, result.samples, result.sqnr_db, result.agreement, result.top1)
