"""The C for AMX: right for every shape of layer, planted faults, threads, and CPUs that refuse it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.codegen.amx_emulation import make_runnable
from tests.codegen.compiling import NOT_INLINED, build, compile_c, need, run
from tests.codegen.test_c_vector import OWN_PARTS, convolutions
from twoscale._codegen.c import export_c
from twoscale._codegen.c.vector import matrices, sharing
from twoscale._codegen.c.vector.block_calls import Conv
from twoscale._codegen.c.vector.source import source_of
from twoscale._codegen.targets import TARGETS
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes import processor

QUICK = ("-std=gnu99", "-O0", NOT_INLINED, "-pthread")
SOURCES = ["net_test.c", "net.c"]
EXPECTED = "net: 4 images, all layers and outputs as expected ("
(AMX, _) = TARGETS["amx"].instruction_sets


@pytest.fixture
def always_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution is computed by matrices, even where that is slower."""
    for cycles in ("_LOADED", "_PRODUCT", "_STORE"):
        monkeypatch.setattr(matrices, cycles, 0.0)


def convs(network: IntegerNetwork, target: str = "amx") -> list[Conv]:
    steps = source_of(network, "net", TARGETS[target]).program.steps
    return [call for step in steps for call in step.calls if isinstance(call, Conv)]


def strided(channels: int, out: int, size: int, kernel: int, stride: int) -> IntegerNetwork:
    """Return a convolution, one that adds its result, one of 3×3 and one of 1×1, which gives accumulators."""
    generator = np.random.default_rng(0)
    small = (size - 1) // stride + 1

    def conv(
        name: str, *inputs: str, inside: int, shape: tuple[int, int, int], size: int, step: int, joined: bool = False
    ) -> n.Conv2d:
        return n.Conv2d(
            name=name, inputs=inputs, output=n.TensorSpec(shape, "uint8", 0.1, 4, 0, 255),
            weight=generator.integers(-127, 128, (shape[0], inside, size, size), dtype=np.int8),
            bias_o=generator.integers(-5000, 5000, shape[0]).astype(np.int32),
            multiplier=n.Multiplier.on_grid(generator.integers(10, 60, shape[0]), 14 if joined else 16),
            residual_multiplier=n.Multiplier.on_grid(np.array([9000]), 14) if joined else None,
            stride=(step, step), padding=(size // 2,) * 4,
        )  # fmt: skip

    spec = n.TensorSpec((channels, size, size), "uint8", 0.1, 6, 0, 255)
    image = n.QuantizeInput(name="image", inputs=(), output=spec)
    first = conv("first", "image", inside=channels, shape=(out, small, small), size=kernel, step=stride)
    second = conv("second", "first", "first", inside=out, shape=(out, small, small), size=3, step=1, joined=True)
    third = conv("third", "second", inside=out, shape=(out + 5, small, small), size=3, step=1)
    fourth = conv("fourth", "third", inside=out + 5, shape=(20, small, small), size=1, step=1)
    numbers = n.TensorSpec((20, small, small), "int32", 0.1, 0, -(2**31), 2**31 - 1)
    fourth = dataclasses.replace(fourth, output=numbers, multiplier=None)
    return IntegerNetwork("net", (image, first, second, third, fourth), ("fourth",))


@pytest.mark.sweep(2)
@pytest.mark.usefixtures("always_matrices")
@pytest.mark.parametrize(
    ("channels", "out", "size", "kernel", "stride"),
    [(3, 24, 19, 7, 2), (40, 36, 7, 3, 1), (20, 70, 9, 1, 2), (64, 48, 18, 3, 2), (5, 16, 1, 1, 1)],
)
def test_layers_of_all_shapes(channels: int, out: int, size: int, kernel: int, stride: int, tmp_path: Path) -> None:
    need("gcc")
    network = strided(channels, out, size, kernel, stride)
    assert any(call.parameters.matrix_words for call in convs(network))
    export_c(network, tmp_path, target="amx", name="net")
    make_runnable(AMX, tmp_path, "net")
    done = run(build("gcc", tmp_path, SOURCES, *QUICK))
    assert done.stdout == f"{EXPECTED}amx)\n"


FAULTS = {
    "none": ("", ""),
    "unsigned weights": ("_tile_dpbusd(1, 4, 7)", "_tile_dpbuud(1, 4, 7)"),
    "signed pixels": ("_tile_dpbusd(2, 5, 6)", "_tile_dpbssd(2, 5, 6)"),
    "a wrong row of sums": ("_tile_stored(2, sums + 512, 128)", "_tile_stored(2, sums + 480, 128)"),
    "another vector's sums": ("_tile_stored(1, sums + 16, 128)", "_tile_stored(1, sums, 128)"),
    "another vector's bias": ("_tile_loadd(1, bias + 16, 0)", "_tile_loadd(1, bias, 0)"),
    "a pixel too few": ("shapes.rows[i] = (uint8_t)pixels;", "shapes.rows[i] = (uint8_t)(pixels - 1);"),
    "a word too few": ("(uint16_t)(4 * words);", "(uint16_t)(4 * words - 4);"),
}
"""From name to (text, text with the fault)."""


@pytest.mark.sweep(2)
@pytest.mark.usefixtures("always_matrices")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show(fault: str, tmp_path: Path) -> None:
    need("gcc")
    export_c(strided(40, 40, 7, 3, 1), tmp_path, target="amx", name="net")
    kernels = tmp_path / "net_kernels.h"
    old, new = FAULTS[fault]
    assert old in kernels.read_text()
    kernels.write_text(kernels.read_text().replace(old, new))
    make_runnable(AMX, tmp_path, "net")
    done = run(build("gcc", tmp_path, SOURCES, *QUICK))
    assert (done.returncode == 0) == (fault == "none")


@pytest.mark.sweep(1)
@pytest.mark.usefixtures("always_matrices")
@pytest.mark.parametrize("fault", [False, True])
def test_threads_that_share_an_image(fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two threads write the same byte; the thread sanitizer finds it if they do."""
    need("gcc")
    monkeypatch.setattr(sharing, "_HANDOVER", -1e9)
    export_c(convolutions(16, 9, 2), tmp_path, target="amx", name="net")
    if fault:
        kernels = tmp_path / "net_kernels.h"
        old, new = "const conv_part mine = {start_of(all / unit, part) * unit,", "const conv_part mine = {0,"
        assert old in kernels.read_text()
        kernels.write_text(kernels.read_text().replace(old, new))
    source, (old, new) = tmp_path / "net.c", OWN_PARTS
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, new))
    if compile_c("gcc", tmp_path, ["-x", "c", "/dev/null"], "-fsanitize=thread", "-shared", "-fPIC").returncode:
        pytest.skip("gcc has no thread sanitizer")
    make_runnable(AMX, tmp_path, "net")
    done = run(build("gcc", tmp_path, SOURCES, *QUICK, "-fsanitize=thread"))
    if fault:
        assert "WARNING: ThreadSanitizer: data race" in done.stderr
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{EXPECTED}amx)\n", "")


def test_the_model_prefers_matrices_for_many_products_only() -> None:
    def on_matrices(network: IntegerNetwork) -> set[bool]:
        return {call.parameters.matrix_words is not None for call in convs(network)}

    assert on_matrices(convolutions(64, 28)) == {True}
    assert on_matrices(convolutions(4, 3)) == {False}


def test_sharing_counts_the_cycles_of_matrices() -> None:
    """Where AMX takes a fraction of the cycles of vectors, threads share only larger layers."""
    network = convolutions(32, 16)
    cycles = {
        target: sum(phase.cycles for phase in source_of(network, "n", TARGETS[target]).phases)
        for target in ("amx", "avx512vnni", "native")
    }
    assert cycles["amx"] < cycles["avx512vnni"] / 2
    assert cycles["native"] == cycles["avx512vnni"]  # it also has other instruction sets
    chosen = [matrices.choose_matrices(16, 16, 2, segments=3, words=24, row_step=576, pixel_step=32)] * 3
    found = [phase.cycles for phase in source_of(network, "n", TARGETS["amx"]).phases if phase.cycles > 5_000]
    assert found == [one.cycles for one in chosen]


def test_a_refused_permission_leaves_the_next_instruction_set(tmp_path: Path) -> None:
    """As on a system that does not know AMX: the compiled file and the choice of what to compile agree."""
    need("gcc")
    known = processor.features()
    if known is None or "avx512vnni" not in known:
        pytest.skip("this CPU has no AVX-512 VNNI")
    export_c(convolutions(16, 9, 1), tmp_path, target="native", name="net")
    source = tmp_path / "net.c"
    old = "found = refused != 0 ? -1 : 1;"
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, "found = -1;"))
    assert run(build("gcc", tmp_path, SOURCES, *QUICK)).stdout == f"{EXPECTED}avx512vnni)\n"


def test_features_hold_amx_only_if_the_system_permits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = processor.features()
    monkeypatch.setattr(processor, "_may_use_amx", lambda: False)
    found = processor.features.__wrapped__()
    assert found == (None if listed is None else listed - {"amxint8", "amxtile"})
