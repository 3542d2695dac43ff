"""The C on a big-endian processor: the self-test, with the checksum of every layer, under QEMU for PowerPC."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import sweep
from tests.codegen.compiling import DTYPES
from tests.codegen.freestanding import compiled, exit_code, program_for
from tests.integer_networks import ActivationType

FLAGS = ("--target=powerpc-linux-gnu", "-O1")
TARGETS = ("portable", "small-ram", "cortex-m4", "cortex-m55", "cortex-m4-small-ram", "cortex-m55-small-ram")


@pytest.mark.parametrize("dtype", DTYPES if sweep.whole() else DTYPES[:1])
@pytest.mark.parametrize("target", TARGETS if sweep.whole() else TARGETS[:1])
def test_every_layer_is_the_same(target: str, dtype: ActivationType, tmp_path: Path) -> None:
    assert exit_code("qemu-ppc", program_for(tmp_path, dtype, target, *FLAGS)) == 0


@pytest.mark.skipif(not sweep.whole(), reason="compiles once more: --sweep all")
def test_checksums_of_native_bytes_would_differ(tmp_path: Path) -> None:
    """Planted: bytes in this processor's order."""
    program_for(tmp_path, "uint8", "portable", *FLAGS)
    test = tmp_path / "net_test.c"
    text = test.read_text()
    assert text.count("byte[i ^ reversed]") == 1
    test.write_text(text.replace("byte[i ^ reversed]", "byte[i ^ (0 * reversed)]"))
    assert exit_code("qemu-ppc", compiled(tmp_path, *FLAGS)) == 1
