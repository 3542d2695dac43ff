"""A planted sleep shows up in its own row and nowhere else.

The durations compared are the planted ones, tens of milliseconds each; nothing here depends on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from twoscale.scaling._measure.records import ArmsRecord, EpochTime, decode

SLEEP = 0.1
ROWS = ("compute", "skew", "data_wait", "wrapper_tax", "exposed")


@pytest.fixture(scope="module")
def planted(measured: Callable[..., Any]) -> dict[str, Any]:
    result: dict[str, Any] = measured("planted", {"seconds": SLEEP, "rounds": 3, "steps": 1})
    return result


@pytest.fixture(scope="module")
def found(planted: dict[str, Any]) -> dict[str, ArmsRecord]:
    return {where: decode(record, ArmsRecord) for where, record in planted["arms"].items()}


def _growth(found: dict[str, ArmsRecord], where: str) -> dict[str, float]:
    """Each row's median with the sleep less that without, in sleeps."""
    rows: dict[str, Any] = {}
    for row in ROWS:
        planted, nothing = getattr(found[where], row).median, getattr(found["nowhere"], row).median
        rows[row] = (planted - nothing) / SLEEP
    return rows


@pytest.mark.parametrize(
    ("where", "row"),
    [
        ("compute", "compute"),
        ("wrapper", "wrapper_tax"),
        ("communication", "exposed"),
        ("data", "data_wait"),
        ("one rank", "skew"),
    ],
)
def test_a_sleep_has_its_own_row(found: dict[str, ArmsRecord], where: str, row: str) -> None:
    growth = _growth(found, where)
    assert growth.pop(row) == pytest.approx(1, abs=0.4), growth
    for other, value in growth.items():
        assert abs(value) < 0.4, (other, growth)


def test_a_sleep_on_one_rank_is_imbalance_too(found: dict[str, ArmsRecord]) -> None:
    assert found["one rank"].imbalance.median == pytest.approx(SLEEP, abs=0.4 * SLEEP)
    assert found["compute"].imbalance.median < 0.4 * SLEEP


def test_a_sleep_in_communication_is_seen_alone_and_from_inside(found: dict[str, ArmsRecord]) -> None:
    record = found["communication"]
    assert record.isolated is not None
    assert record.exposed_in_situ is not None
    assert record.in_situ_union is not None
    for seen in (record.isolated, record.exposed_in_situ, record.in_situ_union):
        assert seen.median == pytest.approx(SLEEP, abs=0.4 * SLEEP)
    assert [c.bytes for c in record.collectives_in_situ] == [c.bytes for c in record.collectives_alone] == [247_080]
    # There is one bucket, the last: nothing can be hidden behind computing.
    assert record.overlap is not None
    assert abs(record.overlap) < 0.4


def test_a_free_running_step_holds_every_part(found: dict[str, ArmsRecord]) -> None:
    for where in ("compute", "wrapper", "communication", "data", "one rank"):
        grown = found[where].free_running.median - found["nowhere"].free_running.median
        assert grown == pytest.approx(SLEEP, abs=0.4 * SLEEP), where


def test_rows_add_up(found: dict[str, ArmsRecord]) -> None:
    for record in found.values():
        parts = (record.compute, record.imbalance, record.wrapper_tax, record.exposed)
        # Medians of differences are not quite differences of medians.
        assert sum(part.median for part in parts) == pytest.approx(record.ddp.median, abs=0.3 * SLEEP)


@pytest.mark.parametrize(
    ("where", "first", "second", "least"),
    [
        ("nowhere", 0, 0, 0),
        ("communication", 1, 1, 1),
        # The first rank waits for the second, which waits for no one.
        ("one rank", 1, 0, 0),
        ("silent", 0, 0, 0),
        # Broadcasts of two types of buffers at once, and all-reduces of two buckets at once: two sleeps.
        ("buffers", 2, 2, 2),
    ],
)
def test_a_loop_sees_what_each_rank_waits(
    planted: dict[str, Any], where: str, first: float, second: float, least: float
) -> None:
    record = decode(planted["loops"][where], EpochTime)
    assert record.least_wait is not None
    waits = [seconds / SLEEP for seconds in (*record.rank_waits, record.least_wait)]
    assert waits == pytest.approx([first, second, least], abs=0.4 * max(1, least))
