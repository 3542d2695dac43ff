"""How the fields of nodes and layers are declared."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeVar, dataclass_transform

__all__ = ["Operation", "operation"]

_T = TypeVar("_T", bound="Operation")


@dataclass_transform(eq_default=False, frozen_default=True, kw_only_default=True)
def operation(kind: type[_T]) -> type[_T]:
    """Make a dataclass of a node or layer: frozen, compared by identity, its fields given by keyword.

    ``dataclass(frozen=True)`` compiles four methods for each class. For the forty classes of the operators that
    takes longer than reading a network, so they share the methods of ``Operation``.
    """
    return dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=True)(kind)


class Operation:
    """Base of nodes and layers: the methods that the decorator ``operation`` does not compile."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init__(self, **values: Any) -> None:
        for field in dataclasses.fields(self):
            value = values.pop(field.name, field.default)
            if value is dataclasses.MISSING:
                raise TypeError(f"{type(self).__name__} needs the field {field.name}")
            object.__setattr__(self, field.name, value)
        if values:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(values))}")

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def __repr__(self) -> str:
        values = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self))
        return f"{type(self).__qualname__}({', '.join(values)})"
