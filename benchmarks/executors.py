"""Every executor over the CIFAR-10 test set: integers that differ, and the accuracy of those integers.

    python -m benchmarks.executors resnet8=FILE resnet20=FILE resnet18=FILE --c-images resnet18=1000

Each argument is a model of the registry and a file of its weights, trained on CIFAR-10. A network is quantized by the
default scheme with 400 training images, once from normalized images and once from pixels, and run by reference, torch,
onnxruntime and c: every integer of every layer of every image is compared with the reference's. The test set is divided
among processes of one thread each. The result, in results/executors.json, is rewritten after every network.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import write_result
from twoscale import data, models
from twoscale._environment import core_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from twoscale._ir.execution import Executor
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._verification.results import VerifyResult
    from twoscale.data import Dataset

BATCH = 100
CALIBRATION_IMAGES = 400


class Listening:
    """The reference executor, which also keeps the logits."""

    name = "reference"

    def __init__(self, network: IntegerNetwork) -> None:
        from twoscale._runtimes import create

        self._executor: Executor = create("reference", network)
        self._network = network
        self.logits: list[NDArray[np.float32]] = []

    def run(self, images_nchw: NDArray[np.float32], keep: Any = None) -> dict[str, NDArray[Any]]:
        found = self._executor.run(images_nchw, keep)
        self.logits.append(self._network.logits(found[self._network.output]))
        return found


def compare(
    network: IntegerNetwork, graph: FloatGraph, dataset: Dataset, start: int, stop: int, c_images: int
) -> tuple[list[VerifyResult], NDArray[np.float32], NDArray[np.float32]]:
    """Verify test images start..stop − 1, the first ``c_images`` of all in C too; return both networks' logits."""
    import torch

    from twoscale._ir.float_module import GraphModule
    from twoscale._runtimes import create
    from twoscale._runtimes.c import CExecutor
    from twoscale._runtimes.onnxruntime import OnnxRuntimeExecutor
    from twoscale._verification import verify

    torch.set_num_threads(1)
    module, reference = GraphModule(graph), Listening(network)
    others: list[Any] = [create("torch", network), OnnxRuntimeExecutor(network, threads=1)]
    images = data.normalize(dataset.test.images[start:stop], dataset.mean, dataset.std)
    with_c = min(max(c_images - start, 0), stop - start)
    results = []
    for part, executors in ((images[:with_c], [*others, CExecutor(network, threads=1)]), (images[with_c:], others)):
        if len(part):
            batches = (part[i : i + BATCH] for i in range(0, len(part), BATCH))
            results.append(verify(network, batches, executors=[reference, *executors]))
    real = [module(torch.from_numpy(images[i : i + BATCH])).numpy() for i in range(0, len(images), BATCH)]
    return results, np.concatenate(reference.logits), np.concatenate(real)


def measure(name: str, path: Path, form: str, test_images: int, c_images: int, processes: int) -> dict[str, Any]:
    """Quantize a model and run it in every executor. ``form`` is the network's input: pixels or normalized images."""
    from dataclasses import replace

    from twoscale._calibration.profile import profile
    from twoscale._quantization import float_graph, quantize_graph

    dataset = data.load("cifar10")
    mean, std = models.normalization(name) or (dataset.mean, dataset.std)
    normalization = (mean, std) if form == "pixels" else None
    if normalization is not None:
        mean, std = (0.0,) * 3, (1 / 255,) * 3
    dataset = replace(dataset, mean=tuple(mean), std=tuple(std))
    start = time.perf_counter()
    images = data.normalize(dataset.train.images[:CALIBRATION_IMAGES], mean, std)
    graph = float_graph(models.load(name, path), images[:100], normalization=normalization)
    found = profile(graph, [images[i : i + BATCH] for i in range(0, len(images), BATCH)])
    network = quantize_graph(graph, found)
    quantized = time.perf_counter()
    edges = np.linspace(0, test_images, processes + 1).astype(int)
    shares = [range(int(a), int(b)) for a, b in itertools.pairwise(edges)]
    # C runs the first images, and every process has its share of them.
    order = np.concatenate([np.arange(i, test_images, processes) for i in range(processes)])
    c_edges = [int(np.count_nonzero(order[share.start : share.stop] < c_images)) for share in shares]
    dataset = replace(dataset, test=data.Split(dataset.test.images[order], dataset.test.labels[order]))
    labels = dataset.test.labels
    # One thread per process: BLAS threads that wait for a busy core are slower than none. NumPy reads this on import.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = [
            pool.submit(compare, network, graph, dataset, share.start, share.stop, share.start + with_c)
            for share, with_c in zip(shares, c_edges, strict=True)
        ]
        parts = [future.result() for future in running]
    integer = np.concatenate([logits for _, logits, _ in parts]).astype(np.float64)
    real = np.concatenate([logits for _, _, logits in parts]).astype(np.float64)
    results = [result for part in parts for result in part[0]]
    executors = ("torch", "onnxruntime", "c")
    return {
        "network": name,
        "images": form,
        "test_images": {"reference": test_images, "torch": test_images, "onnxruntime": test_images, "c": c_images},
        "integers_compared": sum(result.compared for result in results),
        "mismatches": {e: sum(r.mismatches_by_executor.get(e, 0) for r in results) for e in executors},
        "first_divergence": next((r.first_divergence for r in results if r.first_divergence), None),
        "on_grid": network.on_grid,
        "parameters": network.parameters,
        "float_top1": float((real.argmax(1) == labels).mean()),
        "top1": float((integer.argmax(1) == labels).mean()),
        "agreement": float((integer.argmax(1) == real.argmax(1)).mean()),
        "sqnr_db": float(10 * np.log10((real**2).sum() / ((real - integer) ** 2).sum())),
        "fingerprint": network.fingerprint,
        "quantize_seconds": round(quantized - start, 1),
        "compare_seconds": round(time.perf_counter() - quantized, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Run networks in every executor over the CIFAR-10 test set.")
    parser.add_argument("weights", nargs="+", metavar="MODEL=FILE")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--c-images", action="append", default=[], metavar="MODEL=COUNT", help="default: all")
    parser.add_argument("--forms", nargs="+", default=["normalized", "pixels"], choices=["normalized", "pixels"])
    parser.add_argument("--processes", type=int, default=core_count())
    arguments = parser.parse_args()
    limits = {name: int(count) for name, _, count in (text.partition("=") for text in arguments.c_images)}
    rows: list[dict[str, Any]] = []
    for argument in arguments.weights:
        name, _, path = argument.partition("=")
        # A model of raw pixels has only one form.
        takes_pixels = not any((models.normalization(name) or ((1.0,), ()))[0])
        for form in arguments.forms[:1] if takes_pixels else arguments.forms:
            c_images = min(limits.get(name, arguments.test_images), arguments.test_images)
            row = measure(name, Path(path), form, arguments.test_images, c_images, arguments.processes)
            rows.append(row)
            print({key: row[key] for key in row if key not in ("fingerprint",)}, flush=True)
            settings = {"calibration_images": CALIBRATION_IMAGES, "processes": arguments.processes}
            print(write_result("executors", {**settings, "rows": rows}, "onnxruntime"))


if __name__ == "__main__":
    main()
