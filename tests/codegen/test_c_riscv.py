"""The C on RISC-V under QEMU: RV32IMC, as of the ESP32-C3, and 64 bits with the vector extension."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import sweep
from tests.codegen.compiling import DTYPES
from tests.codegen.freestanding import compiled, exit_code, program_for
from tests.integer_networks import ActivationType

PROCESSORS = {
    "rv32imc": (("--target=riscv32-linux-gnu", "-march=rv32imc", "-mabi=ilp32", "-Os"), ("qemu-riscv32",)),
    "rv64gcv": (
        ("--target=riscv64-linux-gnu", "-march=rv64gcv", "-O3"),
        ("qemu-riscv64", "-cpu", "rv64,v=true,vlen=256,elen=64,vext_spec=v1.0"),
    ),
}
"""Flags of clang, and the emulator. With -O3, clang vectorizes the loops of plain C."""


@pytest.mark.parametrize("dtype", DTYPES if sweep.whole() else DTYPES[:1])
@pytest.mark.parametrize("target", ["portable", "small-ram"] if sweep.whole() else ["portable"])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_layer_is_the_same(processor: str, target: str, dtype: ActivationType, tmp_path: Path) -> None:
    flags, emulator = PROCESSORS[processor]
    assert exit_code(*emulator, program_for(tmp_path, dtype, target, *flags)) == 0


@pytest.mark.skipif(not sweep.whole(), reason="compiles twice: --sweep all")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_wrong_weight_is_found(processor: str, tmp_path: Path) -> None:
    flags, emulator = PROCESSORS[processor]
    program_for(tmp_path, "uint8", "portable", *flags)
    source = tmp_path / "net.c"
    before, weights, after = re.split(r"(logits_weight\[.*?\};)", source.read_text(), maxsplit=1, flags=re.DOTALL)
    text = before + re.sub(r"-?\d+(?=,)", lambda match: str(int(match[0]) ^ 1), weights) + after
    source.write_text(text)
    assert exit_code(*emulator, compiled(tmp_path, *flags)) == 1
