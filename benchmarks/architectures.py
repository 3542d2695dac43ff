"""Published architectures at their own image sizes: captured, quantized and verified, each in a fresh process.

    python -m benchmarks.architectures [--only TEXT,...] [--minutes M] [--jobs 1] [--capture-only] [--nncf] [--fresh]
        [--no-record]
    python -m benchmarks.architectures --table      # the recorded rows as a table

It needs timm, which installs without torchvision (``pip install --no-deps timm``, and huggingface_hub, pyyaml,
safetensors). Weights are random (``architecture_models``), since none are downloaded: SQNR says how close the integer
network is to its own float network, not how a trained one would fare. Each process has limits of time and memory. Its
row is kept in build/architectures, so an interrupted run continues where it stopped. One architecture of each module of
timm comes first; with --minutes, those that are not begun in time are left out, and the record names them. With
``--nncf``, NNCF quantizes the same network with the same images, and OpenVINO runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from benchmarks.common import RESULTS, write_result
from twoscale._environment import Environment, load_average
from twoscale._files import read_record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "architectures"
CALIBRATION = 8
"""Images to quantize with."""
VERIFIED = 2
"""Images that verify runs."""
SEEDS = {"calibration": 100, "verification": 200, "sqnr": 300}
COMPARED = 4
"""Images over which the SQNR of both tools is measured."""

Status = Literal["verified", "captured", "refused", "stopped", "failed"]


@dataclass(frozen=True)
class Row:
    """The results of one architecture."""

    name: str
    status: Status
    """"stopped": the limit of time or memory; "failed": anything that is not an error of twoscale."""
    reason: str | None = None
    """Why it was not verified: the error's first line."""
    image: tuple[int, int, int] | None = None
    """(C, H, W)"""
    parameters: int | None = None
    layers: int | None = None
    integers: int | None = None
    """Compared between executors."""
    mismatches: int | None = None
    sqnr_db: float | None = None
    """Of the logits, against the float network."""
    nncf_sqnr_db: float | None = None
    nncf_reason: str | None = None
    cpu_seconds: float | None = None
    """Processor time of all threads to quantize, capture included."""
    peak_bytes: int | None = None
    """Largest resident memory of the process until then, with the interpreter and the float network."""


@dataclass(frozen=True)
class Results:
    """benchmarks/results/architectures.json."""

    rows: tuple[Row, ...]
    calibration_images: int
    verified_images: int
    sqnr_images: int
    executors: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Names for which there was no time."""
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


EXECUTORS = ("reference", "torch")


def sqnr_db(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return 10 · log10(Σ expected² / Σ (expected − found)²)."""
    import numpy as np

    noise = float(np.square(expected.astype(np.float64) - found).sum())
    return 10 * float(np.log10(np.square(expected.astype(np.float64)).sum() / noise)) if noise else float("inf")


def nncf_sqnr_db(model: nn.Module, calibration: NDArray[np.float32], images: NDArray[np.float32]) -> float:
    """Quantize with NNCF's defaults and return the SQNR of the logits in OpenVINO."""
    import nncf
    import numpy as np
    import openvino as ov
    import torch

    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
        converted = ov.convert_model(model, example_input=torch.from_numpy(calibration[:1]))
    converted.reshape([1, *images.shape[1:]])
    quantized = nncf.quantize(converted, nncf.Dataset([image[None] for image in calibration]), subset_size=CALIBRATION)
    compiled = ov.Core().compile_model(quantized, "CPU")
    return sqnr_db(expected, np.concatenate([compiled(image[None])[0] for image in images]))


def work(name: str, *, capture_only: bool, nncf: bool) -> Row:
    """Take one architecture as far as it goes, in this process."""
    import torch

    from benchmarks.architecture_models import make_images, make_model
    from twoscale import quantize, verify
    from twoscale._frontends.torch_export.capture import capture
    from twoscale._runtimes import create
    from twoscale.errors import TwoscaleError

    torch.set_num_threads(1)
    found: dict[str, Any] = {"name": name}
    try:
        model, shape = make_model(name)
        images = {use: make_images(CALIBRATION, shape, seed) for use, seed in SEEDS.items()}
        found.update(image=shape, parameters=sum(p.numel() for p in model.parameters()))
        start = time.process_time()
        if capture_only:
            layers = len(capture(model, images["calibration"][:1]).nodes)
            return Row(**found, status="captured", layers=layers, cpu_seconds=time.process_time() - start)
        network = quantize(model, [images["calibration"][i : i + 4] for i in range(0, CALIBRATION, 4)], name=name)
        found["cpu_seconds"] = time.process_time() - start
        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found["layers"] = len(network.layers)
        result = verify(network, images["verification"][:VERIFIED], executors=EXECUTORS)
        found.update(integers=result.compared, mismatches=result.mismatches)
        compared = images["sqnr"][:COMPARED]
        with torch.no_grad():
            expected = model(torch.from_numpy(compared)).numpy()
        executor = create("torch", network)
        logits = [network.logits(executor.run(image[None], {network.output})[network.output])[0] for image in compared]
        found["sqnr_db"] = sqnr_db(expected, logits)  # type: ignore[arg-type]
    except TwoscaleError as error:
        return Row(**found, status="refused", reason=reason(error))
    except MemoryError as error:
        return Row(**found, status="stopped", reason=reason(error))
    except Exception as error:  # a model can raise anything
        out_of_memory = "can't allocate memory" in str(error)
        return Row(**found, status="stopped" if out_of_memory else "failed", reason=reason(error))
    if nncf:
        try:
            found["nncf_sqnr_db"] = nncf_sqnr_db(model, images["calibration"], compared)
        except Exception as error:  # another tool can raise anything
            found["nncf_reason"] = reason(error)
    return Row(**found, status="verified" if not result.mismatches else "failed")


def reason(error: BaseException) -> str:
    """Return an error's first line, without paths of this machine."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.replace(f"{Path(sys.prefix)}{os.sep}", "")[:400]


def run(name: str, arguments: argparse.Namespace, end: float) -> Row | None:
    """Return a finished row, or run the architecture in a fresh process; None if ``end`` has passed."""
    kept = WORK / f"{name}.json"
    if kept.exists() and not arguments.fresh:
        row = msgspec.json.decode(kept.read_bytes(), type=Row)
        if arguments.capture_only or (row.status != "captured" and not (arguments.retry and row.status != "verified")):
            return row
    if time.monotonic() > end:
        return None
    options = [option for option in ("--capture-only", "--nncf") if getattr(arguments, option[2:].replace("-", "_"))]
    limit = arguments.gib << 30

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.architectures", "--work", name, *options],
            cwd=ROOT,
            capture_output=True,
            timeout=arguments.seconds,
            preexec_fn=limited,
            check=False,
        )
    except subprocess.TimeoutExpired:
        row = Row(name, "stopped", f"not finished after {arguments.seconds} s")
    else:
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""]
            row = Row(name, "failed", f"exit code {done.returncode}: {last[0]}"[:400])
        else:
            row = msgspec.json.decode(done.stdout, type=Row)
    kept.write_bytes(msgspec.json.encode(row))
    return row


def show(row: Row) -> str:
    """Return a row as a line for the terminal."""
    if row.status == "captured":
        return f"{row.name}: captured, {row.layers} nodes, {row.cpu_seconds:.1f} s of processor time"
    if row.status != "verified":
        return f"{row.name}: {row.status}: {row.reason or f'{row.mismatches} integers differ'}"
    beside = "" if row.nncf_sqnr_db is None else f" (NNCF {row.nncf_sqnr_db:.1f} dB)"
    assert row.peak_bytes is not None
    return (
        f"{row.name}: {row.mismatches} of {row.integers:,} integers differ, {row.sqnr_db:.1f} dB{beside}, "
        f"{row.cpu_seconds:.1f} s of processor time, {row.peak_bytes / 2**30:.2f} GiB"
    )


def table(rows: tuple[Row, ...]) -> str:
    """Return the rows as Markdown: first those that are verified, then the rest with the reason."""

    def db(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    lines = [
        "| architecture | image | parameters | integers compared | differing | SQNR, dB | NNCF's, dB | CPU s | GiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row.status == "verified":
            assert row.image is not None
            assert row.parameters is not None
            assert row.peak_bytes is not None
            lines.append(
                f"| {row.name} | {row.image[1]}×{row.image[2]} | {row.parameters / 1e6:.1f} M | {row.integers:,} | "
                f"{row.mismatches} | {db(row.sqnr_db)} | {db(row.nncf_sqnr_db)} | {row.cpu_seconds:.0f} | "
                f"{row.peak_bytes / 2**30:.2f} |"
            )
    lines += ["", "| architecture | | reason |", "|---|---|---|"]
    lines += [
        f"| {row.name} | {row.status} | {(row.reason or f'{row.mismatches} integers differ').replace('|', '/')} |"
        for row in rows
        if row.status != "verified"
    ]
    return "\n".join(lines)


def summary(rows: tuple[Row, ...]) -> str:
    """Return the counts in one line."""
    verified = [row for row in rows if row.status == "verified"]
    counts = {status: sum(row.status == status for row in rows) for status in ("refused", "stopped", "failed")}
    return (
        f"{len(verified)} of {len(rows)} architectures verified, "
        f"{sum(row.mismatches or 0 for row in rows)} of {sum(row.integers or 0 for row in rows):,} integers differ; "
        + ", ".join(f"{count} {status}" for status, count in counts.items())
    )


def each_module_first(names: Sequence[str]) -> list[str]:
    """Return the names with one of each of timm's modules first, and otherwise in their order."""
    from benchmarks.architecture_models import import_timm

    import_timm()
    registry = importlib.import_module("timm.models._registry")
    seen: set[str] = set()
    first: list[str] = []
    more: list[str] = []
    for name in names:
        module = registry._model_to_module.get(name, name)
        (more if module in seen else first).append(name)
        seen.add(module)
    return first + more


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="only names that contain one of these, separated by commas")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no architecture later than this")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=int, default=900, help="limit of each process")
    parser.add_argument("--gib", type=int, default=10, help="limit of each process's memory")
    parser.add_argument("--capture-only", action="store_true", help="capture, and quantize nothing")
    parser.add_argument("--nncf", action="store_true", help="measure NNCF's SQNR too; needs nncf and openvino")
    parser.add_argument("--retry", action="store_true", help="run rows again that were not verified")
    parser.add_argument("--fresh", action="store_true", help="run rows again that an interrupted run has finished")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--table", action="store_true", help="print the recorded rows, and run nothing")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        recorded = read_record(RESULTS / "architectures.json", Results).rows
        print(f"{table(recorded)}\n\n{summary(recorded)}")
        return
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    if arguments.work:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):  # models and other tools print
            row = work(arguments.work, capture_only=arguments.capture_only, nncf=arguments.nncf)
        sys.stdout.write(msgspec.json.encode(row).decode())
        return
    from benchmarks.architecture_models import NAMES

    WORK.mkdir(parents=True, exist_ok=True)
    parts = arguments.only.split(",")
    chosen = each_module_first([name for name in NAMES if any(part in name for part in parts)])
    rows: list[Row] = []
    end = time.monotonic() + 60 * arguments.minutes
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for found in pool.map(lambda name: run(name, arguments, end), chosen):
            if found is not None:
                rows.append(found)
                print(show(found), flush=True)
    print(summary(tuple(rows)))
    if not arguments.no_record and not arguments.only and not arguments.capture_only:
        done = {row.name for row in rows}
        results = Results(
            tuple(rows),
            CALIBRATION,
            VERIFIED,
            COMPARED,
            EXECUTORS,
            tuple(name for name in chosen if name not in done),
            load_average(),
        )
        path = write_result("architectures", results, "timm", "nncf", "openvino")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
