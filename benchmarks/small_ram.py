"""Time and memory of exported C for target small-ram, relative to portable C, on this machine.

    python -m benchmarks.small_ram [--repeats 9] [--compiler gcc]

Networks have random weights, which affect neither. Both are compiled with -O2, which vectorizes neither. A program runs
one image several times and prints the median. The two run in turn, each time in a fresh process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import twoscale
from benchmarks.common import paired, write_result
from benchmarks.peers.build import make_images, make_model
from twoscale._codegen.c import export_c

NETWORKS = ("net", "resnet8", "resnet20", "mobilenetv2")
RUNS = 5

_MAIN = """
#include "network.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint8_t arena[NETWORK_ARENA_BYTES], image[NETWORK_INPUT_COUNT];
static int32_t output[NETWORK_OUTPUT_COUNT];

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int main(void)
{
    double microseconds[RUNS];

    for (int i = 0; i < NETWORK_INPUT_COUNT; i++)
        image[i] = (uint8_t)(i * 7);
    for (int i = 0; i < RUNS; i++) {
        struct timespec begin, end;

        clock_gettime(CLOCK_MONOTONIC, &begin);
        network_run(image, arena, output);
        clock_gettime(CLOCK_MONOTONIC, &end);
        microseconds[i] = 1e6 * (double)(end.tv_sec - begin.tv_sec) + 1e-3 * (double)(end.tv_nsec - begin.tv_nsec);
    }
    qsort(microseconds, RUNS, sizeof microseconds[0], compare);
    printf("%f", microseconds[RUNS / 2]);
    return 0;
}
"""


@dataclass(frozen=True)
class Cost:
    """One network."""

    network: str
    arena_bytes: int
    """Of target small-ram."""
    portable_arena_bytes: int
    unshared_bytes: int
    """Bytes of all tensors without sharing memory."""
    microseconds: float
    """Seconds per image with target small-ram."""
    portable_microseconds: float
    ratio: float
    """Time of small-ram over that of portable: median of the pairs' ratios."""
    ratio_spread: tuple[float, float]


@dataclass(frozen=True)
class Costs:
    """benchmarks/results/small_ram.json."""

    compiler: str
    repeats: int
    networks: tuple[Cost, ...]


def measure(name: str, compiler: str, repeats: int) -> Cost:
    """Export, compile and time both."""
    images = make_images(name)
    network = twoscale.quantize(make_model(name, None, images), [torch.from_numpy(images)], name=name)
    targets: tuple[Literal["small-ram", "portable"], ...] = ("small-ram", "portable")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for target in targets:
            place = Path(folder, target)
            sizes[target] = export_c(network, place, target=target, name="network").sizes
            (place / "main.c").write_text(_MAIN)
            command = [compiler, "-O2", "-std=gnu99", f"-DRUNS={RUNS}", "-o", "main", "main.c", "network.c"]
            subprocess.run(command, cwd=place, check=True)

        def run(target: str) -> float:
            return float(subprocess.run([Path(folder, target, "main")], capture_output=True, check=True).stdout)

        pair = paired(lambda: run("small-ram"), lambda: run("portable"), repeats)
    return Cost(
        name,
        sizes["small-ram"].arena_bytes,
        sizes["portable"].arena_bytes,
        sizes["portable"].unshared_bytes,
        pair.median_a,
        pair.median_b,
        statistics.median(a / b for a, b in zip(pair.a, pair.b, strict=True)),
        pair.ratio_spread,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--compiler", default="gcc", help="(default: %(default)s)")
    arguments = parser.parse_args()
    told = subprocess.run([arguments.compiler, "--version"], capture_output=True, text=True, check=True).stdout
    costs = []
    for name in NETWORKS:
        costs.append(measure(name, arguments.compiler, arguments.repeats))
        cost = costs[-1]
        low, high = cost.ratio_spread
        print(
            f"{name:<12} arena {cost.arena_bytes:>8,} bytes instead of {cost.portable_arena_bytes:>8,}; time "
            f"{cost.ratio:.3f} of portable's ({low:.3f} to {high:.3f}), {cost.portable_microseconds:,.0f} µs",
            flush=True,
        )
    print(f"written to {write_result('small_ram', Costs(told.splitlines()[0], arguments.repeats, tuple(costs)))}")


if __name__ == "__main__":
    main()
