"""The QDQ form of integer networks in ONNX Runtime, beside the networks themselves.

    twoscale quantize resnet20.safetensors --model resnet20 --data cifar10 -o resnet20.onnx
    python -m benchmarks.qdq resnet8.onnx resnet20.onnx

Of every layer that has 8 bits in the QDQ form the integers are compared with the reference's, with ONNX Runtime's
graph optimizations (it then fuses the form into its own integer kernels) and without them (it computes in floating
point); and so are logits and classes. Over the first test images of the data set that a network says it was
calibrated with. The result is results/qdq.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.common import write_result
from twoscale import data, load
from twoscale._formats import to_model
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._metrics import SignalToNoise
from twoscale._runtimes.onnxruntime import LEVELS

BATCH = 100


def session(network: IntegerNetwork, level: str) -> tuple[Any, list[str]]:
    """Return a session whose outputs are the logits and all 8-bit integers, and the layers of the latter."""
    model = to_model(network, "qdq")
    described = {info.name: info for info in model.graph.value_info}
    names = [layer.name for layer in network if layer.output.dtype != "int32" and f"{layer.name}/q" in described]
    model.graph.output.extend(described[f"{name}/q"] for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), names


def measure(path: Path, count: int) -> list[dict[str, Any]]:
    """Run a network and its QDQ form, without ONNX Runtime's optimizations and with all of them."""
    network = load(path)
    dataset = data.load(str(network.metadata["data"]))
    images = data.normalize(dataset.test.images[:count], network.metadata["mean"], network.metadata["std"])
    labels = dataset.test.labels[:count]
    reference = ReferenceExecutor(network)
    sessions = {level: session(network, level) for level in ("none", "all")}
    differ = dict.fromkeys(sessions, 0)
    beyond_one = dict.fromkeys(sessions, 0)
    compared = dict.fromkeys(sessions, 0)
    noise = {level: SignalToNoise() for level in sessions}
    classes: dict[str, list[int]] = {level: [] for level in sessions}
    ours: list[int] = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        expected = reference.run(batch, [layer.name for layer in network])
        logits = network.logits(expected[network.output])
        ours += logits.argmax(1).tolist()
        for level, (runtime, names) in sessions.items():
            found_logits, *found = runtime.run(["logits", *(f"{name}/q" for name in names)], {"input": batch})
            for name, q in zip(names, found, strict=True):
                distance = np.abs(q.astype(np.int64) - expected[name])
                differ[level] += int(np.count_nonzero(distance))
                beyond_one[level] += int(np.count_nonzero(distance > 1))
                compared[level] += distance.size
            noise[level].update(logits, found_logits)
            classes[level] += found_logits.argmax(1).tolist()
    return [
        {
            "network": network.name,
            "optimizations": level,
            "images": len(images),
            "integers_compared": compared[level],
            "integers_that_differ": differ[level],
            "differ_by_more_than_1": beyond_one[level],
            "logit_sqnr_db": noise[level].db,
            "classes_that_differ": int(np.count_nonzero(np.array(classes[level]) != ours)),
            "top1": float(np.mean(np.array(classes[level]) == labels)),
            "top1_network": float(np.mean(np.array(ours) == labels)),
            "fingerprint": network.fingerprint,
        }
        for level in sessions
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare integer networks with their QDQ form in ONNX Runtime.")
    parser.add_argument("networks", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--images", type=int, default=2_000)
    arguments = parser.parse_args()
    rows = [row for path in arguments.networks for row in measure(path, arguments.images)]
    for row in rows:
        print(row)
    print(write_result("qdq", {"rows": rows}, "onnxruntime"))


if __name__ == "__main__":
    main()
