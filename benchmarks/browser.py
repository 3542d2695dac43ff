"""Speed of integer networks in headless Chromium, beside ONNX Runtime Web and LiteRT.js on the same images.

    make bench-browser                 # in the environment of make bench-engine
    python -m benchmarks.browser [--models DIR] [--networks resnet8,mobilenetv2] [--rounds 15] [--slice 60]
                                 [--no-record]
    python -m benchmarks.browser --table   # the recorded figures as a table

Needs clang and wasm-ld, Chromium, and npm, which installs the other runtimes in build/browser the first time. All
of them run in one page on one thread, without a GPU. In each round each runs in turn for a moment; a figure is the
median over rounds of the mean call of a round, a ratio the median of the rounds' own ratios. A call takes an image as a
Float32Array and returns logits as one. Before any clock starts, the integers of all images are compared with the
reference's.

DIR may hold published weights, as for benchmarks.engine. Without it weights are random: that changes no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import chromium, engine
from benchmarks.common import RESULTS, write_result
from benchmarks.peers.build import Files, make_images, make_model
from twoscale._codegen.c.common.selftest import layer_values
from twoscale._environment import Environment, load_average
from twoscale._files import read_record
from twoscale._formats import load
from twoscale._ir.operators.vectorized import quantize_input
from twoscale._quantization import quantize
from twoscale._quantization.scheme import TFLITE
from twoscale._runtimes.wasm import export_wasm, find_clang

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "browser"
PEERS = {"onnxruntime-web": "1.30.0", "@litertjs/core": "2.5.3"}
"""Packages of npm and their versions."""
TITLES = {
    "twoscale": "twoscale",
    "simd128": "twoscale without relaxed SIMD",
    "onnxruntime_int8": "ONNX Runtime Web int8",
    "onnxruntime_float": "ONNX Runtime Web float",
    "litert_int8": "LiteRT.js int8",
    "litert_float": "LiteRT.js float",
}
IMAGES = 16
"""Compared with the reference."""
PAGE = Path(__file__).with_name("browser.html")


@dataclass(frozen=True)
class SideResult:
    """One runtime with one network."""

    name: str
    microseconds: float
    """Per image; median over rounds."""
    spread: tuple[float, float]
    """The fastest and the slowest round."""
    ratio: float
    """Its time over twoscale's: median of the rounds' ratios."""
    ratio_spread: tuple[float, float]


@dataclass(frozen=True)
class NetworkResult:
    """One network, one image at a time."""

    network: str
    kind: str
    """Of twoscale's module."""
    compared: int
    """Integers of outputs that were compared with the reference's."""
    mismatches: int
    sides: tuple[SideResult, ...]


@dataclass(frozen=True)
class Results:
    """benchmarks/results/browser.json."""

    browser: str
    clang: str
    packages: dict[str, str]
    rounds: int
    slice_milliseconds: int
    networks: tuple[NetworkResult, ...]
    load_average_at_start: tuple[float, ...] | None
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def peers() -> Path:
    """Return the folder of npm's packages, installed if they are not there."""
    WORK.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}@{version}" for name, version in PEERS.items()]
    noted = WORK / "installed"
    if not noted.exists() or noted.read_text() != " ".join(wanted):
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(WORK), *wanted]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        noted.write_text(" ".join(wanted))
    return WORK / "node_modules"


def litert_file(name: str, files: Files, models: Path | None) -> Path:
    """Return a file of int8 layers for LiteRT.js, whose inputs and outputs are float32: it takes no others.

    It is twoscale's network in TensorFlow Lite's arithmetic.
    """
    path = files.folder / "int8-float-io.tflite"
    if not path.exists():
        import torch

        images = make_images(name)
        scheme = replace(TFLITE, tune_ranges=False, error_feedback=False, bias_correction=False)
        network = quantize(make_model(name, models, images), [torch.from_numpy(images)], name=name, scheme=scheme)
        network.save(path, form="tflite", io="float32")
        content = path.read_bytes()
        height, width = images.shape[2:]
        for shape in ((height, width, images.shape[1]), network[network.outputs[0]].output.shape):
            rank = len(shape) + 1
            of_any, of_one = (struct.pack(f"<{rank + 1}i", rank, batch, *shape) for batch in (-1, 1))
            content = content.replace(of_any, of_one)  # LiteRT.js takes no batch of any size
        path.write_bytes(content)
    return path


def measure(name: str, models: Path | None, rounds: int, slice_ms: int, modules: Path) -> NetworkResult:
    """Time one network in every runtime."""
    files = engine.prepare(name, models)
    network = load(files.twoscale)
    images = np.load(files.images)[:IMAGES]
    integers = layer_values(network, (quantize_input(images, network.inputs[0].output),))[network.outputs[0]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_wasm(network, folder, name="net")
        images.astype("<f4").tofile(folder / "images.bin")
        integers.astype("<i4").tofile(folder / "expected.bin")
        shutil.copyfile(PAGE, folder / "page.html")
        settings = {"rounds": rounds, "slice": slice_ms, "shape": images.shape, "sides": {}}
        for side, path in (
            ("onnxruntime_int8", files.onnx_int8),
            ("onnxruntime_float", files.onnx),
            ("litert_int8", litert_file(name, files, models)),
            ("litert_float", files.litert("float", 1)),
        ):
            if path.exists():
                settings["sides"][side] = f"/peers/{path.name}"
        (folder / "settings.json").write_text(json.dumps(settings))
        found = chromium.result_of(
            "net/page.html", {"net": folder, "peers": files.folder, "modules": modules}, seconds=600
        )
    if "error" in found:
        raise SystemExit(f"{name}: {found['error']}")
    return _result(name, found)


def _result(name: str, found: dict[str, Any]) -> NetworkResult:
    times: dict[str, list[float]] = found["times"]
    own = times["twoscale"]
    sides = []
    for side, values in times.items():
        ratios = [value / mine for value, mine in zip(values, own, strict=True)]
        sides.append(
            SideResult(
                name=TITLES[side],
                microseconds=statistics.median(values),
                spread=(min(values), max(values)),
                ratio=statistics.median(ratios),
                ratio_spread=(min(ratios), max(ratios)),
            )
        )
    return NetworkResult(name, found["kind"], found["compared"], found["mismatches"], tuple(sides))


def version_of(command: str) -> str:
    """Return the first line of what a program says of itself."""
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].strip()


def show(result: NetworkResult) -> None:
    """Print one network's figures."""
    print(f"\n{result.network} ({result.kind}): {result.compared} integers, {result.mismatches} mismatches")
    for side in result.sides:
        low, high = side.ratio_spread
        print(f"  {side.name:30} {side.microseconds:9.1f} µs  {side.ratio:6.2f}  ({low:.2f} to {high:.2f})")


def table(results: Results) -> str:
    """Return the figures as a Markdown table: microseconds, and in brackets the ratios to twoscale."""
    names = [side.name for side in results.networks[0].sides]
    lines = ["| | " + " | ".join(result.network for result in results.networks) + " |"]
    lines.append("|---|" + "--:|" * len(results.networks))
    for name in names:
        cells = []
        for result in results.networks:
            found = next(side for side in result.sides if side.name == name)
            cells.append(f"{found.microseconds:,.0f} µs ({found.ratio:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    models = os.environ.get("TWOSCALE_BENCH_MODELS")
    parser.add_argument("--models", type=Path, default=None if models is None else Path(models))
    parser.add_argument("--networks", default="resnet8,mobilenetv2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slice", type=int, default=60, help="milliseconds of each runtime in each round")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the recorded figures")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_record(RESULTS / "browser.json", Results)))
        return
    browser = chromium.command()
    if browser is None or shutil.which("npm") is None:
        raise SystemExit("benchmarks.browser needs Chromium and npm (Debian: apt install chromium npm)")
    clang, modules, at_start = find_clang(), peers(), load_average()
    found = []
    for name in arguments.networks.split(","):
        found.append(measure(name, arguments.models, arguments.rounds, arguments.slice, modules))
        show(found[-1])
    results = Results(
        browser=version_of(browser),
        clang=version_of(clang),
        packages=PEERS,
        rounds=arguments.rounds,
        slice_milliseconds=arguments.slice,
        networks=tuple(found),
        load_average_at_start=at_start,
    )
    if not arguments.no_record:
        print(f"\nrecorded in {write_result('browser', results)}")


if __name__ == "__main__":
    main()
