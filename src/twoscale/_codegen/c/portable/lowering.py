"""IntegerNetwork → Program: one call of a portable kernel per layer, on whole tensors, but no text."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._codegen.c.common.arrange import arrange
from twoscale._codegen.c.common.placement import place
from twoscale._codegen.c.common.program import Constants, Lowered
from twoscale._codegen.c.portable.calls import Faster, PortableCalls
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Program", "lower"]


@dataclass(frozen=True, eq=False)
class Program(Lowered):
    """A network as calls of portable kernels, which compute one image."""

    @property
    def arena_bytes(self) -> int:
        """Size of the arena; at least 1, since C has no empty arrays."""
        return max(1, self.plan.size)


def lower(network: IntegerNetwork, faster: Faster | None = None) -> Program:
    """Turn a network into calls of kernels and plan its memory.

    Args:
        network: on the grid.
        faster: kernels that take the place of portable ones.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    arrangement = arrange(network)
    portable = PortableCalls(arrangement, Constants(), faster=faster)
    steps = tuple(portable.step(arranged) for arranged in arrangement.layers)
    placed = place(arrangement)
    return Program(network, arrangement.tensors, steps, placed.places, placed.plan, placed.live_bytes)
