"""Time and memory of quantizing networks for 224×224 images, beside other tools.

    make bench-large                                # with the environment of bench-engine
    python -m benchmarks.large [--only TEXT] [--fresh] [--no-record]
    python -m benchmarks.large --table              # the recorded figures as a table

Every row is a fresh process: seconds and processor seconds (all threads and child processes) of the call alone, without
the import of packages, and the largest resident memory of the process. The rows of a network, ours and those of the
other tools, run one after the other. Weights are random; they decide neither time nor memory. Rows that are finished
are kept in build/large, so an interrupted run goes on where it stopped; ``--fresh`` starts again. A whole run takes
about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.common import RESULTS, write_result
from twoscale._environment import Environment, load_average
from twoscale._files import read_record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "large"
NAMES = ("mobilenetv2", "resnet50", "densenet121", "efficientnet_b0", "vgg16")
TOOLS = {"twoscale": "twoscale", "twoscale fast": "twoscale", "nncf": "nncf", "onnxruntime": "onnxruntime"}
"""From tool to the package that it needs."""
IMAGES = 32
MANY = (64, 512)
"""Numbers of images whose peaks of memory are compared, with the scheme "fast": the others keep no more images."""
BATCH = 8
VERIFIED = 16
"""Images that verify runs. It captures the float network once, which takes seconds."""
EXECUTORS = ("reference", "onnxruntime", "c")


@dataclass(frozen=True)
class Task:
    """One fresh process."""

    what: str
    """"quantize"; "memory", which is the same with other numbers of images; or "verify"."""
    network: str
    tool: str
    images: int


@dataclass(frozen=True)
class Row:
    """The results of one process."""

    task: Task
    seconds: float
    cpu_seconds: float
    """Of all threads and child processes."""
    peak_bytes: int
    """Largest resident memory of the process, with the interpreter, its packages and the float network."""
    sqnr_db: float | None = None
    """verify: of the logits, against the float network."""
    mismatches: int | None = None
    """verify: integers that differ between executors."""


@dataclass(frozen=True)
class Results:
    """benchmarks/results/large.json."""

    rows: tuple[Row, ...]
    load_average_at_start: tuple[float, ...] | None
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def tasks() -> Iterator[Task]:
    """Yield all tasks, those of one network together."""
    for name in NAMES:
        for tool, package in TOOLS.items():
            if importlib.util.find_spec(package) is not None:
                yield Task("quantize", name, tool, IMAGES)
    for name in NAMES:
        for count in MANY:
            yield Task("memory", name, "twoscale fast", count)
    yield Task("verify", "resnet50", "twoscale", VERIFIED)


def weights_file(name: str) -> Path:
    return WORK / f"{name}.pt"


def onnx_file(name: str) -> Path:
    return WORK / f"{name}.onnx"


def prepare(name: str) -> None:
    """Write a network's weights, and the network as ONNX for the other tools."""
    import torch

    from benchmarks.large_networks import make_images, make_network

    WORK.mkdir(parents=True, exist_ok=True)
    model = make_network(name)
    torch.onnx.export(
        model, (torch.from_numpy(make_images(2)),), str(onnx_file(name)), input_names=["images"],
        output_names=["logits"], dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    torch.save(model.state_dict(), weights_file(name))


def load_network(name: str) -> nn.Module:
    import torch

    from benchmarks.large_networks import NETWORKS

    with torch.device("meta"):
        model = NETWORKS[name]()
    model.load_state_dict(torch.load(weights_file(name), mmap=True), assign=True)
    return model.eval()


def batches(count: int, size: int = BATCH) -> Iterator[NDArray[np.float32]]:
    """Yield images; only one batch of them is in memory."""
    from benchmarks.large_networks import make_images

    for start in range(0, count, size):
        yield make_images(min(size, count - start), seed=start)


def quantize_twoscale(task: Task) -> Callable[[], object]:

    import twoscale

    model = load_network(task.network)
    scheme = "fast" if task.tool == "twoscale fast" else "default"
    return lambda: twoscale.quantize(model, batches(task.images), scheme=scheme)


def quantize_nncf(task: Task) -> Callable[[], object]:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(onnx_file(task.network)))
    dataset = nncf.Dataset(batches(task.images, 1))
    return lambda: nncf.quantize(model, dataset, subset_size=task.images)


def quantize_onnxruntime(task: Task) -> Callable[[], object]:
    """uint8 activations, int8 weights per channel, ranges by min and max, as its documentation advises for CPUs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = batches(task.images, 1)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    def work() -> None:
        prepared, made = (WORK / f"{task.network}-{kind}.onnx" for kind in ("prepared", "int8"))
        quant_pre_process(str(onnx_file(task.network)), str(prepared))
        quantize_static(
            str(prepared), str(made), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        prepared.unlink()
        made.unlink()

    return work


QUANTIZE = {
    "twoscale": quantize_twoscale,
    "twoscale fast": quantize_twoscale,
    "nncf": quantize_nncf,
    "onnxruntime": quantize_onnxruntime,
}


def verified(task: Task) -> Callable[[], Any]:
    """Return the run of verify. The network is quantized, and its C compiled, outside the clock."""
    import twoscale
    from twoscale._runtimes import create

    model = load_network(task.network)
    network = twoscale.quantize(model, batches(BATCH))
    executors = [create(name, network) for name in EXECUTORS]
    first = next(batches(1))
    for executor in executors:
        executor.run(first, {network.output})
    return lambda: twoscale.verify(network, batches(task.images, 1), executors=executors, model=model)


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def work(task: Task) -> Row:
    """Run one task in this process."""
    run: Callable[[], Any] = verified(task) if task.what == "verify" else QUANTIZE[task.tool](task)
    start, cpu_start = time.perf_counter(), cpu_seconds()
    result = run()
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if task.what == "verify":
        return Row(task, seconds, cpu, peak, result.sqnr_db, result.mismatches)
    return Row(task, seconds, cpu, peak)


def in_fresh_process(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.large", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"benchmarks.large {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def show(row: Row) -> str:
    """Return a row as a line for the terminal."""
    task = row.task
    end = ""
    if task.what == "verify":
        end = f"; {row.seconds / task.images:.2f} s per image, {row.mismatches} integers differ, {row.sqnr_db:.1f} dB"
    return (
        f"{task.what} {task.network}, {task.images} images, {task.tool}: {row.seconds:.1f} s, "
        f"{row.cpu_seconds:.1f} s of processor time, {row.peak_bytes / 2**30:.2f} GiB{end}"
    )


def table(rows: tuple[Row, ...]) -> str:
    """Return the rows as Markdown tables."""
    found = {row.task: row for row in rows}

    def cell(task: Task) -> str:
        row = found.get(task)
        return "–" if row is None else f"{row.cpu_seconds:.1f} s, {row.peak_bytes / 2**30:.2f} GiB"

    lines = [
        f"| quantize, {IMAGES} images of 224×224 | " + " | ".join(TOOLS) + " |",
        "|---|" + "--:|" * len(TOOLS),
        *(
            f"| {name} | " + " | ".join(cell(Task("quantize", name, tool, IMAGES)) for tool in TOOLS) + " |"
            for name in NAMES
        ),
        "",
        "| quantize, twoscale fast | " + " | ".join(f"{count} images" for count in MANY) + " |",
        "|---|" + "--:|" * len(MANY),
        *(
            f"| {name} | " + " | ".join(cell(Task("memory", name, "twoscale fast", count)) for count in MANY) + " |"
            for name in NAMES
        ),
    ]
    lines += ["", *(show(row) for row in rows if row.task.what == "verify")]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="only rows that begin with this, such as 'quantize resnet50'")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that an interrupted run has finished")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--table", action="store_true", help="print the recorded figures, and measure nothing")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_record(RESULTS / "large.json", Results).rows))
        return
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    if arguments.prepare or arguments.task:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):  # other tools print
            if arguments.prepare:
                prepare(arguments.prepare)
                return
            row = work(msgspec.json.decode(arguments.task, type=Task))
        sys.stdout.write(msgspec.json.encode(row).decode())
        return
    load = load_average()
    kept = WORK / "rows.json"
    if arguments.fresh:
        kept.unlink(missing_ok=True)
    rows = {row.task: row for row in (msgspec.json.decode(kept.read_bytes(), type=list[Row]) if kept.exists() else [])}
    for task in tasks():
        if not f"{task.what} {task.network} {task.images} {task.tool}".startswith(arguments.only):
            continue
        if task not in rows:
            if not weights_file(task.network).exists():
                print(f"preparing {task.network}", flush=True)
                in_fresh_process("--prepare", task.network)
            rows[task] = msgspec.json.decode(in_fresh_process("--task", json.dumps(vars(task))), type=Row)
            kept.write_bytes(msgspec.json.encode(list(rows.values())))
        print(show(rows[task]), flush=True)
    results = Results(tuple(rows[task] for task in tasks() if task in rows), load)
    print(table(results.rows))
    if not arguments.no_record and not arguments.only:
        print(f"written to {write_result('large', results, 'onnx', 'onnxruntime', 'openvino', 'nncf')}")
        kept.unlink()


if __name__ == "__main__":
    main()
