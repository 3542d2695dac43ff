"""Memory orders and moves, against NumPy."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twoscale._codegen.c.common.storage import Move, memory_order, memory_steps, reshape_move

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)


def keep(array: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return an array's elements in memory order."""
    return array.ravel()[memory_order(array.shape)]


def carry_out(move: Move, source: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Do a move with plain loops. −1 marks places that are not written."""
    target = np.full(size, -1, np.int64)
    for index in product(*(range(n) for n in move.sizes)):
        start = sum(i * step for i, step in zip(index, move.from_steps, strict=True)) + move.from_offset
        stop = sum(i * step for i, step in zip(index, move.to_steps, strict=True)) + move.to_offset
        assert target[stop] == -1
        target[stop] = source[start]
    return target


def test_images_are_kept_pixel_by_pixel() -> None:
    image_chw = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    assert np.array_equal(keep(image_chw), image_chw.transpose(1, 2, 0).ravel())
    assert memory_steps((3, 4, 5)) == (1, 15, 3)


def test_vectors_and_matrices_are_kept_as_they_are() -> None:
    assert memory_order((6,)).tolist() == list(range(6))
    assert memory_order((2, 3)).tolist() == list(range(6))


@given(shapes)
def test_steps_agree_with_the_order(shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    kept = keep(array)
    for index in product(*(range(n) for n in shape)):
        place = sum(i * step for i, step in zip(index, memory_steps(shape), strict=True))
        assert kept[place] == array[index]


@given(shapes, st.data())
def test_permutations(shape: tuple[int, ...], data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(len(shape))))
    array = np.arange(math.prod(shape)).reshape(shape)
    moved = array.transpose(axes)
    steps = memory_steps(shape)
    move = Move.of(moved.shape, tuple(steps[axis] for axis in axes), memory_steps(moved.shape))
    assert np.array_equal(carry_out(move, keep(array), array.size), keep(moved))
    if move.is_plain:
        assert np.array_equal(keep(array), keep(moved))


@given(shapes, st.data())
def test_reshapes(shape: tuple[int, ...], data: st.DataObject) -> None:
    factors = [f for n in shape for f in ((2, 2) if n == 4 else (n,))]
    factors = list(data.draw(st.permutations(factors)))
    target = []
    while factors:
        count = data.draw(st.integers(1, len(factors)))
        target.append(math.prod(factors[:count]))
        factors = factors[count:]
    array = np.arange(math.prod(shape)).reshape(shape)
    move = reshape_move(shape, tuple(target))
    if move is not None:
        assert np.array_equal(carry_out(move, keep(array), array.size), keep(array.reshape(target)))
    for flat in (reshape_move(shape, (array.size,)), reshape_move((array.size,), shape)):
        assert flat is not None


def test_splitting_channels_moves_nothing() -> None:
    move = reshape_move((6, 5, 4), (2, 3, 5, 4))
    assert move is not None
    assert move.is_plain


def test_shapes_without_common_factors_take_two_moves() -> None:
    assert reshape_move((4, 6), (6, 4)) is None


@pytest.mark.parametrize(
    ("sizes", "from_steps", "to_steps", "loops"),
    [
        ((2, 3, 4), (12, 4, 1), (12, 4, 1), 1),
        ((2, 3, 4), (12, 4, 1), (24, 8, 2), 1),
        ((2, 3, 4), (24, 4, 1), (12, 4, 1), 2),
        ((1, 3, 1), (7, 2, 5), (9, 1, 3), 1),
        ((1, 1), (3, 4), (5, 6), 0),
    ],
)
def test_loops_are_as_few_as_possible(
    sizes: tuple[int, ...], from_steps: tuple[int, ...], to_steps: tuple[int, ...], loops: int
) -> None:
    assert len(Move.of(sizes, from_steps, to_steps).sizes) == loops
