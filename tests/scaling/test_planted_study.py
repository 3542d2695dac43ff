"""Truth: causes planted under a study of the small CNN on two ranks, and the verdict names them.

They take minutes, and need a machine that does nothing else, or real-time scheduling; elsewhere they are skipped.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import sweep
from tests.scaling.far_link import far_link
from twoscale._environment import available_cores, core_count, load_average
from twoscale.scaling._measure.launch import Host, launch
from twoscale.scaling._measure.records import Outcome
from twoscale.scaling._questions.verdict import Verdict, VerdictAnswer
from twoscale.scaling._run import run_study, study_config
from twoscale.scaling._study.cells import KINDS

ROOT = Path(__file__).parents[2]
THIEF = """
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
print(flush=True)
while True:
    end = time.perf_counter() + 0.002
    while time.perf_counter() < end:
        pass
    time.sleep(0.002)
"""


@pytest.fixture(autouse=True)
def first(ahead: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ranks of studies run ahead of whatever else this machine does, or skip where that is much."""
    if not sweep.whole():
        pytest.skip("takes minutes: --sweep all plants real causes, and test_verdict.py the same ones in records")
    if core_count() < 2:
        pytest.skip("one core: two ranks would share it")
    load = load_average()
    if not ahead and load is not None and load[0] > 1.5 * core_count():
        pytest.skip(f"this machine is too busy to time anything: its load is {load[0]:.1f} on {core_count()} cores")
    monkeypatch.setattr("twoscale.scaling._study.run.launch", functools.partial(launch, hosts=(Host(ahead),)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def _verdict(folder: Path, **given: Any) -> Verdict:
    options = {"model": "net", "data": "digits", "base_batch": 64, "repeats": 2, **given}
    config = study_config("cpu", sections=("communication", "forecast"), **options)
    verdict = run_study(config, folder).of(VerdictAnswer).verdict
    assert verdict is not None
    return verdict


def _milliseconds(verdict: Verdict) -> dict[str, float]:
    return {str(cause.name): 1e3 * cause.seconds for cause in verdict.causes}


def test_four_milliseconds_per_batch_in_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ranks", "arms"):
        planted = dataclasses.replace(KINDS[name], target=f"tests.scaling.workers:slow_data_{name}")
        monkeypatch.setitem(KINDS, name, planted)
    verdict = _verdict(tmp_path)
    assert verdict.causes[0].name == "data", verdict
    # A sleep takes longer under load, never less.
    assert _milliseconds(verdict)["data"] > 0.7 * 4


@pytest.fixture
def stolen_core(ahead: tuple[str, ...]) -> Iterator[int]:
    """Let another process take half of the second rank's core."""
    core = available_cores()[1]
    # In turns as short as those of ordinary scheduling: where ranks have real-time priority, this has a higher one.
    higher = (*ahead[:-1], "2") if ahead else ()
    thief = subprocess.Popen([*higher, sys.executable, "-c", THIEF, str(core)], stdout=subprocess.PIPE)
    try:
        assert thief.stdout is not None
        thief.stdout.readline()
        yield core
    finally:
        thief.kill()
        thief.communicate()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes to cores")
def test_a_stolen_core(stolen_core: int, tmp_path: Path) -> None:
    verdict = _verdict(tmp_path)
    assert verdict.causes[0].name == "straggler", verdict
    assert verdict.straggler == f"rank 1 on core {stolen_core}"
    found = _milliseconds(verdict)
    assert found["latency"] < 0.2 * found["straggler"], verdict
    assert f"goes to a straggler, rank 1 on core {stolen_core}. " in verdict.sentence


def test_a_round_trip_of_ten_milliseconds(
    ahead: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_trip = 0.0103
    with far_link(f"f{os.getpid() % 10**8}", round_trip, ahead) as hosts:

        def start(*arguments: Any, world_size: int, **options: Any) -> Outcome[Any]:
            return launch(*arguments, world_size=world_size, hosts=hosts[:world_size], **options)

        monkeypatch.setattr("twoscale.scaling._study.run.launch", start)
        verdict = _verdict(tmp_path, grid_batches=(), steps=10)
    assert verdict.causes[0].name == "latency", verdict
    # The halves of the gradients are summed, and then the sums exchanged: at least one way each time.
    assert _milliseconds(verdict)["latency"] > 0.9e3 * round_trip
    assert verdict.link is not None
    assert verdict.link.latency > 0.9 * round_trip / 2
    assert "Each message costs its fixed time however small it is." in verdict.sentence


def test_all_reduces_of_44_megabytes_on_the_cores_that_compute(tmp_path: Path) -> None:
    """ResNet-18 with four images per rank: gloo sums gradients on the cores that compute the next ones.

    Only the last of three buckets cannot be sent beside the backward pass, and alone it takes a few milliseconds. What
    ranks lose by sharing the machine, before they communicate, is not planted here: it may be more.
    """
    verdict = _verdict(tmp_path, model="resnet18", data="synthetic", base_batch=4, grid_batches=(), steps=2)
    found = _milliseconds(verdict)
    communication = ("latency", "bandwidth", "last bucket", "buffers", "jitter", "contention")
    assert max(communication, key=lambda name: found[name]) == "contention", verdict
    assert found["contention"] > found["latency"] + found["bandwidth"] + found["last bucket"], verdict


def test_nothing_planted(tmp_path: Path) -> None:
    load = load_average()
    if load is not None and load[0] > 1.5 * core_count():
        # Caches and memory have no priorities.
        pytest.skip(f"what else this machine does is planted: its load is {load[0]:.1f} on {core_count()} cores")
    verdict = _verdict(tmp_path, grid_batches=(), repeats=3)
    assert abs(verdict.unexplained) <= 0.1 * verdict.loss.mean, verdict
