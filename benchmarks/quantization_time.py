"""Time from a checkpoint to a verified integer network, stage by stage.

    python -m benchmarks.quantization_time [--checkpoint FILE] [--data cifar10] [--scheme default] [--repeats 3]

Each run is a fresh process that does what a user's script does: import the library, load the data set and the
checkpoint, quantize with 1,000 calibration images, save and load the network, and run the reference and the torch
executor over the whole test set, comparing every integer. Medians over the runs, each stage's own; the total is
the median of totals. Without ``--checkpoint`` the lab's network is trained first, by the lab's recipe, outside
the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.common import write_result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from twoscale._ir.execution import Executor

BATCH = 500


@dataclass(frozen=True)
class Task:
    """The options of every run."""

    checkpoint: str
    data: str
    scheme: str
    calibration_images: int


@dataclass(frozen=True)
class Run:
    """The results of one process."""

    seconds: dict[str, float]
    """From stage to seconds, in running order. "verify" is the sum of its executors and of the comparison."""
    cpu_seconds: dict[str, float]
    """From stage to processor time of all threads. It is less than cores × seconds if other programs interfere."""
    executor_seconds: dict[str, float]
    """Seconds of "verify" in each executor."""
    network: str
    test_images: int
    integers_compared: int
    mismatches: int
    top1: float
    fingerprint: str


@dataclass(frozen=True)
class Results:
    """benchmarks/results/quantization_time.json."""

    network: str
    data: str
    scheme: str
    calibration_images: int
    test_images: int
    median_seconds: dict[str, float]
    median_cpu_seconds: dict[str, float]
    median_executor_seconds: dict[str, float]
    median_total_seconds: float
    runs: tuple[Run, ...]
    load_average_at_start: tuple[float, ...] | None
    """Over 1, 5 and 15 minutes; it shows other work on the machine."""


class Timed:
    """An executor whose time is accumulated."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.name = inner.name
        self.seconds = 0.0

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        start = time.perf_counter()
        found = self.inner.run(images_nchw, keep)
        self.seconds += time.perf_counter() - start
        return found


def work(task: Task) -> Run:
    """Run all stages once and time each."""
    seconds: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        seconds[name], cpu_seconds[name] = time.perf_counter() - start, time.process_time() - cpu_start

    with stage("import"):
        import torch

        from twoscale import data, models
        from twoscale._calibration.profile import profile
        from twoscale._formats import load
        from twoscale._frontends.torch_export.capture import capture
        from twoscale._passes.fold import fold
        from twoscale._quantization import find_scheme, quantize_graph
        from twoscale._runtimes import create
        from twoscale._verification import verify

    with stage("load data"):
        dataset = data.load(task.data)
    with stage("load checkpoint"):
        model, info = models.load_checkpoint(Path(task.checkpoint))

    def batches(split: data.Split, size: int) -> Iterator[Any]:
        for images, labels in data.batches(split.images, split.labels, size):
            yield data.normalize(images, info.mean, info.std), labels

    how = find_scheme(task.scheme)
    with stage("capture"):
        example = data.normalize(dataset.train.images[:1], info.mean, info.std)
        graph = fold(capture(model, torch.from_numpy(example)), join_residuals=how.join_residuals)
    with stage("profile"):
        found = profile(graph, batches(dataset.train.head(task.calibration_images), 100))
    with stage("quantize"):
        made = quantize_graph(graph, found, how)
    with stage("save and load"), tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "network.onnx")
        loaded = load(Path(folder) / "network.onnx")
    with stage("verify"):
        executors = [Timed(create(name, loaded)) for name in ("reference", "torch")]
        result = verify(loaded, batches(dataset.test, BATCH), executors=executors)
    return Run(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        executor_seconds={executor.name: executor.seconds for executor in executors},
        network=loaded.name,
        test_images=result.samples,
        integers_compared=result.compared,
        mismatches=result.mismatches,
        top1=result.top1 or 0.0,
        fingerprint=loaded.fingerprint,
    )


def in_fresh_process(task: Task) -> Run:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantization_time", "--task", msgspec.json.encode(task).decode()],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Run)


def train_the_labs_network(folder: Path, name: str) -> Path:
    from twoscale import data, training

    training.train(training.TrainConfig(model="net", data=name), data.load(name), out=folder)
    return folder / "model.safetensors"


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, help="of this library, e.g. from twoscale train; else one is trained"
    )
    parser.add_argument("--data", default="cifar10", help="data set (default: %(default)s)")
    parser.add_argument("--scheme", default="default", help="of quantization (default: %(default)s)")
    parser.add_argument("--calibration-images", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes (default: %(default)s)")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        sys.stdout.write(msgspec.json.encode(work(msgspec.json.decode(arguments.task, type=Task))).decode())
        return
    from twoscale._environment import load_average  # imported here, because fresh processes time their imports

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or train_the_labs_network(Path(folder), arguments.data)
        task = Task(str(checkpoint.resolve()), arguments.data, arguments.scheme, arguments.calibration_images)
        load = load_average()
        runs = tuple(in_fresh_process(task) for _ in range(arguments.repeats))
    results = Results(
        network=runs[0].network,
        data=task.data,
        scheme=task.scheme,
        calibration_images=task.calibration_images,
        test_images=runs[0].test_images,
        median_seconds=medians([run.seconds for run in runs]),
        median_cpu_seconds=medians([run.cpu_seconds for run in runs]),
        median_executor_seconds=medians([run.executor_seconds for run in runs]),
        median_total_seconds=statistics.median(sum(run.seconds.values()) for run in runs),
        runs=runs,
        load_average_at_start=load,
    )
    path = write_result("quantization_time", results, "onnx", "safetensors")
    print(f"{results.network} on {results.data}, scheme {results.scheme}, medians of {len(runs)} runs")
    for name, value in results.median_seconds.items():
        print(f"  {name:<16} {value:7.2f} s, {results.median_cpu_seconds[name]:7.2f} s of processor time")
    for name, value in results.median_executor_seconds.items():
        print(f"    in {name:<11} {value:7.2f} s")
    print(f"  {'total':<16} {results.median_total_seconds:7.2f} s")
    last = runs[-1]
    print(f"{last.mismatches} of {last.integers_compared:,} integers differ; top-1 {100 * last.top1:.2f} %")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
