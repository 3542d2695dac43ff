"""TensorFlow Lite files in LiteRT, on its default path and its reference kernels: integers that differ.

    python -m benchmarks.tflite resnet8=FILE resnet20=FILE net resnet18 mobilenetv2 [--images N] [--random N]

Each argument is a model of the registry, and a file of its weights for CIFAR-10. Without one, its weights are random
and its batch norms see 200 images first, which makes accuracy meaningless. A network is quantized with the scheme
"tflite" and 400 training images. Every integer of every layer of every test image is compared with the torch
executor's, and with the NumPy reference's for the first 100. ``--random`` compares random networks of every layer type.
The result, in results/tflite.json, is rewritten after every network.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import write_result
from twoscale import data, models

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from twoscale._ir.execution import Executor
    from twoscale._ir.integer_network import IntegerNetwork

BATCH = 100
CALIBRATION_IMAGES = 400
KERNELS = ("default", "reference")


@dataclass(frozen=True)
class Row:
    """One network."""

    network: str
    weights: str
    images: int
    compared: int
    """Integers, for each kind of kernels."""
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


def accuracy(network: IntegerNetwork, model: Any, dataset: Any, count: int) -> tuple[float, float]:
    """Return top-1 and the SQNR of the logits over the first test images."""
    import torch

    from twoscale._runtimes.torch import TorchExecutor

    executor, (module, norm) = TorchExecutor(network), model
    signal = noise = hits = 0.0
    for start in range(0, count, BATCH):
        pixels, labels = (part[start : min(start + BATCH, count)] for part in (dataset.images, dataset.labels))
        integer = network.logits(executor.run(pixels.astype(np.float32))[network.output]).astype(np.float64)
        with torch.inference_mode():
            real = module(torch.from_numpy(data.normalize(pixels, *norm))).numpy().astype(np.float64)
        signal, noise = signal + (real**2).sum(), noise + ((real - integer) ** 2).sum()
        hits += int((integer.argmax(1) == labels).sum())
    return hits / count, float(10 * np.log10(signal / noise))


def measure(name: str, path: Path | None, count: int) -> Row:
    """Quantize a model and compare every layer over the first ``count`` test images."""
    from twoscale._formats.tflite import to_bytes
    from twoscale._ir.reference import ReferenceExecutor
    from twoscale._runtimes.litert import LiteRtExecutor
    from twoscale._runtimes.torch import TorchExecutor

    dataset = data.load("cifar10")
    images = dataset.train.images[:CALIBRATION_IMAGES]
    plain_model, plain = quantized(name, path, images, "default")
    model, network = quantized(name, path, images, "tflite")
    keep = [layer.name for layer in network]
    expected: dict[str, Executor] = {"torch": TorchExecutor(network), "reference": ReferenceExecutor(network)}
    found = {kernels: LiteRtExecutor(network, kernels=kernels) for kernels in KERNELS}
    differing: Counter[str] = Counter()
    compared = 0
    for start in range(0, count, BATCH):
        pixels = dataset.test.images[start : min(start + BATCH, count)].astype(np.float32)
        wanted = expected["torch" if start else "reference"].run(pixels, keep)
        compared += sum(values.size for values in wanted.values())
        for kernels, executor in found.items():
            got = executor.run(pixels, keep)
            differing[kernels] += sum(int((got[layer] != wanted[layer]).sum()) for layer in keep)
    top1, sqnr = accuracy(network, model, dataset.test, count)
    top1_plain, sqnr_plain = accuracy(plain, plain_model, dataset.test, count)
    return Row(
        name,
        "random" if path is None else path.name,
        count,
        compared,
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
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
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
