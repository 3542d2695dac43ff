"""What each choice of the default scheme is worth: every one switched off, or its alternative on, alone.

    python benchmarks/accuracy.py net=runs/net/model.safetensors resnet20=FILE resnet8=FILE

Each argument is a model of the registry and a file of its weights, trained on CIFAR-10. The result, in
results/accuracy.json, is rewritten after every network.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write_result
from twoscale import data, models
from twoscale.calibration.profile import profile
from twoscale.quantization import DEFAULT, Scheme, float_graph, quantize_graph
from twoscale.verification import verify


def without(**changes: Any) -> Scheme:
    return dataclasses.replace(DEFAULT, **changes)


PIXELS = "images as pixels"

CHOICES = {
    "default": DEFAULT,
    PIXELS: DEFAULT,
    "no error feedback": without(error_feedback=False),
    "no bias correction": without(bias_correction=False),
    "neither correction": without(error_feedback=False, bias_correction=False),
    "activation ranges not tuned": without(tune_ranges=False),
    "activation ranges minmax": without(activation_range="minmax"),
    "weight ranges minmax": without(weight_range="minmax"),
    "residuals added after rounding (7)": without(join_residuals=False),
    "equalization by weights": without(equalization="weights"),
    "equalization by activations": without(equalization="activations"),
    "one weight scale a layer": without(per_channel=False),
    "one weight scale a layer, equalization by weights": without(per_channel=False, equalization="weights"),
}

# What the published ResNets were trained with: mean and deviation of pixels / 255.
NORMALIZATION = {
    "resnet20": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "resnet8": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


def measure(name: str, path: Path, calibration: int, samples: int) -> list[dict[str, Any]]:
    dataset = data.load("cifar10")
    mean, std = NORMALIZATION.get(name, (dataset.mean, dataset.std))
    model = models.load(name, path)
    rows: list[dict[str, Any]] = []
    seen = {}
    for label, scheme in CHOICES.items():
        normalization = (mean, std) if label == PIXELS else None
        taken = (mean, std) if normalization is None else ((0.0,) * len(mean), (1 / 255,) * len(mean))
        images = data.normalize(dataset.train.images[:calibration], *taken)
        test = data.normalize(dataset.test.images[:samples], *taken)
        batches = [(test[i : i + 250], dataset.test.labels[i : min(i + 250, samples)]) for i in range(0, samples, 250)]
        start = time.perf_counter()
        form = (scheme.join_residuals, scheme.equalization, label == PIXELS)
        if form not in seen:
            graph = float_graph(model, images[:100], scheme, normalization=normalization)
            seen[form] = graph, profile(graph, [images[i : i + 100] for i in range(0, calibration, 100)])
        graph, found = seen[form]
        network = quantize_graph(graph, found, scheme)
        seconds = time.perf_counter() - start
        result = verify(network, batches, executors=("torch",), model=graph)
        rows.append(
            {
                "network": name,
                "choice": label,
                "top1": result.top1,
                "agreement": result.agreement,
                "sqnr_db": result.sqnr_db,
                "on_grid": network.on_grid,
                "quantize_seconds": round(seconds, 2),
            }
        )
        print(f"{name:9} {label:50} {result.top1:.2%} {result.agreement:.2%} {result.sqnr_db:.2f} dB", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what each choice of the default scheme is worth.")
    parser.add_argument("weights", nargs="+", metavar="MODEL=FILE")
    parser.add_argument("--calibration-images", type=int, default=400)
    parser.add_argument("--test-images", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for argument in arguments.weights:
        name, _, path = argument.partition("=")
        rows += measure(name, Path(path), arguments.calibration_images, arguments.test_images)
        settings = {"calibration_images": arguments.calibration_images, "test_images": arguments.test_images}
        print(write_result("accuracy", {**settings, "rows": rows}))


if __name__ == "__main__":
    main()
