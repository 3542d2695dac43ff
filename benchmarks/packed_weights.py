"""How fast networks with packed weights of 4 and 2 bits are, beside the same networks with bytes.

    python -m benchmarks.packed_weights [--networks resnet8,resnet18,mobilenetv2] [--rounds 15] [--only timed|counted]
    python -m benchmarks.packed_weights --table      # the recorded figures as tables

On x86, exported C runs on one thread, for each instruction set that this processor has; ONNX Runtime runs what it has
quantized itself to 8 bits. All sides of a network take turns, in every round in another order; a ratio is that of
medians, and its spread has the smallest and the largest ratio within a round. On AArch64, instructions of one image are
counted under QEMU, which depend on no machine. Weights are random: their values decide no kernel but by their bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import twoscale
from benchmarks.chips import AARCH64_COMPILERS, Counter, require
from benchmarks.common import RESULTS, write_result
from benchmarks.peers.build import Files, build_onnxruntime, make_images, make_model
from benchmarks.peers.run import onnxruntime
from twoscale._codegen.c import sizes_of
from twoscale._codegen.targets import ARM, INSTRUCTION_SETS, X86
from twoscale._environment import Environment
from twoscale._files import read_record
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes import processor

NETWORKS = ("resnet8", "resnet18", "mobilenetv2")
BITS = (8, 4, 2)
BATCHES = (1, 8)
LEAST_SECONDS = 0.05
"""Of a timed run, which is repeated until it takes so long."""


@dataclass(frozen=True)
class Timed:
    """One side."""

    network: str
    runtime: str
    """An instruction set, or "ONNX Runtime"."""
    bits: int
    batch: int
    constants: int | None
    """Bytes of weights and other constants in the C."""
    microseconds: float
    """Of one image: the median."""
    ratio: float
    """To bytes on the same instruction set; of ONNX Runtime to those on the first."""
    spread: tuple[float, float]


@dataclass(frozen=True)
class Counted:
    """Instructions of one image on AArch64."""

    network: str
    level: str
    compiler: str
    bits: int
    instructions: int


@dataclass(frozen=True)
class Record:
    """benchmarks/results/packed_weights.json."""

    timed: tuple[Timed, ...]
    counted: tuple[Counted, ...]
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def narrowed(network: IntegerNetwork, bits: int) -> IntegerNetwork:
    """Return a network with weights of few bits."""
    limit = 2 ** (bits - 1) - 1
    layers = tuple(
        dataclasses.replace(layer, weight=(layer.weight.astype(np.int64) % (2 * limit + 1) - limit).astype(np.int8))
        if bits < 8 and isinstance(layer, n.Accumulating)
        else layer
        for layer in network
    )
    return dataclasses.replace(network, layers=layers)


def seconds_of(call: Callable[[], Any], times: int) -> float:
    """Return the seconds of a call, from so many."""
    clock = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - clock) / times


def timed(
    name: str, network: IntegerNetwork, images: NDArray[np.float32], files: Files, rounds: int
) -> Iterator[Timed]:
    """Time a network on every instruction set of x86 that this processor has."""
    known = processor.features() or frozenset()
    sets = [isa.name for isa in INSTRUCTION_SETS if isa.architecture is X86 and known.issuperset(isa.features)]
    networks = {bits: narrowed(network, bits) for bits in BITS}
    compiled = {(isa, bits): networks[bits].compile(threads=1, target=isa) for isa in sets for bits in BITS}
    for batch in BATCHES:
        some = np.ascontiguousarray(images[:batch])
        calls: dict[tuple[str, int], Callable[[], Any]] = {
            side: functools.partial(run, some) for side, run in compiled.items()
        }
        calls["ONNX Runtime", 8] = onnxruntime(files.onnx_int8, some, 1)
        times = {}
        for side, call in calls.items():
            call()
            times[side] = max(1, round(LEAST_SECONDS / seconds_of(call, 2)))
        found: dict[tuple[str, int], list[float]] = {side: [] for side in calls}
        for index in range(rounds):
            order = list(calls)
            for side in order[index % len(order) :] + order[: index % len(order)]:
                found[side].append(1e6 * seconds_of(calls[side], times[side]) / batch)
        for (runtime, bits), each in found.items():
            base = found[runtime if runtime in sets else sets[0], 8]
            ratios = [a / b for a, b in zip(each, base, strict=True)]
            median = statistics.median(each)
            constants = sizes_of(networks[bits], runtime).flash_bytes if runtime in sets else None
            yield Timed(
                name, runtime, bits, batch, constants, median,
                median / statistics.median(base), (min(ratios), max(ratios)),
            )  # fmt: skip


def counted(counter: Counter, name: str, network: IntegerNetwork) -> Iterator[Counted]:
    """Count a network's instructions on every level of AArch64."""
    for isa in INSTRUCTION_SETS:
        for compiler in AARCH64_COMPILERS if isa.architecture is ARM else ():
            for bits in BITS:
                row = counter.count_aarch64(narrowed(network, bits), isa.name, compiler, "-O2")
                yield Counted(name, isa.name, compiler, bits, row.instructions)


def timed_table(record: Record, batch: int) -> str:
    """Return the times of one batch size as Markdown."""
    lines = [
        "| network | instruction set | 8 bits | 4 bits | of 8 | 2 bits | of 8 | constants of 4, 2 bits |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    rows = {(row.network, row.runtime, row.bits): row for row in record.timed if row.batch == batch}
    for network, runtime, bits in rows:
        if bits != 8:
            continue
        eight, *fewer = (row for bits in BITS if (row := rows.get((network, runtime, bits))))
        cells = [
            f"{one.microseconds:,.0f} µs | {one.ratio:.2f} ({one.spread[0]:.2f}–{one.spread[1]:.2f})" for one in fewer
        ]
        shares = ", ".join(f"{100 * (one.constants or 0) / (eight.constants or 1):.0f} %" for one in fewer)
        cells = [*cells, shares] if fewer else ["–"] * 5
        lines.append(f"| {network} | {runtime} | {eight.microseconds:,.0f} µs | {' | '.join(cells)} |")
    return "\n".join(lines)


def counted_table(record: Record) -> str:
    """Return the counts as Markdown, in millions."""
    lines = ["| network | level | compiler | 8 bits | 4 bits | 2 bits |", "|---|---|---|--:|--:|--:|"]
    counts = {(row.network, row.level, row.compiler, row.bits): row.instructions for row in record.counted}
    for network, level, compiler, bits in counts:
        if bits == 8:
            each = [f"{counts[network, level, compiler, bits] / 1e6:.2f}" for bits in BITS]
            lines.append(f"| {network} | {level} | {compiler} | {' | '.join(each)} |")
    return "\n".join(lines)


def recorded() -> Record:
    """Return the recorded figures."""
    path = RESULTS / "packed_weights.json"
    return read_record(path, Record) if path.exists() else Record((), ())


def tables(record: Record) -> str:
    """Return all figures as Markdown."""
    times = [f"Batches of {batch}:\n\n{timed_table(record, batch)}" for batch in BATCHES]
    return "\n\n".join([*times, f"Million instructions:\n\n{counted_table(record)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--only", choices=("timed", "counted"), help="keep the recorded figures of the other kind")
    parser.add_argument("--table", action="store_true", help="print the recorded figures, and measure nothing")
    chosen = parser.parse_args()
    before = recorded()
    if chosen.table:
        print(tables(before))
        return
    torch.set_num_threads(1)
    times: list[Timed] = []
    counts: list[Counted] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = []
        for name in chosen.networks.split(","):
            images, files = make_images(name), Files(Path(folder) / name)
            files.folder.mkdir()
            model = make_model(name, None, images)
            build_onnxruntime(model, files, images)
            network = twoscale.quantize(model, [torch.from_numpy(images)], name=name)
            prepared.append((name, network, images, files))
        for one in prepared if chosen.only != "counted" else ():
            times += timed(*one, chosen.rounds)
        if chosen.only != "timed":
            require(("qemu-aarch64", *AARCH64_COMPILERS), "qemu-user gcc-aarch64-linux-gnu clang-19")
            counter = Counter(Path(folder))
            for name, network, _, _ in prepared:
                counts += counted(counter, name, network)
    record = Record(tuple(times) or before.timed, tuple(counts) or before.counted)
    write_result("packed_weights", record, "onnxruntime")
    print(tables(record))


if __name__ == "__main__":
    main()
