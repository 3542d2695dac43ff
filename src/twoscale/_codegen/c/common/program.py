"""A network as calls of C kernels on bytes, with constants and the place of every tensor, but no text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.arrange import ArrangedLayer
from twoscale._codegen.c.common.calls import Call, Constant
from twoscale._codegen.c.common.memory import MemoryPlan
from twoscale._codegen.c.common.names import Identifiers
from twoscale._codegen.c.common.tensors import OutputsLayout, Place, Tensor, outputs_layout
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Constants", "Lowered", "Step", "step_of"]


class Constants:
    """Gives each static array of a program its own name, and collects those of one layer."""

    def __init__(self) -> None:
        self._identifiers = Identifiers()
        self._identifier = ""
        self._made: list[Constant] = []

    def begin(self, layer: ArrangedLayer) -> None:
        """Begin the next layer."""
        self._identifier = layer.identifier
        self._made = []

    def add(self, kind: str, ctype: str, values: NDArray[Any], dimensions: tuple[int, ...], note: str = "") -> Constant:
        """Make a static array of the layer; ``kind``, such as "weight", becomes part of its name."""
        name = self._identifiers.ending(self._identifier, kind)
        made = Constant(name, ctype, np.ascontiguousarray(values).ravel(), dimensions, note)
        self._made.append(made)
        return made

    @property
    def made(self) -> tuple[Constant, ...]:
        """The arrays of the layer so far."""
        return tuple(self._made)


@dataclass(frozen=True, eq=False, kw_only=True)
class Step(ArrangedLayer):
    """One layer with its calls and constants."""

    calls: tuple[Call, ...]
    constants: tuple[Constant, ...]


def step_of(arranged: ArrangedLayer, calls: Sequence[Call], constants: tuple[Constant, ...]) -> Step:
    """Return a layer with the calls that compute it."""
    return Step(**vars(arranged), calls=tuple(calls), constants=constants)


@dataclass(frozen=True, eq=False)
class Lowered(ABC):
    """A network as calls of kernels, with the place of every tensor. Every back end makes one."""

    network: IntegerNetwork
    tensors: Mapping[str, Tensor]
    """Layers' outputs and scratch, by name."""
    steps: tuple[Step, ...]
    """One per layer, in order."""
    places: Mapping[str, Place]
    plan: MemoryPlan
    live_bytes: tuple[int, ...]
    """Bytes of the arena that each step needs."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The quantized inputs. All have one byte per value, and follow one another in the caller's memory."""
        return tuple(self.tensors[layer.name] for layer in self.network.inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The network's outputs."""
        return tuple(self.tensors[name] for name in self.network.outputs)

    @property
    def outputs_layout(self) -> OutputsLayout:
        """Where the outputs are in the caller's memory."""
        return outputs_layout([tensor.spec for tensor in self.outputs])

    @property
    @abstractmethod
    def arena_bytes(self) -> int:
        """Size of the arena."""

    def bytes_kept(self, name: str) -> int:
        """Return how many bytes of the tensor are in memory at once."""
        return self.tensors[name].size

    def instances(self) -> list[list[str]]:
        """Return the names of the parameters of each step's calls; empty where a call has none."""
        identifiers = Identifiers(constant.identifier for step in self.steps for constant in step.constants)
        return [
            ["" if call.params is None else identifiers.ending(step.identifier, "layer") for call in step.calls]
            for step in self.steps
        ]
