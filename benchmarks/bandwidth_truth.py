"""Measured bandwidth against a link of known rate.

    sudo python -m benchmarks.bandwidth_truth [--mbits 50 100 200 500 1000] [--mib 1 8 32] [--repeats 7]

Two ranks in two network namespaces, joined by a veth pair that ``tc tbf`` shapes to each rate in turn
(``scripts/netns``); all traffic stays between the two. What a link carries of payload is its rate less framing: 1,448
of every 1,514 bytes (Ethernet, IPv4, TCP with time stamps; veth has no checksum, preamble or gap). ``busbw`` of
all-reduces must come out at that: a ratio of 1. Where it is allowed, the ranks run ahead of everything else
(``chrt --rr``), so that a busy machine measures the link and not its own scheduler. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import write_result
from twoscale.errors import TwoscaleError
from twoscale.scaling._measure.launch import Host, launch
from twoscale.scaling._measure.records import BandwidthRecord
from twoscale.scaling._measure.tasks import BandwidthTask

SCRIPT = Path(__file__).parents[1] / "scripts" / "netns"
PAYLOAD = 1448 / 1514
AHEAD = ("chrt", "--rr", "1")


@dataclass(frozen=True)
class Row:
    """One rate and size."""

    mbit: int
    payload_limit: float
    """Bytes per second."""
    bytes: int
    busbw: float
    """Bytes per second, from the median time of the slowest rank."""
    busbw_p95: float
    """The same from the 95th percentile of the times."""
    ratio: float
    """busbw / payload limit."""


@contextmanager
def shaped_link(mbit: int) -> Iterator[tuple[Host, Host]]:
    """Make the two namespaces, and yield them as hosts."""
    name = f"b{os.getpid() % 10**8}"
    made = subprocess.run([SCRIPT, "up", name, str(mbit)], capture_output=True, text=True)
    if made.returncode:
        raise TwoscaleError(made.stderr.strip())
    ahead = AHEAD if shutil.which(AHEAD[0]) and not subprocess.run([*AHEAD, "true"]).returncode else ()
    try:
        a, b = (
            Host(("ip", "netns", "exec", f"{name}-{end}", *ahead), f"10.231.0.{i}", f"veth-{name}")
            for i, end in ((1, "a"), (2, "b"))
        )
        yield a, b
    finally:
        subprocess.run([SCRIPT, "down", name], check=True)


def measure(mbit: int, sizes: Sequence[int], repeats: int) -> list[Row]:
    """Measure all-reduces over a link of ``mbit`` Mbit/s."""
    limit = mbit * 1e6 / 8 * PAYLOAD
    with shaped_link(mbit) as hosts:
        task = BandwidthTask(tuple(sizes), repeats, budget_seconds=600)
        outcome = launch(
            "twoscale.scaling._measure.bandwidth:run",
            task,
            world_size=2,
            threads_per_rank=1,
            hosts=hosts,
            timeout=900,
        ).decoded(BandwidthRecord)
    record = outcome.value
    rows = []
    for row in record.rows:
        assert row.busbw is not None
        assert row.busbw_p95 is not None
        rows.append(Row(mbit, limit, row.bytes, row.busbw, row.busbw_p95, row.busbw / limit))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbits", type=int, nargs="+", default=[50, 100, 200, 500, 1000])
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    rows: list[Row] = []
    print("Mbit/s   MiB   payload MB/s   busbw MB/s   p95 MB/s   ratio")
    for mbit in arguments.mbits:
        try:
            found = measure(mbit, [mib << 20 for mib in arguments.mib], arguments.repeats)
        except TwoscaleError as error:
            parser.exit(3, f"{error}\n")
        for row in found:
            print(
                f"{row.mbit:6d} {row.bytes >> 20:5d} {row.payload_limit / 1e6:14.2f} {row.busbw / 1e6:12.2f} "
                f"{row.busbw_p95 / 1e6:10.2f} {row.ratio:7.3f}"
            )
        rows += found
    path = write_result("bandwidth_truth", {"backend": "gloo", "world_size": 2, "rows": rows})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
