"""A forecast fitted on one and two hosts, against what three and four hosts measure.

    sudo python -m benchmarks.several_hosts [--mbit 200]

Network namespaces stand for four hosts, each with one rank, joined by a bridge whose links are shaped (``scripts/netns
bridge``). ``twoscale scale`` serves on three of them, as it does on other machines. The hosts share this machine's
cores, and a real network's hosts do not: the step's computing is therefore a pause, which takes no core, and what is
forecast is communication: three gradient buckets of 1 to 2 MiB over the bridge. Needs root and iproute2, and takes less
than four minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import write_result
from twoscale._environment import available_cores
from twoscale._launching.hosts import Place
from twoscale._page.numbers import fixed, joined, percent, signed
from twoscale._page.tables import Column, Table, table
from twoscale.scaling._measure.hosts import Team, lead
from twoscale.scaling._measure.launch import launch
from twoscale.scaling._measure.records import DdpOptions, RankGroup, Workload
from twoscale.scaling._measure.tasks import ArmsResult, ArmsTask
from twoscale.scaling._questions.communication import ArmsAt
from twoscale.scaling._questions.forecast import link_of, measured_steps, over
from twoscale.scaling._questions.link_model import MeasuredStep, fit
from twoscale.scaling._questions.step_forecast import forecast
from twoscale.scaling._run import study_config

SCRIPT = Path(__file__).parents[1] / "scripts" / "netns"
HOSTS = 4
FITTED = 2
PAUSE = 0.02
"""Seconds of a forward pass, and again of a backward pass."""
PORT = 29_455


class _Pause(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        time.sleep(PAUSE)
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        time.sleep(PAUSE)
        return grad


class Pausing(nn.Module):
    """Linear layers of 1 to 2 MiB with pauses between them, in the forward and in the backward pass."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(3072, 128)
        self.second = nn.Linear(128, 2500)
        self.third = nn.Linear(2500, 128)
        self.head = nn.Linear(128, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        x = _Pause.apply(torch.relu(self.second(x)))  # type: ignore[no-untyped-call]
        logits: torch.Tensor = self.head(torch.relu(self.third(x)))
        return logits


@dataclass(frozen=True)
class Row:
    """A step on a number of hosts, forecast from one and two."""

    hosts: int
    measured: float
    """Seconds, as all times here."""
    forecast: float
    error: float
    """forecast / measured - 1."""
    measured_exposed: float
    forecast_exposed: float
    exposed_error: float


@dataclass(frozen=True)
class SeveralHosts:
    """The record."""

    mbit: int
    """Of each host's link, Mbit/s."""
    fitted_on_hosts: int
    rows: tuple[Row, ...]


def hosts_sentence(record: SeveralHosts) -> str:
    """Return how far off the forecast is."""
    worst = max(abs(row.error) for row in record.rows)
    waits = max(abs(row.exposed_error) for row in record.rows)
    return (
        f"Fitted to 1 and {record.fitted_on_hosts} hosts, the forecast of a step on "
        f"{joined(str(row.hosts) for row in record.rows)} hosts is off by at most {percent(worst, 1)} %, and that of "
        f"its wait for communication by at most {percent(waits, 1)} %."
    )


def hosts_table(record: SeveralHosts) -> Table:
    """Return measured and forecast steps on hosts that were not fitted."""

    def milliseconds(seconds: float) -> str:
        return fixed(1e3 * seconds, 1)

    rows = [
        [
            str(row.hosts),
            milliseconds(row.measured),
            milliseconds(row.forecast),
            signed(100 * row.error, 1),
            milliseconds(row.measured_exposed),
            milliseconds(row.forecast_exposed),
            signed(100 * row.exposed_error, 1),
        ]
        for row in record.rows
    ]
    columns = [
        Column("Hosts"), Column("Step measured", "ms"), Column("Step forecast", "ms"), Column("Error", "%"),
        Column("Wait measured", "ms"), Column("Wait forecast", "ms"), Column("Error of the wait", "%"),
    ]  # fmt: skip
    return table("Held-out hosts", columns, rows)


def steps_on(team: Team, hosts: Sequence[int], steps: int) -> list[MeasuredStep]:
    """Measure steps on numbers of hosts, one rank on each."""
    workload = Workload("benchmarks.several_hosts:Pausing", batch_size=4, ddp=DdpOptions(bucket_cap_mb=1))
    config = study_config("cpu", model=workload.model, data="synthetic", hosts=tuple(hosts), world_sizes=(1,))
    arms, bandwidth = [], []
    for count in hosts:
        outcome = launch(
            "twoscale.scaling._measure.jobs:run_arms",
            ArmsTask(workload, (workload.batch_size,), bandwidth=count > 1, steps=steps),
            world_size=count,
            threads_per_rank=1,
            hosts=(team.first,),
            followers=team.others(count),
            timeout=240,
        ).decoded(ArmsResult)
        arms.append(ArmsAt(workload.batch_size, outcome.value.arms[0]))
        if outcome.value.bandwidth is not None:
            bandwidth.append(outcome.value.bandwidth)
        print(f"{RankGroup(count, count)}: {1e3 * arms[-1].record.ddp.median:.1f} ms a step, {outcome.seconds:.0f} s")
    return over(measured_steps(config, arms, bandwidth), link_of(config, RankGroup(2, 2)))


def compare(steps: Sequence[MeasuredStep]) -> list[Row]:
    """Forecast the steps on more hosts than are fitted."""
    known = [step for step in steps if step.world_size <= FITTED]
    link = known[-1].link
    rows = []
    for step in steps[len(known) :]:
        found = forecast(known, step.world_size, step.batch_size, link)
        rows.append(
            Row(
                hosts=step.world_size,
                measured=step.step,
                forecast=found.step,
                error=found.step / step.step - 1,
                measured_exposed=step.waits,
                forecast_exposed=found.exposed,
                exposed_error=found.exposed / step.waits - 1,
            )
        )
    return rows


def measure(mbit: int, steps: int) -> None:
    """Lead the hosts from the first, measure, and write the result."""
    place = Place(HOSTS, 0, "10.231.0.1", PORT)
    with lead(place) as team:
        found = steps_on(team, range(1, HOSTS + 1), steps)
    model = fit([step for step in found if step.world_size <= FITTED], found[1].link.name)
    rows = compare(found)
    for row in rows:
        print(
            f"{row.hosts} hosts: {1e3 * row.measured:.1f} ms measured, {1e3 * row.forecast:.1f} ms forecast "
            f"({row.error:+.1%}); waiting {1e3 * row.measured_exposed:.1f} and {1e3 * row.forecast_exposed:.1f} ms "
            f"({row.exposed_error:+.1%})"
        )
    path = write_result("several_hosts", {"mbit": mbit, "fitted_on_hosts": FITTED, "line": asdict(model), "rows": rows})
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1, help="in each turn of an arm")
    parser.add_argument("--lead", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lead:
        measure(arguments.mbit, arguments.steps)
        return
    name = f"s{os.getpid() % 10**8}"
    made = subprocess.run([SCRIPT, "bridge", name, str(arguments.mbit), str(HOSTS)], capture_output=True, text=True)
    if made.returncode:
        parser.exit(3, made.stderr)
    cores = available_cores()
    serving = ["twoscale", "scale", "--device", "cpu", "--hosts", str(HOSTS), "--address", f"10.231.0.1:{PORT}"]
    leading = ["benchmarks.several_hosts", "--mbit", str(arguments.mbit), "--steps", str(arguments.steps), "--lead"]
    hosts = []
    try:
        for host in range(HOSTS):
            words = [*serving, "--host", str(host)] if host else leading
            here = ["ip", "netns", "exec", f"{name}-{host}", "taskset", "-c", str(cores[host % len(cores)])]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
            hosts.append(subprocess.Popen([*here, sys.executable, "-m", *words], env=environment))
        code = hosts[0].wait()
    finally:
        for one in hosts:
            one.terminate()
            one.wait()
        subprocess.run([SCRIPT, "down", name], check=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
