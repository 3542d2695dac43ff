"""Truth: causes planted under a study of the small CNN on two ranks, and the verdict names them.

They take minutes, and need a machine that does nothing else, or real-time scheduling; elsewhere they are skipped.
``python -m benchmarks.planted_causes`` records how many milliseconds the same studies find.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import sweep
from tests.scaling import plants
from twoscale._environment import available_cores, core_count, load_average


@pytest.fixture(autouse=True)
def first(ahead: tuple[str, ...]) -> None:
    """Let the ranks of studies run ahead of whatever else this machine does, or skip where that is much."""
    if not sweep.whole():
        pytest.skip("takes minutes: --sweep all plants real causes, and test_verdict.py the same ones in records")
    if core_count() < 2:
        pytest.skip("one core: two ranks would share it")
    load = load_average()
    if not ahead and load is not None and load[0] > 1.5 * core_count():
        pytest.skip(f"this machine is too busy to time anything: its load is {load[0]:.1f} on {core_count()} cores")


def test_slow_data(ahead: tuple[str, ...], tmp_path: Path) -> None:
    verdict = plants.slow_data(tmp_path, ahead)
    assert verdict.causes[0].name == "data", verdict


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes to cores")
def test_a_stolen_core(ahead: tuple[str, ...], tmp_path: Path) -> None:
    verdict = plants.stolen_core(tmp_path, ahead)
    core = available_cores()[1]
    assert verdict.causes[0].name == "straggler", verdict
    assert verdict.straggler == f"rank 1 on core {core}"
    assert f"goes to a straggler, rank 1 on core {core}. " in verdict.sentence


def test_a_long_round_trip(ahead: tuple[str, ...], tmp_path: Path) -> None:
    verdict = plants.long_round_trip(tmp_path, ahead)
    assert verdict.causes[0].name == "latency", verdict
    assert verdict.link is not None
    assert "Each message costs its fixed time however small it is." in verdict.sentence


def test_all_reduces_of_44_megabytes_on_the_cores_that_compute(ahead: tuple[str, ...], tmp_path: Path) -> None:
    verdict = plants.contention(tmp_path, ahead)
    communication = ("latency", "bandwidth", "last bucket", "buffers", "jitter", "contention")
    largest = next(cause.name for cause in verdict.causes if cause.name in communication)
    assert largest == "contention", verdict
