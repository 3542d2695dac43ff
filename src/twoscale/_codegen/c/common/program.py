"""Program: an integer network as calls of C kernels on bytes, with the constants and the place of every tensor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.memory import MemoryPlan
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Call", "Constant", "Fields", "Lowered", "Operand", "Place", "Program", "Step", "Tensor"]

Fields = Mapping[str, Any]
"""The members of a C struct, by name."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """The bytes of one tensor."""

    name: str
    spec: n.TensorSpec
    order: NDArray[np.int64]
    """Which element, in C order, lies at each place in memory."""

    @property
    def item(self) -> int:
        """Bytes an element."""
        return 4 if self.spec.dtype == "int32" else 1

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.order) * self.item

    @property
    def shift(self) -> int:
        """What is added to an integer to give the byte that is kept."""
        return 128 if self.spec.dtype == "int8" else 0

    @property
    def zero(self) -> int:
        """The zero point as it is kept."""
        return self.spec.zero_point + self.shift

    def to_memory(self, integers: NDArray[Any]) -> NDArray[Any]:
        """Return integers (N, ...) as they are kept, (N, size), uint8 or int32."""
        rows = integers.reshape(len(integers), -1)[:, self.order]
        return rows.astype(np.int32) if self.item == 4 else (rows.astype(np.int16) + self.shift).astype(np.uint8)

    def from_memory(self, kept: NDArray[Any]) -> NDArray[Any]:
        """Return what is kept, (N, size), as integers (N, ...) of the tensor's type."""
        integers = np.empty((len(kept), len(self.order)), self.spec.dtype)
        integers[:, self.order] = kept.astype(np.int64) - self.shift
        return integers.reshape(len(kept), *self.spec.shape)


@dataclass(frozen=True, eq=False)
class Constant:
    """A static array."""

    identifier: str
    ctype: str
    values: NDArray[Any]
    dimensions: tuple[int, ...]
    """What the values mean, slowest first; for the comment."""

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.values.size) * {"int8_t": 1, "uint8_t": 1, "int32_t": 4, "float": 4}[self.ctype]


@dataclass(frozen=True)
class Operand:
    """A place in a tensor's memory."""

    tensor: str
    offset: int = 0
    """Bytes."""


@dataclass(frozen=True)
class Call:
    """One call of a kernel. Arguments are operands, numbers, or text for C."""

    kernel: str
    arguments: tuple[Operand | int | str, ...]
    fields: Fields | None = None
    """Of the kernel's struct of parameters, which comes first if there is one."""


@dataclass(frozen=True, eq=False)
class Step:
    """What one layer does."""

    index: int
    layer: n.Layer
    identifier: str
    calls: tuple[Call, ...]
    constants: tuple[Constant, ...]
    scratch: tuple[Tensor, ...] = ()
    """Tensors that only this step uses."""
    view_of: str | None = None
    """The tensor whose bytes are, as they stand, also this one."""
    in_place_of: tuple[str, ...] = ()
    """Operands whose bytes the result may take, if nothing reads them afterwards."""

    @property
    def macs(self) -> int:
        """Multiply-adds of weights."""
        if not isinstance(self.layer, n.Accumulating):
            return 0
        return math.prod(self.layer.output.shape[1:]) * self.layer.weight.size


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in "image" or "output", which the caller gives, or in the "arena"."""

    where: str
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Lowered(ABC):
    """A network as calls of kernels, with the place of every tensor: what every form of C has."""

    network: IntegerNetwork
    tensors: Mapping[str, Tensor]
    """Layers' outputs and scratch, by name."""
    steps: tuple[Step, ...]
    """One a layer, in order."""
    places: Mapping[str, Place]
    plan: MemoryPlan
    live_bytes: tuple[int, ...]
    """Bytes of the arena that each step needs."""

    @property
    def input(self) -> Tensor:
        """The quantized image."""
        return self.tensors[self.network.input.name]

    @property
    def output(self) -> Tensor:
        """What the network gives."""
        return self.tensors[self.network.output]

    @property
    @abstractmethod
    def arena_bytes(self) -> int:
        """Size of the arena."""

    def bytes_kept(self, name: str) -> int:
        """Return how many bytes of the tensor there are at once."""
        return self.tensors[name].size


@dataclass(frozen=True, eq=False)
class Program(Lowered):
    """A network as calls of portable kernels, which compute one image."""

    @property
    def arena_bytes(self) -> int:
        """Size of the arena; at least 1, since C has no empty arrays."""
        return max(1, self.plan.size)
