"""TensorFlow Lite files in LiteRT, on its default path and its reference kernels: integers that differ.

    python -m benchmarks.tflite resnet8=FILE resnet20=FILE net resnet18 mobilenetv2 [--images N] [--random N]
    python -m benchmarks.tflite --read FILE.tflite

Each argument is a model of the registry, and a file of its weights for CIFAR-10. Without one, its weights are random
and its batch norms see 200 images first, which makes accuracy meaningless. A network is quantized with the scheme
"tflite" and 400 training images. Every integer of every layer of every test image is compared with the compiled C's,
and for the first 100 images with the NumPy reference's. LiteRT's slower reference kernels get 200 images.
``--random`` compares random networks of every layer type.
The result, in results/tflite.json, is rewritten after every network.

``--read`` reads another tool's integer file for CIFAR-10 and runs it in twoscale's engine and in LiteRT's default path,
in turn, one image at a time on one thread. It also counts the outputs that differ, since LiteRT's default path rounds
in another way, and gives both accuracies. The result is results/tflite-read.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import Pair, paired, write_result
from twoscale import data, models

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from twoscale._ir.execution import Executor
    from twoscale._ir.integer_network import IntegerNetwork

BATCH = 100
CALIBRATION_IMAGES = 400
REFERENCE_IMAGES = 200
"""LiteRT's reference kernels are slow: 14 ms for one image of ResNet-8 where its default path took 0.3."""
TIMED_RUNS = 200
KERNELS = ("default", "reference")


@dataclass(frozen=True)
class Row:
    """One network."""

    network: str
    weights: str
    images: int
    compared: dict[str, int]
    """Integers, by kind of kernels."""
    differing: dict[str, int]
    top1: float | None
    top1_default_scheme: float | None
    sqnr_db: float
    sqnr_db_default_scheme: float
    file_bytes: int
    layers: int
    layers_with_ties: int
    fingerprint: str


def quantized(name: str, path: Path | None, images: NDArray[Any], scheme: str) -> tuple[Any, IntegerNetwork]:
    """Return the float model, taking normalized images, and the integer network, taking pixels."""
    import torch

    import twoscale

    dataset = data.load("cifar10")
    norm = models.normalization(name) or (dataset.mean, dataset.std)
    if path is not None:
        model = models.load(name, path)
    else:
        torch.manual_seed(0)
        model = models.create(name)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for module in norms:
            module.momentum = None
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.2)
        if norms:
            with torch.no_grad():
                model.train()(torch.from_numpy(data.normalize(images[:200], *norm)))
    model.eval()
    batches = [images[i : i + BATCH].astype(np.float32) for i in range(0, len(images), BATCH)]
    return (model, norm), twoscale.quantize(model, batches, scheme=scheme, normalization=norm)


def float_logits(model: Any, dataset: Any, count: int) -> NDArray[np.float64]:
    """Return the float model's logits for the first test images."""
    import torch

    module, norm = model
    found = []
    with torch.inference_mode():
        for start in range(0, count, BATCH):
            pixels = dataset.images[start : min(start + BATCH, count)]
            found.append(module(torch.from_numpy(data.normalize(pixels, *norm))).numpy().astype(np.float64))
    return np.concatenate(found)


def accuracy(network: IntegerNetwork, real: NDArray[np.float64], dataset: Any) -> tuple[float, float]:
    """Return top-1 over the first test images, and the SQNR of the logits beside the float model's."""
    from twoscale._runtimes.c import CExecutor

    executor, count = CExecutor(network), len(real)
    noise = hits = 0.0
    for start in range(0, count, BATCH):
        pixels, labels = (part[start : min(start + BATCH, count)] for part in (dataset.images, dataset.labels))
        integer = network.logits(executor.run(pixels.astype(np.float32))[network.output]).astype(np.float64)
        noise += ((real[start : start + len(pixels)] - integer) ** 2).sum()
        hits += int((integer.argmax(1) == labels).sum())
    return hits / count, float(10 * np.log10((real**2).sum() / noise))


def measure(name: str, path: Path | None, count: int) -> Row:
    """Quantize a model and compare every layer over the first ``count`` test images."""
    from twoscale._formats.tflite import to_bytes
    from twoscale._ir.reference import ReferenceExecutor
    from twoscale._runtimes.c import CExecutor
    from twoscale._runtimes.litert import LiteRtExecutor

    dataset = data.load("cifar10")
    images = dataset.train.images[:CALIBRATION_IMAGES]
    _, plain = quantized(name, path, images, "default")
    model, network = quantized(name, path, images, "tflite")
    keep = [layer.name for layer in network]
    expected: dict[str, Executor] = {"c": CExecutor(network), "reference": ReferenceExecutor(network)}
    found = {kernels: LiteRtExecutor(network, kernels=kernels) for kernels in KERNELS}
    differing: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    for start in range(0, count, BATCH):
        pixels = dataset.test.images[start : min(start + BATCH, count)].astype(np.float32)
        wanted = expected["c" if start else "reference"].run(pixels, keep)
        for kernels, executor in found.items():
            if kernels == "reference" and start >= REFERENCE_IMAGES:
                continue
            compared[kernels] += sum(values.size for values in wanted.values())
            got = executor.run(pixels, keep)
            differing[kernels] += sum(int((got[layer] != wanted[layer]).sum()) for layer in keep)
    real = float_logits(model, dataset.test, count)
    top1, sqnr = accuracy(network, real, dataset.test)
    top1_plain, sqnr_plain = accuracy(plain, real, dataset.test)
    return Row(
        name,
        "random" if path is None else path.name,
        count,
        dict(compared),
        {kernels: differing[kernels] for kernels in KERNELS},
        top1 if path else None,
        top1_plain if path else None,
        round(sqnr, 2),
        round(sqnr_plain, 2),
        len(to_bytes(network)),
        len(network.layers),
        len(network.ties),
        network.fingerprint,
    )


@dataclass(frozen=True)
class ReadFile:
    """Another tool's file in the engine (a) and in LiteRT's default path (b)."""

    file: str
    fingerprint: str
    kernels: str
    """The engine's instruction set."""
    images: int
    top1_engine: float
    top1_litert: float
    outputs_differing: int
    outputs: int
    microseconds: Pair
    """For one image at a time, on one thread: a whole call of the engine, and LiteRT's ``invoke`` alone."""


def measure_file(path: Path, count: int, repeats: int) -> ReadFile:
    """Compare another tool's integer file in the engine and in LiteRT, over the first ``count`` test images.

    Both get integers of the file's type and give its outputs; the engine gets them as float32, and quantizes.
    """
    from ai_edge_litert import interpreter

    import twoscale
    from twoscale._ir.operators.vectorized import quantize_input

    network = twoscale.load(path)
    spec, output = network.input.output, network.spec(network.output)
    test = data.load("cifar10").test.head(count)
    mean, std = network.metadata["mean"], network.metadata["std"]
    images = data.normalize(test.images, mean, std)
    stored = np.ascontiguousarray(quantize_input(images, spec).transpose(0, 2, 3, 1))
    engine = network.compile(threads=1)
    runtime = interpreter.Interpreter(str(path), num_threads=1)
    runtime.allocate_tensors()
    entry, result = (details[0]["index"] for details in (runtime.get_input_details(), runtime.get_output_details()))

    def run_litert(i: int) -> Any:
        runtime.set_tensor(entry, stored[i : i + 1])
        runtime.invoke()
        return runtime.get_tensor(result)[0]

    found = [run_litert(i).copy() for i in range(count)]
    theirs = ((np.array(found, np.float64) - output.zero_point) * output.scale).astype(np.float32)
    ours = np.concatenate([engine(images[i : i + BATCH]) for i in range(0, count, BATCH)])
    one = images[:1]

    def timed(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(TIMED_RUNS):
            run()
        return (time.perf_counter() - start) / TIMED_RUNS * 1e6

    return ReadFile(
        file=path.name,
        fingerprint=network.fingerprint,
        kernels=engine.kernels,
        images=count,
        top1_engine=float((ours.argmax(1) == test.labels).mean()),
        top1_litert=float((theirs.argmax(1) == test.labels).mean()),
        outputs_differing=int((ours != theirs).sum()),
        outputs=int(ours.size),
        microseconds=paired(lambda: timed(lambda: engine(one)), lambda: timed(runtime.invoke), repeats),
    )


def random_networks(count: int) -> dict[str, int]:
    """Compare random networks, as the tests make them: networks, layers, integers compared and differing."""
    from tests.formats import test_tflite as made
    from tests.integer_networks import random_images, random_network
    from twoscale.errors import QuantizationError

    total: Counter[str] = Counter(networks=0, layers=0, compared=0, differing=0)
    seed = 0
    while total["networks"] < count:
        rng = np.random.default_rng(1_000_000 + seed)
        seed += 1
        try:
            network = made.for_litert(random_network(rng, operators=made.OPERATORS, output="tensor", length=6))
        except QuantizationError:
            continue
        if not made.exact(network):
            continue
        for name, differing in made.differing(network, random_images(rng, network, 2)).items():
            total["layers"] += 1
            total["compared"] += 2 * int(np.prod(network.spec(name).shape))
            total["differing"] += differing
        total["networks"] += 1
    return dict(total)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="model, or model=weights")
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--random", type=int, default=0, help="random networks")
    parser.add_argument("--read", type=Path, help="another tool's integer .tflite file for CIFAR-10")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each side, for --read")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    if options.read:
        found = measure_file(options.read, options.images, options.repeats)
        print(found)
        if not options.no_record:
            write_result("tflite-read", found, "ai-edge-litert")
        return
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"calibration_images": CALIBRATION_IMAGES, "rows": rows}
    if options.random:
        result["random"] = random_networks(options.random)
        print(result["random"], flush=True)
    for argument in options.networks:
        name, _, path = argument.partition("=")
        rows.append(dataclasses.asdict(measure(name, Path(path) if path else None, options.images)))
        print(rows[-1], flush=True)
        if not options.no_record:
            write_result("tflite", result, "ai-edge-litert")


if __name__ == "__main__":
    main()
