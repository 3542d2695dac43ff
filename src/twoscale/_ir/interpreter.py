"""The walk over a network or a graph: computes operations in order and drops each value after its last reader.

Every evaluation uses it: the NumPy reference, the torch executor, the float graph in torch, and passes that
compare networks layer by layer. They differ only in how one operation is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

__all__ = ["Operation", "interpret"]


class Operation(Protocol):
    """A layer of an integer network or a node of a float graph."""

    @property
    def name(self) -> str:
        """Name of the output."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that the operation reads."""
        ...


Op = TypeVar("Op", bound=Operation)
Value = TypeVar("Value")


def interpret(
    operations: Sequence[Op],
    compute: Callable[[Op, list[Value]], Value],
    keep: Collection[str] = (),
    given: Mapping[str, Value] | None = None,
) -> dict[str, Value]:
    """Compute operations in order and return the values named in ``keep``.

    A value is dropped as soon as its last reader has been computed, so memory is bounded by the widest cut through the
    network, not by its length.

    Args:
        operations: each comes after the operations whose outputs it reads.
        compute: computes one operation from its inputs; an operation that reads nothing (the network's input)
            gets an empty list.
        keep: names of the values to return, in the order in which they are computed.
        given: values that operations read but that no operation here makes.
    """
    known = given or {}
    last_reader = {name: index for index, operation in enumerate(operations) for name in operation.inputs}
    values: dict[str, Value] = {}
    for index, operation in enumerate(operations):
        inputs = [values[name] if name in values else known[name] for name in operation.inputs]
        values[operation.name] = compute(operation, inputs)
        del inputs
        for name in {operation.name, *operation.inputs}:
            if last_reader.get(name, index) == index and name not in keep:
                values.pop(name, None)
    return {name: value for name, value in values.items() if name in keep}
