"""The walk over operations: order, the values kept, and when values are dropped."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from twoscale._ir.interpreter import interpret


@dataclass(frozen=True)
class Sum:
    """Adds one to the sum of its inputs."""

    name: str
    inputs: tuple[str, ...] = ()


class Box:
    def __init__(self, value: int) -> None:
        self.value = value


def compute(operation: Sum, inputs: list[int]) -> int:
    return sum(inputs) + 1


CHAIN = (Sum("a"), Sum("b", ("a",)), Sum("c", ("b", "a")), Sum("d", ("c", "c")), Sum("e", ("b",)))


def test_values_are_those_of_plain_evaluation() -> None:
    assert interpret(CHAIN, compute, keep=("d", "a", "e")) == {"a": 1, "d": 9, "e": 3}
    assert list(interpret(CHAIN, compute, keep=("e", "a", "d"))) == ["a", "d", "e"]


def test_nothing_is_kept_that_was_not_asked_for() -> None:
    assert interpret(CHAIN, compute) == {}


def test_given_values_are_read_and_not_returned() -> None:
    operations = (Sum("x", ("outside",)), Sum("y", ("x", "outside")))
    assert interpret(operations, compute, keep=("y", "outside"), given={"outside": 10}) == {"y": 22}


def test_a_value_made_here_goes_before_a_given_one() -> None:
    assert interpret(CHAIN, compute, keep=("e",), given={"b": 100}) == {"e": 3}


def test_values_are_dropped_after_their_last_reader() -> None:
    alive: dict[str, weakref.ref[Box]] = {}
    seen: dict[str, set[str]] = {}

    def boxed(operation: Sum, inputs: list[Box]) -> Box:
        seen[operation.name] = {name for name, reference in alive.items() if reference() is not None}
        made = Box(sum(box.value for box in inputs) + 1)
        alive[operation.name] = weakref.ref(made)
        return made

    interpret(CHAIN, boxed)
    assert seen == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"b", "c"}, "e": {"b"}}
