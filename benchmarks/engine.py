"""Speed of integer networks on this machine, against other runtimes with the same batch and threads.

    make bench-engine                      # makes its own environment the first time; --isa all
    make bench-engine-large                # 224×224
    python -m benchmarks.engine [--cases small|large] [--isa avx512vnni|avxvnni|avx2|all] [--models DIR] [--rows TEXT]
                                [--rounds 11] [--no-record] [--prepare]
    python -m benchmarks.engine --table    # the recorded figures as a table; also with --cases and --isa

One process holds every runtime. In each round each of them runs in turn for a moment, so that all share whatever else
the machine does; a figure is the median over rounds of the median call of a round, a ratio the median of the rounds'
own ratios. All are called from Python with the batch as a NumPy array; for LiteRT only ``invoke`` is timed. The
processor's limit is measured in the same rounds, and the best of it counts. Before any clock starts, the engine's
integers are compared with the reference's.

With ``--isa`` every runtime sees a processor without the instruction sets that are better (peers/hide.py), which needs
Linux on x86-64. ``--isa all`` measures with every instruction set, then with each of these as the best. ``--prepare``
only makes the files of the networks, which takes most of the time and need not be done on an idle machine.

DIR may hold published weights, NAME-*.safetensors, and a published LiteRT file; TWOSCALE_BENCH_MODELS names it too.
Without it weights are random: that changes no speed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import RESULTS, write_result
from benchmarks.peers.build import LARGE, NETWORKS, Files
from benchmarks.peers.hide import hidden_environment, loaded_libraries, unhidden_libraries
from benchmarks.peers.run import Peak, Side, peers
from twoscale._environment import Environment, load_average
from twoscale._files import read_record
from twoscale._formats import load
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes.compiled import CompiledNetwork

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "engine"
ENGINE = "twoscale"
Case = tuple[str, int, int]
"""Network, batch, threads."""
CASES: dict[str, tuple[Case, ...]] = {
    "small": (
        ("resnet8", 1, 1),
        ("resnet8", 100, 2),
        ("resnet20", 100, 2),
        ("resnet20", 1, 1),
        ("net", 1, 1),
        ("net", 100, 2),
        ("resnet18", 32, 2),
        ("mobilenetv2", 1, 1),
        ("mobilenetv2", 1, 2),
        ("mobilenetv2", 32, 2),
    ),
    "large": (
        ("resnet50", 1, 1),
        ("resnet50", 1, 2),
        ("resnet50", 16, 1),
        ("resnet50", 16, 2),
        ("mobilenetv2-224", 1, 1),
        ("mobilenetv2-224", 1, 2),
        ("mobilenetv2", 1, 1),
        ("mobilenetv2", 1, 2),
    ),
}
HIDDEN_CASES: tuple[Case, ...] = (("resnet8", 1, 1), ("resnet20", 1, 1), ("mobilenetv2", 1, 1))
"""Those that are measured without AVX-512."""
ISAS = {
    "avx512vnni": "vpdpbusd, 512 bits",
    "avxvnni": "vpdpbusd, 256 bits",
    "avx2": "vpmaddubsw, vpmaddwd and vpaddd, 256 bits",
}
"""Instruction sets that can be the best, and the instruction that then has the peak rate."""
COMPARED_IN_LARGE = 2
"""Images of large networks whose outputs are compared with the reference's, which takes seconds for each."""
SLICE_SECONDS = 0.02
"""Least time of one side in one round, after as long a warm-up."""
SLICE_CALLS = 5
"""Fewest calls of one side in one round."""


@dataclass(frozen=True)
class SideResult:
    """One runtime in one case."""

    name: str
    microseconds: float
    """Per image; median over rounds."""
    spread: tuple[float, float]
    """The fastest and the slowest round."""
    gmacs: float
    """Multiply-adds of the network, in 10⁹ per second."""
    peak_fraction: float
    """Fraction of the peak rate of the processor's instruction for 8-bit products on as many threads."""
    ratio: float
    """Its time over the engine's: median of the rounds' ratios."""
    ratio_spread: tuple[float, float]
    agreement: float
    """Fraction of the batch's images with the class of the float network in ONNX Runtime, 0..1."""


@dataclass(frozen=True)
class LayerTime:
    """One layer of the engine."""

    name: str
    op: str
    microseconds: float
    """An image."""
    gmacs: float
    """Multiply-adds of weights, in 10⁹ per second; 0 without weights."""


@dataclass(frozen=True)
class CaseResult:
    """One network at one batch."""

    network: str
    batch: int
    threads: int
    macs: int
    """Multiply-adds of weights per image."""
    peak_gmacs: float
    """Peak rate of as many threads, computing on registers only, in 10⁹ multiply-adds per second; the best round of all
    cases."""
    floor_microseconds: float
    """Time per image of the multiply-adds alone, at that rate."""
    compared: int
    """Integers of the output that were compared with the reference's."""
    mismatches: int
    sides: tuple[SideResult, ...]
    layers: tuple[LayerTime, ...]
    """Layers of the engine, for this batch on one thread, without the input."""


@dataclass(frozen=True)
class Results:
    """benchmarks/results/engine.json."""

    instruction: str
    """The instruction with the peak rate."""
    weights: dict[str, str]
    """From network to "published" or "random"."""
    rounds: int
    cases: tuple[CaseResult, ...]
    load_average_at_start: tuple[float, ...] | None
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def macs(layer: n.Layer) -> int:
    """Return the multiply-adds of weights for one image."""
    return math.prod(layer.output.shape[1:]) * layer.weight.size if isinstance(layer, n.Accumulating) else 0


def layer_times(network: IntegerNetwork, images: NDArray[np.float32], target: str) -> tuple[LayerTime, ...]:
    """Return the engine's time by layer."""
    found = CompiledNetwork(network, target=target).layer_times(images)
    return tuple(
        LayerTime(layer.name, layer.op, 1e6 * found[layer.name] / len(images),
                  1e-9 * macs(layer) * len(images) / found[layer.name] if found[layer.name] else 0.0)
        for layer in network.layers[1:]
    )  # fmt: skip


def prepare(name: str, models: Path | None) -> Files:
    """Build a network's files, unless the same code has made them from the same input already."""
    told = hashlib.sha256((ROOT / "benchmarks" / "peers" / "build.py").read_bytes())
    told.update((ROOT / "constraints.txt").read_bytes())
    for path in sorted(models.glob(f"{name}-*")) if models is not None else []:
        told.update(path.read_bytes())
    files = Files(WORK / f"{name}-{told.hexdigest()[:12]}")
    done = files.folder / "done"
    if not done.exists():
        print(f"preparing {name} for every runtime", flush=True)
        files.folder.mkdir(parents=True, exist_ok=True)
        cases = {case for cases in CASES.values() for case in cases}
        batches = ",".join(sorted({str(batch) for network, batch, _ in cases if network == name}))
        command = [sys.executable, "-m", "benchmarks.peers.build", name, "--out", str(files.folder)]
        command += ["--batches", batches, *([] if models is None else ["--models", str(models)])]
        with (files.folder / "build.log").open("w") as log:
            if subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode:
                raise SystemExit(f"preparing {name} failed; see {files.folder / 'build.log'}")
        done.touch()
    return files


def run_slice(side: Side) -> float:
    """Return the median seconds of a call in a row of calls, after warm-up calls.

    The first calls read weights from memory that another runtime has pushed out of the caches.
    """
    warm = time.perf_counter() + SLICE_SECONDS
    side.call()
    while time.perf_counter() < warm:
        side.call()
    times: list[float] = []
    end = time.perf_counter() + SLICE_SECONDS
    while len(times) < SLICE_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        side.call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(
    case: Case, files: Files, models: Path | None, rounds: int, peak: Peak, isa: str | None = None
) -> CaseResult:
    """Check the engine's integers, then time every side in turn."""
    name, batch, threads = case
    network = load(files.twoscale)
    images = np.load(files.images)[:batch]
    run = network.compile(threads=threads, target=isa or "native")
    if isa is not None and run.kernels != isa:
        raise SystemExit(f"the engine runs {run.kernels} instead of {isa}")
    compared = images[:COMPARED_IN_LARGE] if name in LARGE else images
    expected = ReferenceExecutor(network).run(compared)[network.output]
    mismatches = int(np.count_nonzero(run(images)[: len(compared)] != network.logits(expected)))
    others = peers(name, files, images, threads, models, hides=isa is not None)
    sides = [Side(ENGINE, lambda: run(images), lambda: run(images)), *others]
    classes = {side.name: side.logits().argmax(1) for side in sides}
    if name in LARGE:
        sides = [side for side in sides if "fp32" not in side.name]
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    peaks = []
    for index in range(rounds):
        peaks.append(peak.gmacs(threads))
        for side in sides[:: 1 if index % 2 == 0 else -1]:
            time.sleep(0.01)  # until threads of the last one stop spinning
            seconds[side.name].append(run_slice(side))
    work = sum(macs(layer) for layer in network)
    limit = max(peaks)
    found = []
    for side in sides:
        times = [1e6 * value / batch for value in seconds[side.name]]
        ratios = [a / b for a, b in zip(seconds[side.name], seconds[ENGINE], strict=True)]
        median = statistics.median(times)
        gmacs = work / median / 1e3
        agreement = float(np.mean(classes[side.name] == classes["onnxruntime fp32"]))
        found.append(
            SideResult(
                side.name,
                median,
                (min(times), max(times)),
                gmacs,
                gmacs / limit,
                statistics.median(ratios),
                (min(ratios), max(ratios)),
                agreement,
            )
        )
    return CaseResult(
        network=name,
        batch=batch,
        threads=threads,
        macs=work,
        peak_gmacs=limit,
        floor_microseconds=work / limit / 1e3,
        compared=expected.size,
        mismatches=mismatches,
        sides=tuple(found),
        layers=layer_times(network, images, isa or "native"),
    )


def with_peak(case: CaseResult, limit: float) -> CaseResult:
    """Return the case with another measurement of the processor's limit, in 10⁹ multiply-adds a second."""
    sides = tuple(dataclasses.replace(side, peak_fraction=side.gmacs / limit) for side in case.sides)
    return dataclasses.replace(case, peak_gmacs=limit, floor_microseconds=case.macs / limit / 1e3, sides=sides)


def table(results: Results) -> str:
    """Return the record as a Markdown table, one row per case."""
    names: list[str] = []
    for case in results.cases:
        names += [side.name for side in case.sides if side.name not in names]
    lines = [
        "| network | batch | threads | floor | " + " | ".join(names) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(names),
    ]
    for case in results.cases:
        sides = {side.name: side for side in case.sides}
        cells = [_cell(sides[name]) if name in sides else "–" for name in names]
        lines.append(
            f"| {case.network} | {case.batch} | {case.threads} | {_microseconds(case.floor_microseconds)} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _cell(side: SideResult) -> str:
    told = f"{_microseconds(side.microseconds)}"
    return f"**{told}** ({side.peak_fraction:.0%})" if side.name == ENGINE else f"{told} ({side.ratio:.1f}×)"


def _microseconds(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def show(case: CaseResult) -> str:
    """Return a case as lines for the terminal."""
    lines = [
        f"{case.network}, batch {case.batch}, {case.threads} thread{'s' * (case.threads > 1)}: "
        f"{case.macs / 1e6:.2f} million multiply-adds, floor {_microseconds(case.floor_microseconds)} µs an image; "
        f"{case.mismatches} of {case.compared:,} outputs differ from the reference"
    ]
    for side in case.sides:
        low, high = side.spread
        ratio = "" if side.name == ENGINE else f", {side.ratio:.2f} × the engine's"
        lines.append(
            f"  {side.name:<22} {_microseconds(side.microseconds):>7} µs ({_microseconds(low)} to "
            f"{_microseconds(high)}), {side.gmacs:6.1f} GMAC/s, {side.peak_fraction:4.0%} of peak{ratio}"
            f"{'' if side.agreement == 1 else f'; {side.agreement:.0%} of classes as in float'}"
        )
    if case.layers:
        slow = sorted(case.layers, key=lambda layer: -layer.microseconds)[:3]
        total = sum(layer.microseconds for layer in case.layers)
        told = (f"{layer.name} {_microseconds(layer.microseconds)} µs, {layer.gmacs:.0f} GMAC/s" for layer in slow)
        lines.append(f"  slowest layers, of {_microseconds(total)} µs on one thread: {'; '.join(told)}")
    return "\n".join(lines)


def chosen(cases: str, isa: str | None, rows: str | None) -> Iterable[Case]:
    """Return the cases whose text, such as "resnet8 1", begins with ``rows``."""
    found = HIDDEN_CASES if cases == "small" and isa in ("avxvnni", "avx2") else CASES[cases]
    return [case for case in found if rows is None or f"{case[0]} {case[1]} {case[2]}".startswith(rows)]


def hide_better(isa: str, case: Case, files: Files, models: Path | None) -> None:
    """Start this program again, on a processor that seems to have nothing better than ``isa``."""
    name, batch, threads = case
    for side in peers(name, files, np.load(files.images)[:batch], threads, models, hides=True):
        side.call()  # loads all libraries
    Peak(WORK)
    environment = hidden_environment(WORK, isa, loaded_libraries())
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks.engine", *sys.argv[1:]], environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    named = os.environ.get("TWOSCALE_BENCH_MODELS")
    parser.add_argument("--models", type=Path, default=Path(named) if named else None, help="folder of published files")
    parser.add_argument("--cases", choices=CASES, default="small", help="(default: %(default)s)")
    parser.add_argument(
        "--isa",
        choices=("best", *ISAS, "all"),
        default="best",
        help="hide what is better than this from every runtime (default: %(default)s, which hides nothing)",
    )
    parser.add_argument("--rows", help="only cases that begin with this, such as 'resnet8' or 'resnet8 1'")
    parser.add_argument("--rounds", type=int, default=11, help="(default: %(default)s)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument(
        "--table", action="store_true", help="print the recorded figures as a table, and measure nothing"
    )
    parser.add_argument("--prepare", action="store_true", help="make the files of the networks, and measure nothing")
    arguments = parser.parse_args()
    if arguments.isa == "all":
        for isa in ("best", *ISAS):
            print(f"\n{isa}", flush=True)
            subprocess.run([sys.executable, "-m", "benchmarks.engine", *sys.argv[1:], "--isa", isa], check=True)
        return
    arguments.isa = None if arguments.isa == "best" else arguments.isa
    record_name = "_".join(
        ["engine", *(["large"] if arguments.cases == "large" else []), *filter(None, [arguments.isa])]
    )
    if arguments.table:
        print(table(read_record(RESULTS / f"{record_name}.json", Results)))
        return
    cases = list(chosen(arguments.cases, arguments.isa, arguments.rows))
    files = {name: prepare(name, arguments.models) for name in NETWORKS if name in {case[0] for case in cases}}
    if arguments.prepare:
        return
    if arguments.isa and os.environ.get("BEST_ISA") != arguments.isa:
        hide_better(arguments.isa, cases[0], files[cases[0][0]], arguments.models)
    os.environ.pop("LD_AUDIT", None)  # not for compilers
    load_at_start = load_average()
    peak = Peak(WORK)
    if arguments.isa and peak.instruction != ISAS[arguments.isa]:
        raise SystemExit("instruction sets are not hidden")
    results = []
    for case in cases:
        results.append(measure(case, files[case[0]], arguments.models, arguments.rounds, peak, arguments.isa))
        print(show(results[-1]), flush=True)
    if arguments.isa and (others := unhidden_libraries(WORK)):
        raise SystemExit(f"{others[0]} executes CPUID, and is loaded too late to hide instruction sets from it")
    limits = {threads: max(c.peak_gmacs for c in results if c.threads == threads) for _, _, threads in cases}
    results = [with_peak(case, limits[case.threads]) for case in results]
    record = Results(
        instruction=peak.instruction,
        weights={
            name: "published" if arguments.models and list(arguments.models.glob(f"{name}-*.safetensors")) else "random"
            for name in files
        },
        rounds=arguments.rounds,
        cases=tuple(results),
        load_average_at_start=load_at_start,
    )
    print(table(record))
    wrong = sum(case.mismatches for case in results)
    if not arguments.no_record and arguments.rows is None and not wrong:
        peers_packages = (
            "onnxruntime", "openvino", "nncf", "ai-edge-litert", "litert-torch", "ai-edge-quantizer", "executorch",
            "torchao",
        )  # fmt: skip
        print(f"written to {write_result(record_name, record, *peers_packages)}")
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    if wrong:
        raise SystemExit(f"{wrong} outputs differ from the reference: nothing is recorded")


if __name__ == "__main__":
    main()
