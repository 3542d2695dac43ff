"""What fewer bits cost, and what learning gives back: accuracy of the integer networks themselves.

    python -m benchmarks.low_bits --models DIR [--networks resnet8,resnet20] [--bits W4A8,W4A4,W3A3,W2A4,W2A2]
                                  [--edges 8] [--images 1000] [--further 9000] [--tests 10000] [--seeds 1] [--effort 1]
    python -m benchmarks.low_bits --models DIR --run DIR
    python -m benchmarks.low_bits --table      # the recorded figures as a table

DIR holds the published weights NAME-cifar10.safetensors; TWOSCALE_BENCH_MODELS names it too. A network whose weights
are not published is trained first, into the folder DIR/NAME:

    twoscale train resnet18 --recipe fast --epochs 7 --warmup-epochs 1.5 --test-views one -o DIR/resnet18
    twoscale train mobilenetv2 --model-args width=0.35 --recipe standard --without zero-init-residual --epochs 10 \\
        --warmup-epochs 1 --batch-size 250 --weight-decay 1e-4 --label-smoothing 0 --crop 3 -o DIR/mobilenetv2
    twoscale train net --data cifar10 --epochs 20 --batch-size 125 --lr 0.02 --nesterov --weight-decay 5e-4 \\
        --schedule cosine --crop 2 --flip random -o DIR/net

Networks take pixels. Calibration images, and further ones for learning, are unlabelled training images, drawn with
seed 0. Every network is quantized by the default scheme and with learned rounding, and runs over the test images as
integers, in C. A simulation of it in float, which most other tools report, is beside. Over 100 images, integers of
every layer are compared between reference, torch and ONNX Runtime. New rows replace recorded ones of the same network,
bits, edges, images and effort. Seconds are processor time of one thread. --run adds the network of `twoscale train
--quantize`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import twoscale
from benchmarks.common import RESULTS, write_result
from twoscale import data, models
from twoscale._calibration.profile import profile
from twoscale._environment import Environment
from twoscale._files import read_record
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._quantization import Scheme, float_graph, quantize_graph
from twoscale._quantization.simulate import with_activations_quantized
from twoscale._search import LearnedRounding
from twoscale._search.learned_rounding import learn_network
from twoscale._verification import verify
from twoscale.training._quantized import scheme_of
from twoscale.training._record import RunRecord

BATCH = 250


@dataclass(frozen=True)
class Row:
    """One network at one number of bits, rounded in one way with one seed."""

    network: str
    weight_bits: int
    activation_bits: int
    edge_bits: int | None
    """Of the first and the last layer, where other than the rest."""
    rounding: str
    """"feedback", "learned" or "trained"."""
    seed: int
    images: int
    """For calibration."""
    further: int
    """For learning, besides those for calibration."""
    effort: float
    """Of learning; epochs of training."""
    seconds: float | None
    """Processor time of one thread to quantize, capture and profile not included; None for a training run, whose record
    has wall-clock time only."""
    top1: float
    """Of the integer network, 0..1."""
    float_top1: float
    simulated_top1: float
    agreement: float
    sqnr_db: float
    tests: int
    differing: int
    """Integers of all layers that differ between reference, torch and ONNX Runtime."""
    compared: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What a new row replaces."""
        return (
            self.network,
            self.weight_bits,
            self.activation_bits,
            self.edge_bits,
            self.rounding,
            self.seed,
            self.images,
            self.further,
            self.effort,
        )


@dataclass(frozen=True)
class Record:
    """benchmarks/results/low_bits.json."""

    rows: tuple[Row, ...]
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def simulation(graph: g.FloatGraph, network: IntegerNetwork) -> Any:
    """Return the network in float: weights and activations rounded, with sums, biases and multipliers in float."""
    biases: dict[str, g.Node] = {}
    for layer in network:
        if isinstance(layer, n.Accumulating):
            x = network.spec(layer.inputs[0])
            real = layer.bias_o * np.float64(x.scale) * layer.weight_scales(x)
            biases[layer.name] = dataclasses.replace(graph[layer.name], bias_o=real.astype(np.float32))  # type: ignore[call-arg]
    return with_activations_quantized(graph.replaced(biases), network)


def logits(run: Any, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the logits of a function of pixels, in batches."""
    parts = [run(images[i : i + BATCH].astype(np.float32)) for i in range(0, len(images), BATCH)]
    return np.concatenate(parts).astype(np.float64)


def read_model(name: str, folder: Path) -> tuple[str, torch.nn.Module, Any]:
    """Return what a row calls a network, the network, and the mean and deviation of its images."""
    published, run = folder / f"{name}-cifar10.safetensors", folder / name
    if published.exists() or not run.exists():
        return name, models.load(name, published), models.normalization(name)
    model, info = models.load_checkpoint(run)
    options = [f"{key} {value}" for key, value in info.options.items() if key != "classes"]
    return ", ".join([name, *options]), model, (info.mean, info.std)


class Case:
    """One network at one number of bits, what it learns from, and the test images.

    Args:
        name: of the network.
        folder: of its weights.
        scheme: the bits.
        images: for calibration.
        further: to learn from.
        tests: test images.
        compared: test images over which integers are compared.
    """

    def __init__(
        self, name: str, folder: Path, scheme: Scheme, images: int, further: int, tests: int, compared: int
    ) -> None:
        dataset = data.load("cifar10")
        drawn = np.random.default_rng(0).permutation(len(dataset.train))[: images + further]
        self.scheme, self.compared = scheme, compared
        self.pixels, self.more = np.split(dataset.train.images[drawn].astype(np.float32), [images])
        self.name, model, normalization = read_model(name, folder)
        self.graph = float_graph(model, self.pixels[:64], scheme, normalization=normalization)
        self.test, self.labels = dataset.test.images[:tests], dataset.test.labels[:tests]
        self.expected = logits(lambda x: GraphModule(self.graph)(torch.from_numpy(x)).numpy(), self.test)

    def rounded(self, seeds: int, effort: float) -> Iterator[Row]:
        """Quantize with error feedback, and with learned rounding from each seed."""
        found = profile(self.graph, [self.pixels[i : i + 100] for i in range(0, len(self.pixels), 100)])
        clock = time.process_time()
        network = quantize_graph(self.graph, found, self.scheme)
        yield self._row(network, "feedback", 0, time.process_time() - clock, 1.0, further=0)
        for seed in range(seeds):
            how = dataclasses.replace(LearnedRounding().scaled(effort), seed=seed)
            clock = time.process_time()
            network = learn_network(self.graph, found, self.pixels, self.scheme, how, further=self.more)
            yield self._row(network, "learned", seed, time.process_time() - clock, effort, further=len(self.more))

    def trained(self, run: Path) -> Row:
        """Measure the network of a training run."""
        config, images = read_record(run / "run.json", RunRecord).config, len(data.load("cifar10").train)
        network = twoscale.load(run / "network.onnx")
        return self._row(network, "trained", config.seed, None, config.epochs or 0, further=images - len(self.pixels))

    def _row(
        self, network: IntegerNetwork, rounding: str, seed: int, seconds: float | None, effort: float, *, further: int
    ) -> Row:
        run, simulated = network.compile(threads=1), simulation(self.graph, network)
        integers = logits(run, self.test)
        floats = logits(lambda x: simulated(torch.from_numpy(x)).numpy(), self.test)
        few = self.test[: self.compared].astype(np.float32)
        result = verify(network, [few], executors=("reference", "torch", "onnxruntime"))
        expected, labels = self.expected, self.labels
        return Row(
            network=self.name,
            weight_bits=self.scheme.weight_bits,
            activation_bits=self.scheme.activation_bits,
            edge_bits=self.scheme.edge_bits,
            rounding=rounding,
            seed=seed,
            images=len(self.pixels),
            further=further,
            effort=effort,
            seconds=seconds,
            top1=float((integers.argmax(1) == labels).mean()),
            float_top1=float((expected.argmax(1) == labels).mean()),
            simulated_top1=float((floats.argmax(1) == labels).mean()),
            agreement=float((integers.argmax(1) == expected.argmax(1)).mean()),
            sqnr_db=10 * float(np.log10(np.square(expected).sum() / np.square(expected - integers).sum())),
            tests=len(labels),
            differing=result.mismatches,
            compared=result.compared,
        )


def table(rows: Iterable[Row]) -> str:
    """Return the rows as Markdown: of several seeds the mean and the spread."""
    lines = [
        "| network | bits | edges | rounding | images | top-1 (float) | simulated | agreement "
        "| SQNR | CPU s | differ |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.network, -row.weight_bits, -row.activation_bits, row.rounding)):
        groups.setdefault(dataclasses.replace(row, seed=0).key, []).append(row)
    for several in groups.values():
        one = several[0]
        top = [100 * row.top1 for row in several]
        how = f"{one.effort:g} epochs" if one.rounding == "trained" else f"effort {one.effort:g}"
        rounding = one.rounding if one.effort == 1 else f"{one.rounding}, {how}"
        spread = f" ± {(max(top) - min(top)) / 2:.2f}, {len(top)} seeds" if len(top) > 1 else ""

        def mean(field: str, several: list[Row] = several) -> float:
            return statistics.fmean(getattr(row, field) for row in several)

        lines.append(
            f"| {one.network} | W{one.weight_bits}A{one.activation_bits} | {one.edge_bits or 'as the rest'} "
            f"| {rounding} | {one.images + one.further:,} "
            f"| {statistics.fmean(top):.2f} %{spread} ({100 * one.float_top1:.2f}) "
            f"| {100 * mean('simulated_top1'):.2f} % | {100 * mean('agreement'):.2f} % | {mean('sqnr_db'):.1f} dB "
            f"| {'–' if one.seconds is None else format(mean('seconds'), '.0f')} "
            f"| {sum(row.differing for row in several)} of {sum(row.compared for row in several):,} |"
        )
    return "\n".join(lines)


def recorded() -> tuple[Row, ...]:
    """Return the recorded rows."""
    path = RESULTS / "low_bits.json"
    return read_record(path, Record).rows if path.exists() else ()


def keep(found: Iterable[Row]) -> None:
    """Record and print rows as they are found."""
    for row in found:
        rows = {one.key: one for one in (*recorded(), row)}
        write_result("low_bits", Record(tuple(rows.values())))
        print(table([row]).splitlines()[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=os.environ.get("TWOSCALE_BENCH_MODELS"))
    parser.add_argument("--networks", default="resnet8,resnet20", help="with commas (default: %(default)s)")
    parser.add_argument("--bits", default="W4A8,W4A4,W3A3,W2A4,W2A2", help="with commas (default: %(default)s)")
    parser.add_argument("--edges", type=int, default=8, help="bits of the first and the last layer; 0: as the rest")
    parser.add_argument("--images", type=int, default=1000, help="for calibration (default: %(default)s)")
    parser.add_argument("--further", type=int, default=9000, help="more images to learn from (default: %(default)s)")
    parser.add_argument("--tests", type=int, default=10_000, help="test images (default: %(default)s)")
    parser.add_argument("--compared", type=int, default=100, help="of them, for all integers (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="of learned rounding (default: %(default)s)")
    parser.add_argument("--effort", type=float, default=1.0, help="of learned rounding (default: %(default)s)")
    parser.add_argument("--run", type=Path, help="of twoscale train --quantize: measure its network instead")
    parser.add_argument("--table", action="store_true", help="print the recorded figures, and measure nothing")
    chosen = parser.parse_args()
    if chosen.table:
        print(table(recorded()))
        return
    if chosen.models is None:
        parser.error("give the folder of the published weights with --models")
    torch.set_num_threads(1)
    if chosen.run is not None:
        config = read_record(chosen.run / "run.json", RunRecord).config
        scheme = scheme_of(config)
        keep(
            [
                Case(config.model, chosen.models, scheme, chosen.images, 0, chosen.tests, chosen.compared).trained(
                    chosen.run
                )
            ]
        )
        return
    for name in chosen.networks.split(","):
        for bits in chosen.bits.split(","):
            match = re.fullmatch(r"W(\d)A(\d)", bits)
            if match is None:
                parser.error(f"--bits has {bits}; expected bits of weights and activations, e.g. W4A4")
            scheme = Scheme(weight_bits=int(match[1]), activation_bits=int(match[2]), edge_bits=chosen.edges or None)
            case = Case(name, chosen.models, scheme, chosen.images, chosen.further, chosen.tests, chosen.compared)
            keep(case.rounded(chosen.seeds, chosen.effort))


if __name__ == "__main__":
    main()
