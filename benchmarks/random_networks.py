"""Random integer networks with every operator, on several executors: how many integers differ.

    python -m benchmarks.random_networks [--count 100000] [--seed 0] [--processes 2] [--every-onnx 20] [--every-c 200]
    python -m benchmarks.random_networks --report    # the counts so far

The reference and the torch executor run every network; ONNX Runtime every twentieth, from the saved file; the portable
and the vector C every 200th, since they are compiled. All layers are compared. Networks have consecutive seeds and run
in blocks, in processes of their own. A finished block is appended to build/random_networks.jsonl, so an interrupted run
continues where it stopped. A difference is printed with its seed: ``difference(seed, ...)`` shows it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.common import write_result
from tests.integer_networks import (
    COMPOSED,
    OF_TFLITE,
    OPERATORS,
    ActivationType,
    random_images,
    random_network,
)
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "random_networks.jsonl"
BLOCK = 250
IMAGES = 5
EVERY_OPERATOR = (*OPERATORS, *COMPOSED)
EVERY_TFLITE = 7
"""Networks of this many of which one may have the operators of .tflite files. They do not run in ONNX Runtime."""


@dataclass(frozen=True)
class Plan:
    """How often each executor runs."""

    every_onnx: int
    every_c: int


@dataclass
class Block:
    """The counts of consecutive seeds."""

    first: int
    count: int
    networks: dict[str, int] = field(default_factory=dict)
    """From executor to networks that it ran."""
    integers: dict[str, int] = field(default_factory=dict)
    """From executor to integers that were compared with the reference's."""
    operators: dict[str, int] = field(default_factory=dict)
    """From class to layers of the networks."""
    differing: int = 0
    examples: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0


def network_of(seed: int) -> IntegerNetwork:
    """Return a network; its type, size, operators and number of inputs (two of every tenth) depend on the seed."""
    rng = np.random.default_rng([seed, 17])
    dtype: ActivationType = ("uint8", "int8", "mixed")[seed % 3]
    some = [str(name) for name in rng.choice(EVERY_OPERATOR, 6, replace=False)]
    length = int(rng.integers(1, 11))
    inputs = 2 if seed % 10 == 4 else 1
    operators: Collection[str] = EVERY_OPERATOR if seed % 2 else some
    if seed % EVERY_TFLITE == 3:
        operators = [*operators, *OF_TFLITE]
    return random_network(rng, operators=operators, length=length, dtype=dtype, more_inputs=inputs - 1)


def executors(seed: int, plan: Plan) -> Iterator[str]:
    """Yield the executors that run a network besides the reference."""
    yield "torch"
    if seed % plan.every_onnx == 0 and seed % EVERY_TFLITE != 3:
        yield "onnxruntime"
    if seed % plan.every_c == 0:
        yield from ("c portable", "c native")


def difference(seed: int, name: str, network: IntegerNetwork | None = None) -> tuple[int, int, str | None]:
    """Run one network on one executor and the reference.

    Returns:
        (integers compared, integers that differ, the first layer with a difference).
    """
    from twoscale._runtimes import create
    from twoscale._runtimes.c import CExecutor

    network = network or network_of(seed)
    images = random_images(np.random.default_rng([seed, 18]), network, IMAGES)
    names = [layer.name for layer in network]
    expected = ReferenceExecutor(network).run(images, names)
    kind, _, target = name.partition(" ")
    executor = CExecutor(network, target=target) if kind == "c" else create(name, network)
    found = executor.run(images, names)
    wrong = {layer: int(np.count_nonzero(found[layer] != expected[layer])) for layer in names}
    first = next((layer for layer, count in wrong.items() if count), None)
    return sum(found[layer].size for layer in names), sum(wrong.values()), first


def work(first: int, count: int, plan: Plan) -> Block:
    """Run a block of networks in this process."""
    import torch

    torch.set_num_threads(1)
    block, start = Block(first, count), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TWOSCALE_CACHE"] = folder
        for seed in range(first, first + count):
            network = network_of(seed)
            for layer in network:
                block.operators[layer.op] = block.operators.get(layer.op, 0) + 1
            for name in executors(seed, plan):
                compared, differing, layer_name = difference(seed, name, network)
                block.networks[name] = block.networks.get(name, 0) + 1
                block.integers[name] = block.integers.get(name, 0) + compared
                block.differing += differing
                if layer_name is not None:
                    block.examples.append(f"seed {seed}, {name}: {differing} integers differ, first in {layer_name}")
    block.cpu_seconds = time.process_time() - start
    return block


def added(counts: list[dict[str, int]]) -> dict[str, int]:
    """Return the sums of dictionaries by key."""
    return {key: sum(part.get(key, 0) for part in counts) for key in sorted({key for part in counts for key in part})}


def finished() -> dict[tuple[int, int], Block]:
    """Return the finished blocks by their first seed and their length. A line that was cut off is left out."""
    blocks: dict[tuple[int, int], Block] = {}
    for line in WORK.read_bytes().splitlines() if WORK.exists() else []:
        try:
            block = msgspec.json.decode(line, type=Block)
        except msgspec.DecodeError:
            continue
        blocks[block.first, block.count] = block
    return blocks


def summary(blocks: list[Block]) -> str:
    """Return the counts as lines of text."""
    networks, integers = (added([getattr(block, kind) for block in blocks]) for kind in ("networks", "integers"))
    lines = [f"{name}: {networks[name]:,} networks, {integers[name]:,} integers" for name in networks]
    differing = sum(block.differing for block in blocks)
    return "\n".join([*lines, f"{differing} of {sum(integers.values()):,} integers differ from the reference"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--every-onnx", type=int, default=20, help="ONNX Runtime runs every network of this many")
    parser.add_argument("--every-c", type=int, default=200, help="C is compiled for every network of this many")
    parser.add_argument("--fresh", action="store_true", help="forget blocks that an interrupted run has finished")
    parser.add_argument("--report", action="store_true", help="print the counts so far, and run nothing")
    parser.add_argument("--no-record", action="store_true", help="print only")
    arguments = parser.parse_args()
    WORK.parent.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        WORK.unlink(missing_ok=True)
    blocks = finished()
    if arguments.report:
        print(summary(list(blocks.values())))
        return
    plan = Plan(arguments.every_onnx, arguments.every_c)
    end = arguments.seed + arguments.count
    wanted = [(first, min(BLOCK, end - first)) for first in range(arguments.seed, end, BLOCK)]
    with ProcessPoolExecutor(arguments.processes) as pool, WORK.open("ab") as file:
        running = [pool.submit(work, *part, plan) for part in wanted if part not in blocks]
        for done in as_completed(running):
            block = done.result()
            blocks[block.first, block.count] = block
            file.write(msgspec.json.encode(block) + b"\n")
            file.flush()
            for example in block.examples:
                print(example, flush=True)
    chosen = [blocks[part] for part in wanted]
    print(summary(chosen))
    differing = sum(block.differing for block in chosen)
    if not arguments.no_record and not differing:
        record = {
            "seed": arguments.seed,
            "networks": added([block.networks for block in chosen]),
            "integers": added([block.integers for block in chosen]),
            "layers": added([block.operators for block in chosen]),
            "differing": differing,
            "cpu_seconds": sum(block.cpu_seconds for block in chosen),
        }
        print(f"written to {write_result('random_networks', record, 'onnxruntime')}")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
