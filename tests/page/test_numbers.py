from __future__ import annotations

import math

import pytest

from twoscale._page.numbers import compact, count, decimals_for, fixed, joined, percent, signed, yes_no


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.54214, 2, "0.54"),
        (-1.5, 1, "−1.5"),
        (-0.004, 2, "0.00"),
        (0.0, 3, "0.000"),
        (12.0, 0, "12"),
        (1e30, 3, "1.00e30"),
        (-2.5e7, 3, "−2.50e7"),
        (math.inf, 1, "–"),
        (math.nan, 1, "–"),
        (None, 1, "–"),
    ],
)
def test_fixed(value: float | None, decimals: int, text: str) -> None:
    assert fixed(value, decimals) == text


def test_signed() -> None:
    assert [signed(value, 2) for value in (0.02, -0.02, 0.001, 0.0, None)] == ["+0.02", "−0.02", "0.00", "0.00", "–"]


def test_percent() -> None:
    assert percent(0.5421) == "54.21"
    assert percent(1.0, 1) == "100.0"
    assert percent(None) == "–"


def test_count() -> None:
    assert [count(number) for number in (0, 999, 1000, -127, None)] == ["0", "999", "1,000", "−127", "–"]


def test_compact() -> None:
    assert [compact(number) for number in (1, 500, 1500, 20_000, 3e6)] == ["1", "500", "1.5k", "20k", "3M"]


def test_one_number_of_decimals_serves_a_column() -> None:
    assert decimals_for([0.0123, 4.5, 0.0]) == 4  # 0.0123
    assert decimals_for([1234.0]) == 0
    assert decimals_for([1e-30]) == 8
    assert decimals_for([0.0]) == 3


def test_words() -> None:
    assert [joined(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [yes_no(value) for value in (True, False, None)] == ["yes", "no", "–"]
