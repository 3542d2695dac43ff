"""Speed of the engine before and after a change: checkouts run in turn, so that all share what else the machine does.

    git worktree add ../before HEAD~1
    python -m benchmarks.pairs resnet50 ../before/src src
    python -m benchmarks.pairs resnet20 src:avx512vnni src:amx --batch 100 --threads 2
    python -m benchmarks.pairs net.onnx ../before/src src --layers

Each side is a process of its own with the package from its folder, and may name a target. They compute the same images
in turn, and their outputs must be the same. Printed are the fastest call of all rounds, and the median of the
fastest calls of each round. With ``--layers`` each layer is timed on one thread; its fastest time is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine import prepare
from benchmarks.peers.build import NETWORKS

SLICE_SECONDS = 0.06
"""Time of one side in one round; at least one call."""
SHOWN_LAYERS = 20
"""The slowest."""
SIDE = """
import hashlib, json, sys, time
import numpy as np
import twoscale
from twoscale._runtimes.compiled import CompiledNetwork

path, images, batch, threads, target, layers, seconds = json.loads(sys.argv[1])
network = twoscale.load(path)
shape = (batch, *network.input.output.shape)
x = np.random.default_rng(0).standard_normal(shape, np.float32)
if images:
    x = np.ascontiguousarray(np.load(images)[:batch])
run = network.compile(threads=threads, target=target)
timed = CompiledNetwork(network, target=target) if layers else None

def once():
    if timed is not None:
        return timed.layer_times(x, repeats=1)
    start = time.perf_counter()
    run(x)
    return {"": time.perf_counter() - start}

def fastest():
    end = time.perf_counter() + seconds
    best = once()
    while time.perf_counter() < end:
        best = {name: min(best[name], value) for name, value in once().items()}
    return best

print(hashlib.sha256(np.ascontiguousarray(run(x)).tobytes()).hexdigest(), run.kernels, flush=True)
fastest()
for _ in sys.stdin:
    print(json.dumps(fastest()), flush=True)
"""


@dataclass(frozen=True)
class Side:
    """A process that computes when it is asked to."""

    name: str
    process: subprocess.Popen[str]
    outputs: str
    """SHA-256."""

    def seconds(self) -> dict[str, float]:
        """Return the seconds of the fastest call, or of each layer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        return found


def start(side: str, arguments: argparse.Namespace, path: Path, images: Path | None) -> Side:
    """Start the process of a side, such as "../before/src:avx2"."""
    folder, _, target = side.partition(":")
    what = [str(path), str(images or ""), arguments.batch, arguments.threads, target or "native", arguments.layers]
    process = subprocess.Popen(
        [sys.executable, "-c", SIDE, json.dumps([*what, SLICE_SECONDS])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(folder).resolve())},
    )
    assert process.stdout is not None
    first = process.stdout.readline().split()
    if len(first) != 2:
        raise SystemExit(f"{side}: the process ended; its message is above")
    return Side(f"{side} ({first[1]})", process, first[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", help=f"an integer network, *.onnx, with random images; or {', '.join(NETWORKS)}")
    parser.add_argument("sides", nargs="+", metavar="FOLDER[:TARGET]", help="folder that contains the package")
    parser.add_argument("--batch", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--layers", action="store_true", help="time each layer, on one thread")
    parser.add_argument("--models", type=Path, help="folder of published weights; random weights take the same time")
    arguments = parser.parse_args()
    path, images = Path(arguments.network), None
    if arguments.network in NETWORKS:
        files = prepare(arguments.network, arguments.models)
        path, images = files.twoscale, files.images
    sides = [start(side, arguments, path, images) for side in arguments.sides]
    found: list[list[dict[str, float]]] = [[] for _ in sides]
    for index in range(arguments.rounds):
        order = range(len(sides))
        for place in order if index % 2 == 0 else reversed(order):
            found[place].append(sides[place].seconds())
    best = [{name: min(times[name] for times in rounds) for name in rounds[0]} for rounds in found]
    micro = 1e6 / arguments.batch
    for side, rounds, fastest in zip(sides, found, best, strict=True):
        typical = statistics.median(sum(times.values()) for times in rounds)
        print(f"{sum(fastest.values()) * micro:10.1f} µs per image, median {typical * micro:10.1f}: {side.name}")
    if arguments.layers:
        for name in sorted(best[0], key=lambda name: -best[0][name])[:SHOWN_LAYERS]:
            print("".join(f"{fastest[name] * micro:10.1f}" for fastest in best), name)
    for side in sides:
        side.process.communicate()
    if len({side.outputs for side in sides}) > 1:
        raise SystemExit("the outputs differ")


if __name__ == "__main__":
    main()
