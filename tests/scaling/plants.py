"""Causes of lost time that are planted under real studies of two ranks, for the tests and benchmarks.planted_causes.

Tests ask only which cause the verdict names; the benchmark records how many milliseconds it finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.scaling.far_link import far_link
from tests.scaling.workers import DATA_SECONDS
from twoscale._environment import available_cores
from twoscale.scaling._measure.launch import Host, launch
from twoscale.scaling._measure.records import Outcome
from twoscale.scaling._questions.verdict import Verdict, VerdictAnswer
from twoscale.scaling._run import run_study, study_config
from twoscale.scaling._study.cells import KINDS

__all__ = ["PLANTS", "ROUND_TRIP", "Plant", "real_time"]

ROOT = Path(__file__).parents[2]
ROUND_TRIP = 0.0103
"""Seconds."""
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

Ahead = tuple[str, ...]


def real_time() -> Ahead:
    """Return the command that puts a process ahead of whatever else this machine does; empty where not allowed.

    Real-time scheduling; being nice is not enough, as the kernel weighs sessions before it weighs processes.
    """
    command = ("chrt", "--rr", "1")
    if shutil.which(command[0]) and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return ()


def _verdict(folder: Path, hosts: tuple[Host, ...], **given: Any) -> Verdict:
    """Run a study on these hosts and return its verdict."""

    def start(*arguments: Any, world_size: int, **options: Any) -> Outcome[Any]:
        chosen = hosts if len(hosts) == 1 else hosts[:world_size]
        return launch(*arguments, world_size=world_size, hosts=chosen, **options)

    options = {"model": "net", "data": "digits", "base_batch": 64, "repeats": 2, **given}
    config = study_config("cpu", sections=("communication", "forecast"), **options)
    with (
        mock.patch("twoscale.scaling._study.run.launch", start),
        mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}),
    ):
        verdict = run_study(config, folder).of(VerdictAnswer).verdict
    assert verdict is not None
    return verdict


def nothing(folder: Path, ahead: Ahead) -> Verdict:
    """Plant nothing."""
    return _verdict(folder, (Host(ahead),), grid_batches=(), repeats=3)


def slow_data(folder: Path, ahead: Ahead) -> Verdict:
    """Let every batch take four milliseconds longer."""
    slow = {
        name: dataclasses.replace(KINDS[name], target=f"tests.scaling.workers:slow_data_{name}")
        for name in ("ranks", "arms")
    }
    with mock.patch.dict(KINDS, slow):
        return _verdict(folder, (Host(ahead),))


def long_round_trip(folder: Path, ahead: Ahead) -> Verdict:
    """Put the ranks at the two ends of a link with a round trip of ten milliseconds."""
    with far_link(f"f{os.getpid() % 10**8}", ROUND_TRIP, ahead) as hosts:
        return _verdict(folder, hosts, grid_batches=(), steps=10)


@contextlib.contextmanager
def _thief(ahead: Ahead) -> Iterator[None]:
    """Let another process take half of the second rank's core."""
    # In turns as short as those of ordinary scheduling: where ranks have real-time priority, this has a higher one.
    higher = (*ahead[:-1], "2") if ahead else ()
    command = [*higher, sys.executable, "-c", THIEF, str(available_cores()[1])]
    thief = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert thief.stdout is not None
        thief.stdout.readline()
        yield
    finally:
        thief.kill()
        thief.communicate()


def stolen_core(folder: Path, ahead: Ahead) -> Verdict:
    """Let another process take half of the second rank's core."""
    with _thief(ahead):
        return _verdict(folder, (Host(ahead),))


def contention(folder: Path, ahead: Ahead) -> Verdict:
    """Let gloo sum the 44 MB of ResNet-18's gradients on the cores that compute, four images per rank.

    Only the last of three buckets cannot be sent beside the backward pass, and alone it takes a few milliseconds. What
    ranks lose by sharing the machine, before they communicate, is not planted here: it may be more.
    """
    return _verdict(folder, (Host(ahead),), model="resnet18", data="synthetic", base_batch=4, grid_batches=(), steps=2)


@dataclasses.dataclass(frozen=True)
class Plant:
    """A cause, and the study under which it is planted."""

    run: Callable[[Path, Ahead], Verdict]
    cause: str | None
    """The verdict's name for it; None where nothing is planted."""
    seconds: float | None
    """That it costs in a step; None where that is not known."""


PLANTS = {
    "nothing": Plant(nothing, None, 0.0),
    "slow data": Plant(slow_data, "data", DATA_SECONDS),
    "stolen core": Plant(stolen_core, "straggler", None),
    "long round trip": Plant(long_round_trip, "latency", None),
    "contention": Plant(contention, "contention", None),
}
"""What is planted, by its name."""
