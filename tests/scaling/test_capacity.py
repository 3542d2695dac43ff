from __future__ import annotations

import resource
import sys

import pytest

from tests import sweep
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.capacity import default_memory_limit, find_largest_batch, search
from twoscale.scaling._measure.launch import Host
from twoscale.scaling._measure.records import CapacityTrial, Workload


def _fits_up_to(largest: int) -> tuple[list[int], object]:
    tried: list[int] = []

    def trial(batch_size: int) -> CapacityTrial:
        tried.append(batch_size)
        return CapacityTrial(batch_size, "ok" if batch_size <= largest else "out-of-memory", 0.0, None)

    return tried, trial


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 63, 64, 65, 100, 127])
def test_search_finds_the_largest(largest: int) -> None:
    tried, trial = _fits_up_to(largest)
    found, trials, ended = search(trial, start=1, limit=128, tolerance=0)  # type: ignore[arg-type]
    assert (found, ended) == (largest, True)
    assert [t.batch_size for t in trials] == tried
    assert len(tried) == len(set(tried))  # nothing is tried twice


def test_search_doubles_then_bisects() -> None:
    tried, trial = _fits_up_to(100)
    search(trial, start=8, limit=1024, tolerance=0.05)  # type: ignore[arg-type]
    assert tried == [8, 16, 32, 64, 128, 96, 112, 104, 100]


def test_search_stops_at_its_limit() -> None:
    tried, trial = _fits_up_to(10**9)
    assert search(trial, start=3, limit=20, tolerance=0)[0] == 20  # type: ignore[arg-type]
    assert tried == [3, 6, 12, 20]


def test_search_says_when_nothing_fits() -> None:
    tried, trial = _fits_up_to(0)
    assert search(trial, start=4, limit=20, tolerance=0)[0] is None  # type: ignore[arg-type]
    assert tried == [4, 2, 1]


def test_search_halves_where_the_start_does_not_fit() -> None:
    tried, trial = _fits_up_to(11)
    assert search(trial, start=32, limit=64, tolerance=0)[0] == 11  # type: ignore[arg-type]
    assert tried == [32, 16, 8, 12, 10, 11]


@pytest.mark.parametrize(("seconds", "tried"), [(0.0, [8]), (25.0, [8, 16]), (59.9, [8, 16, 32, 64, 128]), (1e9, None)])
def test_search_ends_with_what_it_has_when_time_is_up(seconds: float, tried: list[int] | None) -> None:
    def trial(batch_size: int) -> CapacityTrial:
        return CapacityTrial(batch_size, "ok" if batch_size <= 100 else "out-of-memory", 10.0, None)

    found, trials, ended = search(trial, start=8, limit=1024, tolerance=0.05, seconds=seconds)
    assert ended == (tried is None)
    assert tried is None or [one.batch_size for one in trials] == tried
    assert found == max(one.batch_size for one in trials if one.status == "ok")
    assert len(trials) == 1 or sum(one.seconds for one in trials) <= seconds


@pytest.mark.parametrize(("start", "limit", "tolerance"), [(0, 8, 0.0), (9, 8, 0.0), (1, 8, -0.1)])
def test_search_ranges(start: int, limit: int, tolerance: float) -> None:
    with pytest.raises(ConfigurationError, match="expected 1 <= start <= limit, tolerance at least 0"):
        search(lambda size: CapacityTrial(size, "ok", 0.0, None), start=start, limit=limit, tolerance=tolerance)


def test_default_limit_is_half_the_machine() -> None:
    assert default_memory_limit(1) == pytest.approx(2 * default_memory_limit(2), abs=1)


def test_the_users_own_limit_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))  # ulimit -d 1024
    assert default_memory_limit(1) == 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory limits are the kernel's, and Linux's here")
@pytest.mark.skipif(not sweep.whole(), reason="starts ten launches: --sweep all runs it")
def test_a_batch_too_large_for_the_limit_is_a_trial_not_the_end(ahead: tuple[str, ...]) -> None:
    # A step of the small CNN takes about 100 KB for each image, PyTorch itself about a third of this limit.
    record = find_largest_batch(
        Workload(),
        memory_limit_bytes=1 << 30,
        start=4096,
        limit=1 << 16,
        tolerance=31,
        threads_per_rank=1,
        hosts=(Host(ahead),),
    )
    assert record.memory_limit_bytes == 1 << 30
    assert record.largest is not None
    assert not record.reached_limit
    *fitted, last = record.trials
    assert [trial.status for trial in fitted] == ["ok"] * len(fitted)
    assert record.largest == fitted[-1].batch_size
    assert last.status == "out-of-memory"
    assert last.peak_memory_bytes is None
    assert last.message
    assert all(trial.peak_memory_bytes for trial in fitted)
