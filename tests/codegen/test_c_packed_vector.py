"""Packed weights of the vector kernels: a half or a quarter of the bytes, and the same integers on every processor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.codegen import test_c_aarch64 as aarch64
from tests.codegen import test_wasm as wasm
from tests.codegen.amx_emulation import make_runnable
from tests.codegen.compiling import build, every_kernel, need, run
from tests.codegen.test_c_packed import narrowed
from tests.codegen.test_c_vector import EXPECTED, QUICK, SANITIZED, SOURCES, STRICT
from twoscale._codegen.c import export_c, sizes_of
from twoscale._codegen.c.common.packing import few_bits, pack_words
from twoscale._codegen.c.vector import matrices
from twoscale._codegen.c.vector.block_calls import Conv, Linear
from twoscale._codegen.c.vector.source import source_of
from twoscale._codegen.targets import TARGETS
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_words_read_back(bits: int) -> None:
    limit = 2 ** (bits - 1)
    weight = np.random.default_rng(0).integers(-limit, limit, (3, 5, 8, 4)).astype(np.int8)
    stored = pack_words(weight, bits)
    assert stored.shape == (3, 5, bits, 4)
    for (*outer, word, byte), expected in np.ndenumerate(weight):
        together, part = divmod(word, 8 // bits)
        number = int(stored[(*outer, together, byte)]) >> part * bits & 2**bits - 1
        assert number - 2**bits * (number >= limit) == expected


@pytest.mark.parametrize(
    ("lowest", "highest", "bits"), [(-2, 1, 2), (-2, 2, 4), (-3, 1, 4), (-8, 7, 4), (-8, 8, 8), (-9, 7, 8), (0, 0, 2)]
)
def test_bits_come_from_the_integers(lowest: int, highest: int, bits: int) -> None:
    assert few_bits(np.array([[lowest, 0, highest]], np.int8)) == bits


def layers_of(bits: int) -> IntegerNetwork:
    """Return layers of few bits with many shapes.

    Runs of few and of many words; more channels than vectors have lanes; a window that I8MM's arranged weights cannot
    hold; groups; a residual; and a linear layer. All weights that fit ``bits`` occur.
    """
    rng = np.random.default_rng(bits)
    limit = 2 ** (bits - 1)
    network: list[n.Layer] = []

    def spec(*shape: int) -> n.TensorSpec:
        return n.TensorSpec(shape, "uint8", 0.1, 30, 0, 255)

    def conv(name: str, *inputs: str, inside: int, out: int, size: int, groups: int = 1, step: int = 1) -> str:
        joined = len(inputs) > 1
        height = (7 if not network[-1].output.shape[1:] else network[-1].output.shape[1]) // step + (step > 1)
        weight = rng.integers(-limit, limit, (out, inside // groups, size, size)).astype(np.int8)
        most = 3 * limit * (inside // groups * size * size) ** 0.5
        network.append(
            n.Conv2d(
                name=name, inputs=inputs, output=spec(out, height, height), weight=weight,
                bias_o=rng.integers(-500, 500, out).astype(np.int32),
                multiplier=n.Multiplier.on_grid(rng.integers(50, 90, out) * int(20 / most + 1), 14 if joined else 16),
                residual_multiplier=n.Multiplier.on_grid(np.array([9000]), 14) if joined else None,
                stride=(step, step), padding=(size // 2,) * 4, groups=groups,
            )
        )  # fmt: skip
        return name

    network.append(n.QuantizeInput(name="image", inputs=(), output=spec(3, 7, 7)))
    first = conv("first", "image", inside=3, out=20, size=3)
    second = conv("second", first, inside=20, out=20, size=1)
    third = conv("third", second, first, inside=20, out=20, size=3)
    grouped = conv("grouped", third, inside=20, out=40, size=3, groups=2)
    small = conv("small", grouped, inside=40, out=290, size=3, step=2)
    conv("deep", small, inside=290, out=18, size=3)
    size = network[-1].output.shape[1]
    flat = n.TensorSpec((18 * size * size,), "uint8", 0.1, 30, 0, 255)
    network.append(n.Reshape(name="flat", inputs=("deep",), output=flat))
    network.append(
        n.Linear(
            name="linear", inputs=("flat",), output=n.TensorSpec((21,), "int32", 1.0), multiplier=None,
            weight=rng.integers(-limit, limit, (21, *flat.shape)).astype(np.int8), bias_o=np.zeros(21, np.int32),
        )
    )  # fmt: skip
    return IntegerNetwork("fast", tuple(network), ("linear",))


@pytest.mark.parametrize("bits", [4, 2])
def test_every_layer_but_the_images_is_packed(bits: int) -> None:
    calls = [call for step in source_of(layers_of(bits), "n", TARGETS["native"]).program.steps for call in step.calls]
    found = [call.tile.bits for call in calls if isinstance(call, Conv)]
    found += [call.compiled_for.bits for call in calls if isinstance(call, Linear)]
    assert len(found) >= 7
    assert set(found) == {bits}


X86 = ("amx", "avx512vnni", "avxvnni", "avx2", "sse41", "generic")


def build_for_x86(network: IntegerNetwork, folder: Path, target: str, *flags: str) -> Path:
    need("gcc")
    name = "avx2" if target == "generic" else target
    export_c(network, folder, target=name, name="fast")
    if target != "generic":
        make_runnable(TARGETS[target].instruction_sets[0], folder, "fast")
    return build("gcc", folder, SOURCES, *flags, *(["-DFAST_GENERIC"] if target == "generic" else []))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("target", X86)
def test_x86_computes_the_same(target: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cycles in ("_LOADED", "_PRODUCT", "_STORE"):
        monkeypatch.setattr(matrices, cycles, 0.0)  # every convolution by matrices
    for network in (layers_of(bits), narrowed(every_kernel("mixed"), bits, lowest=True)):
        folder = tmp_path / network.name
        folder.mkdir()
        done = run(build_for_x86(network, folder, target, *SANITIZED))
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{EXPECTED}{target})\n", "")


@pytest.mark.sweep(1)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    need(compiler)
    export_c(layers_of(4), tmp_path, target="native", name="fast")
    assert run(build(compiler, tmp_path, SOURCES, *STRICT)).stdout.startswith(EXPECTED)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("cpu", aarch64.LEVELS)
def test_aarch64_computes_the_same(cpu: str, bits: int, tmp_path: Path) -> None:
    level = aarch64.LEVELS[cpu]
    for network in (layers_of(bits), narrowed(every_kernel("mixed"), bits, lowest=True)):
        folder = tmp_path / network.name
        folder.mkdir()
        export_c(network, folder, target=level, name="fast")
        program = aarch64.build_for_arm(folder, *aarch64.QUICK)
        assert aarch64.run_on(cpu, program).stdout == f"{EXPECTED}{level})\n"


@pytest.mark.sweep(1)
@pytest.mark.parametrize("bits", [4, 2])
def test_browsers_compute_the_same(bits: int, tmp_path: Path) -> None:
    wasm.build(tmp_path, layers_of(bits), wasm.SIMD128)
    assert wasm.in_node(tmp_path, wasm.SELF_TEST) == "n: 4 images, all layers as expected (simd128)"


@pytest.mark.sweep(1)
@pytest.mark.parametrize("bits", [4, 2])
def test_relaxed_products_compute_the_same(bits: int, tmp_path: Path) -> None:
    """The instruction is replaced by what it does on a host that each kind is for."""
    kinds = {wasm.RELAXED: "unsigned", wasm.RELAXED_SIGNED: "signed"}
    folders, script = {}, ""
    for kind, host in kinds.items():
        folders[kind.name] = tmp_path / kind.name
        new = f"{wasm.EMULATED[host]}#define RELAXED_DOT emulated\n#ifndef RELAXED_DOT"
        wasm.build(folders[kind.name], layers_of(bits), kind, replaced={"#ifndef RELAXED_DOT": new})
        loaded = f'import("/{kind.name}/n.mjs").then(({{ load }}) => load({{ kind: "{kind.name}" }}))'
        tested = f"{loaded}.then((network) => network.selfTest()).catch((error) => error.message)"
        script += f'result["{kind.name}"] = await {tested};\n'
    for answer in wasm.in_chromium(folders, script).values():
        assert "all layers as expected" in answer


FAULTS = {
    "amx: another word": ("from + i * bits / 8 * stride", "from + (i * bits / 8 + 1) / 2 * stride"),
    "amx: the next matrix": ("w1 += stored * stride;", "w1 += words * stride;"),
    "avx512vnni: no sign": ("6, 7, -8, -7, -6, -5, -4, -3, -2, -1)", "6, 7, 8, 9, 10, 11, 12, 13, 14, 15)"),
    "avx512vnni: the first part twice": ("_mm_cvtsi32_si128(part * bits)", "_mm_cvtsi32_si128(part / 2 * bits)"),
    "avx2: sums that wrap": ("MULTIPLY_16(sums.at[i], SET_I(0x00010001))", "RIGHT_16(LEFT_16(sums.at[i], 16), 16)"),
    "avx2: the same activations": ("load_word(x + 4 * part)", "load_word(x)"),
    "avxvnni: a wrong mask": ("bits == 4 ? 0x0f0f0f0f", "bits == 4 ? 0x07070707"),
    "generic: no sign": ("((int8_t)(uint8_t)(", "((uint8_t)("),
}
"""From name to (text, text with the fault)."""


@pytest.mark.sweep(2)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show(fault: str, tmp_path: Path) -> None:
    need("gcc")
    target = fault.split(":")[0]
    old, new = FAULTS[fault]
    program = build_for_x86(layers_of(4), tmp_path, target, *QUICK)
    assert run(program).returncode == 0
    kernels = tmp_path / "fast_kernels.h"
    assert old in kernels.read_text()
    kernels.write_text(kernels.read_text().replace(old, new))
    flags = ["-DFAST_GENERIC"] if target == "generic" else []
    assert run(build("gcc", tmp_path, SOURCES, *QUICK, *flags)).returncode != 0


ARM_FAULTS = {
    "neon: the same word": ("PART(next_lane, bits), bits)};", "PART(lane, bits), bits)};"),
    "dotprod: every word is the last": ("if (ENDS_WORD(lane, bits)) \\", "if (lane >= 0) \\"),
    "i8mm: no sign": ("vdupq_n_s8((int8_t)(bits - 8))", "vdupq_n_s8((int8_t)(bits - 7))"),
    "i8mm: the same word": ("PART(k + 1, bits), bits);", "PART(k, bits), bits);"),
    "i8mm: the same word of a long window": ("PART(2 * (last) + 1, bits), bits)", "PART(2 * (last), bits), bits)"),
}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("fault", ARM_FAULTS)
def test_faults_show_on_aarch64(fault: str, tmp_path: Path) -> None:
    level = fault.split(":")[0]
    cpu = next(cpu for cpu, name in aarch64.LEVELS.items() if name == level)
    export_c(layers_of(4), tmp_path, target=level, name="fast")
    kernels = tmp_path / "fast_kernels.h"
    old, new = ARM_FAULTS[fault]
    assert old in kernels.read_text()
    kernels.write_text(kernels.read_text().replace(old, new))
    assert aarch64.run_on(cpu, aarch64.build_for_arm(tmp_path, *aarch64.QUICK)).returncode != 0


def test_the_report_counts_packed_bytes() -> None:
    found = {}
    for bits in (4, 2):
        (layer,) = (layer for layer in layers_of(bits) if layer.name == "third")
        assert isinstance(layer, n.Conv2d)
        wide = dataclasses.replace(layer, weight=np.full_like(layer.weight, 100))
        for one in (layer, wide):
            network = layers_of(bits)
            layers = tuple(one if other.name == "third" else other for other in network)
            sizes = sizes_of(dataclasses.replace(network, layers=layers), "avx512vnni")
            found[bits, one is wide] = next(size.constant_bytes for size in sizes.layers if size.name == "third")
    assert found[4, True] == found[2, True]
    assert found[4, True] - found[4, False] >= 0.44 * found[4, True]
    assert found[2, True] - found[2, False] >= 0.65 * found[2, True]
