"""Calls of C kernels as data: the arguments of each back end's kernels are dataclasses.

A back end has one class of ``Call`` for each kernel. Its members are the arguments of the C function, in order.
A member that is a ``Params`` becomes a static struct, which every kernel takes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NULL",
    "Argument",
    "Call",
    "Constant",
    "Inline",
    "Kernel",
    "Name",
    "Operand",
    "Params",
    "Value",
    "Whole",
    "with_needs",
]


@dataclass(frozen=True)
class Kernel:
    """A C function."""

    name: str
    """Name of the function, and of the file with its text."""
    needs: tuple[Kernel, ...] = ()
    """Other kernels that it calls."""
    fixed_point: bool = False
    """Whether its text has parts for TensorFlow Lite's arithmetic that call the kernel for it."""
    folder: str = "portable"
    """Folder of its text."""


K = TypeVar("K", bound=Kernel)


def with_needs(used: Iterable[K], order: Sequence[K]) -> list[K]:
    """Return kernels and those that they need, in the order in which they are written.

    Args:
        used: some of ``order``, any number of times.
        order: all kernels, each after those that it needs.
    """
    needed: set[Kernel] = set()
    waiting: list[Kernel] = list(used)
    while waiting:
        kernel = waiting.pop()
        needed.add(kernel)
        waiting += kernel.needs
    return [kernel for kernel in order if kernel in needed]


_DTYPES = {"int8_t": np.int8, "uint8_t": np.uint8, "uint16_t": np.uint16, "int32_t": np.int32, "float": np.float32}


@dataclass(frozen=True, eq=False)
class Constant:
    """A static array."""

    identifier: str
    ctype: str
    values: NDArray[Any]
    dimensions: tuple[int, ...]
    """Sizes of its dimensions, slowest first, for the comment."""
    note: str = ""
    """What the values are, for the comment."""

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.values.size) * np.dtype(_DTYPES[self.ctype]).itemsize

    @property
    def content(self) -> bytes:
        """Its bytes in memory, in this machine's order."""
        return self.values.astype(_DTYPES[self.ctype], copy=False).tobytes()


@dataclass(frozen=True)
class Operand:
    """A place in a tensor's memory."""

    tensor: str
    offset: int = 0
    """Bytes."""


@dataclass(frozen=True)
class Name:
    """A variable or macro that is defined where the call is written."""

    text: str


NULL = Name("NULL")


@dataclass(frozen=True)
class Inline:
    """An int32_t array as a compound literal."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    """A float that is a whole number."""

    value: int


@dataclass(frozen=True)
class Params:
    """The parameters of a kernel: a C struct whose members are those of the dataclass, in the same order.

    A member that is None is left out, which makes it 0.
    """

    struct: ClassVar[str] = ""
    """The C type."""

    @property
    def members(self) -> dict[str, Value]:
        """The members to write, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


Value = int | np.float32 | Whole | Constant | Name | Inline | Params | tuple[int, ...]
"""Types of a struct's members."""
Argument = Operand | Constant | Name | int | None
"""Types of an argument; None is NULL."""


@dataclass(frozen=True)
class Call:
    """One call of a kernel."""

    kernel: ClassVar[Kernel]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernel, and those that it calls only with parameters such as these."""
        return (self.kernel,)

    @property
    def params(self) -> Params | None:
        """The struct of parameters, if the kernel takes one."""
        return next((part for part in self._parts() if isinstance(part, Params)), None)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """The other arguments, in order."""
        return tuple(part for part in self._parts() if not isinstance(part, Params))

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The arguments that are tensors."""
        return tuple(argument for argument in self.arguments if isinstance(argument, Operand))

    def _parts(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]
