"""Compiling and running exported C in tests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.integer_networks import OF_ATTENTION, OPERATORS, ActivationType, Output, random_network
from twoscale._ir.integer_network import IntegerNetwork

STRICT = (
    "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wpedantic",
    "-Wcast-qual", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wundef", "-Wvla",
)  # fmt: skip
NOT_INLINED = "-Dalways_inline=unused"
"""Keep vector kernels as functions. Without optimization they then compile a dozen times as fast, with the same
accesses."""
SANITIZED = ("-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

DTYPES: tuple[ActivationType, ...] = ("uint8", "int8", "mixed")


def need(*tools: str) -> None:
    """Skip the test where a tool is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def compile_c(
    compiler: str, folder: Path, sources: Sequence[str], *flags: str, out: str = "program"
) -> subprocess.CompletedProcess[str]:
    command = [compiler, *flags, "-o", out, *sources]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def build(compiler: str, folder: Path, sources: Sequence[str], *flags: str, out: str = "program") -> Path:
    """Compile without any output of the compiler."""
    done = compile_c(compiler, folder, sources, *flags, out=out)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder / out


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, timeout=60)


def every_kernel(dtype: ActivationType) -> IntegerNetwork:
    """Return a network in which every in-place operation and copy occurs, and every kernel but those of attention (a
    test checks that)."""
    seed, output = SEEDS[dtype]
    return random_network(
        np.random.default_rng(seed), operators=set(OPERATORS) - set(OF_ATTENTION), length=25, image_shape=(3, 9, 8),
        dtype=dtype, output=output, name="every-kernel",
    )  # fmt: skip


SEEDS: dict[ActivationType, tuple[int, Output]] = {
    "uint8": (246, "accumulators"),
    "int8": (39, "tensor"),
    "mixed": (2, "tensor"),
}
