"""Random networks, wide enough for every vector kernel and its remainders, on every target at many batch sizes.

The tests use a few networks. For longer runs, with one process per core:

    python -m tests.runtimes.test_fuzz [--seconds 600] [--first 1000]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.codegen.compiling import NOT_INLINED, build, need, run
from tests.integer_networks import OPERATORS, ActivationType, random_images, random_network
from twoscale._codegen.c import export_c
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes.c import CExecutor

TARGETS = ("native", "amx", "avx512vnni", "avxvnni", "avx2", "sse41", "portable")
BATCHES = (0, 1, 2, 7, 16, 33, 70)
"""Batch sizes around the number of images that are computed together, and well beyond."""


def wide_network(seed: int) -> IntegerNetwork:
    """Return a network of up to 90 channels; sizes, types and length depend on the seed."""
    rng = np.random.default_rng(seed)
    dtype: ActivationType = ("uint8", "uint8", "int8", "mixed")[seed % 4]
    shape = (int(rng.choice([1, 3, 4, 16])), int(rng.integers(3, 15)), int(rng.integers(3, 15)))
    length = int(rng.integers(2, 9))
    convolutional = {"conv", "depthwise", "residual", "max_pool", "average_pool", "add"}
    return random_network(
        rng, operators=convolutional if seed % 2 else OPERATORS, dtype=dtype, image_shape=shape, length=length,
        widest=int(rng.choice([6, 24, 90])), name="wide",
    )  # fmt: skip


def differences(seed: int, targets: Sequence[str]) -> list[str]:
    """Return the differences from the reference: for every batch size, for all layers of the last one, with unaligned
    images."""
    network = wide_network(seed)
    images = random_images(np.random.default_rng(seed), network, max(BATCHES))
    names = [layer.name for layer in network]
    expected = ReferenceExecutor(network).run(images, names)
    shifted = np.frombuffer(b"\0" + images.tobytes(), np.uint8)[1:].view(np.float32).reshape(images.shape)
    found = []
    for target in targets:
        executor = CExecutor(network, threads=1 + seed % 3, target=target)
        for count in BATCHES:
            output = executor.run(shifted[:count])[network.output]
            if not np.array_equal(output, expected[network.output][:count]):
                found.append(f"seed {seed}, {target}, batch {count}: outputs differ")
        kept = executor.run(images[:7], names)
        wrong = [name for name in names if not np.array_equal(kept[name], expected[name][:7])]
        if wrong:
            found.append(f"seed {seed}, {target}: layer {wrong[0]} is the first to differ")
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("seed", "targets"),
    [
        (1, ("native",)),
        (2, ("avx2",)),
        (9, ("amx",)),
        (3, ("avx512vnni",)),
        (5, ("avxvnni",)),
        (7, ("sse41",)),
        (8, ("native", "portable")),
    ],
)
def test_random_networks_targets_and_batches(seed: int, targets: tuple[str, ...]) -> None:
    need("cc")
    assert differences(seed, targets) == []


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("seed", "target"), [(5, "avx512vnni"), (2, "avx2")])
def test_sanitizers_find_nothing(seed: int, target: str, tmp_path: Path) -> None:
    """Odd batches alone, together and with two threads, for every layer: no access outside, nothing undefined."""
    need("gcc")
    network = wide_network(seed)
    spec = network.input.output
    images = np.random.default_rng(0).integers(spec.lo, spec.hi, (19, *spec.shape), endpoint=True).astype(spec.dtype)
    export_c(network, tmp_path, target=target, name="wide", inputs=images)
    flags = ("-std=gnu99", "-O0", NOT_INLINED, "-g", "-pthread", "-ffp-contract=off", "-fsanitize=address,undefined",
             "-fno-sanitize-recover=all")  # fmt: skip
    done = run(build("gcc", tmp_path, ["wide_test.c", "wide.c"], *flags))
    assert done.stderr == ""
    assert done.stdout.startswith("wide: 19 images, all layers and outputs as expected (")


def _work(seed: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TWOSCALE_CACHE"] = folder
        return differences(seed, TARGETS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Random networks on every target, until the time is over.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=1000, help="seed; others follow")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    checked, wrong = 0, 0
    with ProcessPoolExecutor() as pool:
        while time.monotonic() < end:
            seeds = range(arguments.first + checked, arguments.first + checked + 8)
            for differing in pool.map(_work, seeds):
                checked += 1
                wrong += len(differing)
                for line in differing:
                    print(line, flush=True)
    each = len(TARGETS) * len(BATCHES)
    print(f"{checked} networks, {checked * each:,} batches on {len(TARGETS)} targets: {wrong} differences")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    assert shutil.which("cc"), "a C compiler is needed"
    main()
