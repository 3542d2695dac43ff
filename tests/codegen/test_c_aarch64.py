"""The C for AArch64 under qemu: no warnings, right for every layer at each level, and planted faults."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import sweep
from tests.codegen.compiling import NOT_INLINED, build, every_kernel, need
from tests.codegen.test_c_vector import EXPECTED, SOURCES, convolutions, saturating
from twoscale._codegen.c import export_c
from twoscale._codegen.targets import ARM, INSTRUCTION_SETS, TARGETS
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

COMPILERS = {"aarch64-linux-gnu-gcc": (), "clang": ("--target=aarch64-linux-gnu",)}
"""With their options."""
GCC = "aarch64-linux-gnu-gcc"
LEVELS = {"cortex-a72": "neon", "cortex-a76": "dotprod", "max": "i8mm"}
"""The instruction set that the C chooses on processors as qemu names them."""
STRICT = ("-std=gnu99", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wundef", "-Wstrict-prototypes")
QUICK = ("-std=gnu99", "-O0", NOT_INLINED, "-pthread")


def build_for_arm(folder: Path, *flags: str, compiler: str = GCC) -> Path:
    need(compiler, GCC, "qemu-aarch64")
    return build(compiler, folder, SOURCES, *COMPILERS[compiler], "-static", *flags)


def run_on(cpu: str, program: Path) -> subprocess.CompletedProcess[str]:
    command = ["qemu-aarch64", "-cpu", cpu, str(program)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The self-test of every kind of layer, for every level."""
    folder = tmp_path_factory.mktemp("aarch64")
    export_c(every_kernel("mixed"), folder, target="native", name="fast")
    return build_for_arm(folder, *QUICK)


@pytest.mark.parametrize("cpu", LEVELS)
def test_each_processor_gets_its_level_and_the_same_integers(cpu: str, program: Path) -> None:
    assert run_on(cpu, program).stdout == f"{EXPECTED}{LEVELS[cpu]})\n"


@pytest.mark.skipif(not sweep.whole(), reason="each compiler takes seconds; with --sweep all")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_it_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    export_c(every_kernel("uint8"), tmp_path, target="native", name="fast")
    program = build_for_arm(tmp_path, *STRICT, compiler=compiler)
    for cpu, level in LEVELS.items():
        assert run_on(cpu, program).stdout == f"{EXPECTED}{level})\n"


FAULTS = {
    "none": ("", ""),
    "neon: a wrong lane": ("LANE(x[n], next_lane)", "LANE(x[n], lane)"),
    "neon: saturation": ("vqmovn_high_s32(vqmovn_s32(a.at[0])", "vmovn_high_s32(vmovn_s32(a.at[0])"),
    "neon: signed and unsigned": ("veorq_u8(bytes, vdupq_n_u8(128))", "bytes"),
    "dotprod: a wrong lane": ("ADD_WORD(2)", "ADD_WORD(1)"),
    "dotprod: saturation": ("vqmovn_high_s32(vqmovn_s32(a.at[0])", "vmovn_high_s32(vmovn_s32(a.at[0])"),
    "dotprod: signed and unsigned": ("veorq_u8(bytes, vdupq_n_u8(128))", "bytes"),
    "i8mm: a wrong lane": ("last ? vzip2q_u64(one, other)", "last ? vzip1q_u64(one, other)"),
    "i8mm: saturation": ("vqmovn_high_s32(vqmovn_s32(a.at[0])", "vmovn_high_s32(vmovn_s32(a.at[0])"),
    "i8mm: signed and unsigned": (
        "vusmmlaq_s32(sum[n][i + k], two[n],",
        "vmmlaq_s32(sum[n][i + k], vreinterpretq_s8_u8(two[n]),",
    ),
    "i8mm: weights in the wrong place": ("vst1q_s8(to + 16,", "vst1q_s8(to + 15,"),
    "i8mm: no zeros after the last word": ("k + 1 < all ? at->stride : -1", "at->stride"),
}
"""From name to (text, text with the fault) of one level."""


@pytest.mark.sweep(2)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show_at_every_level(fault: str, tmp_path: Path) -> None:
    level = fault.split(":")[0] if fault != "none" else "neon"
    export_c(saturating(), tmp_path, target=level, name="fast")
    kernels = tmp_path / "fast_kernels.h"
    old, new = FAULTS[fault]
    assert old in kernels.read_text()
    kernels.write_text(kernels.read_text().replace(old, new))
    cpu = next(cpu for cpu, name in LEVELS.items() if name == level)
    done = run_on(cpu, build_for_arm(tmp_path, *QUICK))
    assert (done.returncode == 0) == (fault == "none")


def extreme(weight: int) -> IntegerNetwork:
    """Return a convolution whose weights all have one value, of images that include the smallest byte."""
    network = convolutions(20, 5, 1)
    image, conv, flat = network.layers
    assert isinstance(conv, n.Conv2d)
    whole = n.Conv2d(
        name=conv.name, inputs=conv.inputs, output=conv.output, weight=np.full_like(conv.weight, weight),
        bias_o=np.full_like(conv.bias_o, 4_000_000), multiplier=n.Multiplier.on_grid(np.full(20, 4), 16),
        stride=conv.stride, padding=conv.padding,
    )  # fmt: skip
    return IntegerNetwork("n", (image, whole, flat), network.outputs)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("weight", ["-128", "-127", "-128, not declared"])
def test_products_of_the_smallest_weights_do_not_overflow(weight: str, tmp_path: Path) -> None:
    """Activations of 0 are multiplied as -128, and 2 * 128 * 128 is 2^15."""
    images = np.zeros((4, 20, 5, 5), np.uint8)
    export_c(extreme(int(weight[:4])), tmp_path, target="neon", name="fast", inputs=images)
    source = tmp_path / "fast.c"
    assert ("#define REACHES_MINUS_128" in source.read_text()) == weight.startswith("-128")
    if "not declared" in weight:
        source.write_text(source.read_text().replace("#define REACHES_MINUS_128", ""))
    done = run_on("cortex-a72", build_for_arm(tmp_path, *QUICK))
    assert (done.returncode == 0) == ("not declared" not in weight)


def test_levels_are_targets_of_their_own() -> None:
    levels = [isa.name for isa in INSTRUCTION_SETS if isa.architecture is ARM]
    assert levels == ["i8mm", "dotprod", "neon"]
    assert all(level in TARGETS for level in levels)
