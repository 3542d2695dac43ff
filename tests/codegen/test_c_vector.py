"""The C with vector kernels: no warnings, right for every layer under sanitizers, threads, and planted faults."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.codegen.amx_emulation import make_runnable
from tests.codegen.compiling import NOT_INLINED, build, compile_c, every_kernel, need, run
from tests.integer_networks import random_images, random_network
from twoscale._codegen.c import export_c
from twoscale._codegen.c.vector import lowering, matrices, sharing
from twoscale._codegen.c.vector.convolutions import conv_windows, pack
from twoscale._codegen.c.vector.kernels import HEADER_NAMES, TILE_NAMES, VectorKernel, text_of
from twoscale._codegen.c.vector.kernels import KERNELS as KERNELS
from twoscale._codegen.c.vector.source import source_of
from twoscale._codegen.targets import GENERIC, INSTRUCTION_SETS, TARGETS, WASM_SETS, InstructionSet
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor

STRICT = (
    "-std=gnu99", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wundef", "-Wstrict-prototypes",
    "-Wmissing-prototypes",
)  # fmt: skip
QUICK = ("-std=gnu99", "-O0", NOT_INLINED, "-pthread")
SANITIZED = (*QUICK, "-g0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SOURCES = ["fast_test.c", "fast.c"]
EXPECTED = "fast: 4 images, all layers and outputs as expected ("


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of layer, for every instruction set. Tests that change files use a copy."""
    path = tmp_path_factory.mktemp("fast")
    export_c(every_kernel("mixed"), path, target="native", name="fast")
    return path


@pytest.mark.sweep(1)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_a_warning_and_passes_its_self_test(compiler: str, folder: Path) -> None:
    need(compiler)
    program = build(compiler, folder, SOURCES, *STRICT, out=compiler)
    assert run(program).stdout.startswith(EXPECTED)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("target", ["amx", "avx512vnni", "avxvnni", "avx2", "sse41"])
def test_it_is_clean_under_the_sanitizers(target: str, tmp_path: Path) -> None:
    need("gcc")
    export_c(every_kernel("uint8"), tmp_path, target=target, name="fast")
    done = run(build("gcc", tmp_path, SOURCES, *SANITIZED))
    assert (done.returncode, done.stdout[: len(EXPECTED)], done.stderr) == (0, EXPECTED, "")


def test_any_cpu_can_run_it(folder: Path, tmp_path: Path) -> None:
    need("gcc")
    copy = shutil.copytree(folder, tmp_path / "copy")
    program = build("gcc", copy, SOURCES, *STRICT[:3], "-DFAST_GENERIC")
    assert run(program).stdout == f"{EXPECTED}generic)\n"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("fast_kernels.h", "return _mm512_cvtps_epi32(a);", "return _mm512_cvttps_epi32(a);"),
        ("fast.c", ".zero = ", ".zero = 1 + "),
        ("fast_kernels.h", "memset(y + after, p->zero,", "memset(y + after, p->zero + 1,"),
    ],
    ids=["ties", "a zero point", "the border"],
)
def test_a_planted_fault_shows(file: str, old: str, new: str, folder: Path, tmp_path: Path) -> None:
    need("gcc")
    if "_mm512" in old and "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX-512 VNNI")
    copy = shutil.copytree(folder, tmp_path / "copy")
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    program = build("gcc", copy, SOURCES, *QUICK)
    assert run(program).returncode != 0


def defined(text: str) -> set[str]:
    """Return the names of the functions and types that a text defines."""
    functions = re.findall(r"^(?:static|INLINE) [\w ]+?\**(\w+)\(", text, re.MULTILINE)
    return {*functions, *re.findall(r"^(?:\} |typedef [\w ]+ )(\w+);", text, re.MULTILINE)}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_declares_the_names_of_its_file(kernel: VectorKernel) -> None:
    """They get the instruction set's name as a suffix, so that one file can be compiled for several."""
    if kernel.defines:
        assert set(kernel.defines) == defined(text_of(f"{kernel.name}.c"))
    if kernel.narrow:
        assert set(kernel.narrow) == defined(text_of(f"{kernel.name}_narrow.c"))
    if kernel.has_params:
        assert f"}} {kernel.name}_params;" in text_of(f"{kernel.name}.h")


@pytest.mark.parametrize("isa", [*INSTRUCTION_SETS, *WASM_SETS, GENERIC], ids=lambda isa: isa.name)
def test_an_instruction_set_declares_the_names_of_its_header(isa: InstructionSet) -> None:
    needed = {*HEADER_NAMES, *(TILE_NAMES if isa.tiles else ())}
    assert needed | set(isa.own_names) == defined("\n".join(text_of(f"{name}.h") for name in isa.headers))


def test_layers_that_floats_cannot_requantize_run_the_portable_kernel(tmp_path: Path) -> None:
    """Portable kernels compute one image after another, in the same file as the vector kernels."""
    need("gcc")
    spec = n.TensorSpec((3, 10, 10), "uint8", 0.1, 0, 0, 255)
    image = n.QuantizeInput(name="image", inputs=(), output=spec)
    flat = n.Reshape(name="flat", inputs=("image",), output=n.TensorSpec((300,), "uint8", 0.1, 0, 0, 255))
    head = n.Linear(
        name="linear", inputs=("flat",), output=n.TensorSpec((5,), "uint8", 0.1, 128, 0, 255),
        multiplier=n.Multiplier.on_grid(np.array([2**24 - 1]), 16),
        weight=np.random.default_rng(0).integers(-127, 128, (5, 300), dtype=np.int8), bias_o=np.zeros(5, np.int32),
    )  # fmt: skip
    export_c(IntegerNetwork("n", (image, flat, head), ("linear",)), tmp_path, target="native", name="fast")
    assert (
        "for (int32_t n = 0; n < count; n++)\n            linear(&linear_layer,"
        in (tmp_path / "fast_kernels.h").read_text()
    )
    assert run(build("gcc", tmp_path, SOURCES, *STRICT)).stdout.startswith(EXPECTED)


@pytest.mark.parametrize(
    ("compiler", "flag"),
    [
        ("gcc", "-ffast-math"),
        ("gcc", "-Ofast"),
        ("gcc", "-funsafe-math-optimizations"),
        ("gcc", "-ffinite-math-only"),
        ("clang", "-ffast-math"),
        ("clang", "-Ofast"),
        ("clang", "-ffinite-math-only"),
    ],
)
def test_floats_that_are_not_computed_as_written_are_refused(compiler: str, flag: str, folder: Path) -> None:
    need(compiler)
    flags = ("-std=gnu99", "-pthread", "-Wfatal-errors", flag)
    done = compile_c(compiler, folder, ["-c", "fast.c"], *flags, out="fast-math.o")
    assert done.returncode != 0
    assert "fast.c must be compiled without -ffast-math, -Ofast" in done.stderr


@pytest.mark.parametrize("fault", ["none", "no pragma"])
def test_clang_keeps_the_order_of_sums(fault: str, tmp_path: Path) -> None:
    """It defines no macro for -fassociative-math, which folds (a + c) - c into a."""
    need("clang")
    rng = np.random.default_rng(1)
    network = random_network(rng, operators={"average_pool"}, length=1, image_shape=(3, 6, 6), name="fast")
    export_c(network, tmp_path, target="sse41", name="fast")
    source, pragma = tmp_path / "fast.c", "#pragma clang fp reassociate(off)\n"
    text = source.read_text()
    assert pragma in text
    if fault == "no pragma":
        source.write_text(text.replace(pragma, ""))
    flags = ("-std=gnu99", "-pthread", "-O1", "-DFAST_GENERIC", "-funsafe-math-optimizations")
    done = run(build("clang", tmp_path, SOURCES, *flags))
    assert (done.returncode == 0) == (fault == "none")


def test_excess_precision_is_refused(folder: Path) -> None:
    """Like the x87 unit of 32-bit processors."""
    need("gcc")
    flags = ("-std=gnu99", "-pthread", "-Wfatal-errors", "-U__FLT_EVAL_METHOD__", "-D__FLT_EVAL_METHOD__=2")
    done = compile_c("gcc", folder, ["-c", "fast.c"], *flags, out="x87.o")
    assert done.returncode != 0
    assert "fast.c needs floats without excess precision" in done.stderr


def test_windows_without_posix_threads_is_refused(folder: Path) -> None:
    need("gcc")
    done = compile_c("gcc", folder, ["-c", "fast.c"], "-std=gnu99", "-fsyntax-only", "-D_WIN32", out="windows.o")
    assert done.returncode != 0
    assert "fast.c needs POSIX threads; on Windows compile it with MinGW-w64" in done.stderr


def convolutions(channels: int, size: int, layers: int = 3, deviation: float | None = None) -> IntegerNetwork:
    """Return 3×3 convolutions of one shape, in which every row needs rows of two threads.

    Weights are uniform, or normal with ``deviation``.
    """
    spec = n.TensorSpec((channels, size, size), "uint8", 0.1, 0, 0, 255)
    generator = np.random.default_rng(0)
    made: list[n.Layer] = [n.QuantizeInput(name="image", inputs=(), output=spec)]
    for index in range(layers):
        weight = generator.integers(-127, 128, (channels, channels, 3, 3), dtype=np.int8)
        if deviation is not None:
            weight = (deviation * generator.normal(size=weight.shape)).round().clip(-127, 127).astype(np.int8)
        multiplier = n.Multiplier.on_grid(np.full(channels, 2000), 16)
        made.append(
            n.Conv2d(
                name=f"conv{index}", inputs=(made[-1].name,), output=spec, weight=weight,
                bias_o=np.zeros(channels, np.int32), multiplier=multiplier, stride=(1, 1), padding=(1, 1, 1, 1),
            )
        )  # fmt: skip
    flat = n.TensorSpec((channels * size * size,), "uint8", 0.1, 0, 0, 255)
    made.append(n.Reshape(name="flat", inputs=(made[-1].name,), output=flat))
    return IntegerNetwork("n", tuple(made), ("flat",))


def test_pairs_of_products_that_could_saturate_are_in_no_list() -> None:
    """With every pair of words' weights and the largest activations, for each arrangement."""
    layer = convolutions(20, 5, 1, deviation=45).layers[1]
    assert isinstance(layer, n.Conv2d)
    windows = conv_windows(layer, (20, 5, 5), 0, 100)
    (packed,) = pack(windows)
    order = packed.order()
    assert order is not None
    words = len(windows.starts)
    weights = packed.weight.reshape(words, 2, 16, 4).swapaxes(0, 1).astype(int)
    arrangements = [(0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 2, 1)]

    def saturates(vector: int, word: int, arrangement: int) -> bool:
        a, b, c, d = weights[vector, word][:, arrangements[arrangement]].T
        sums = [
            255 * (np.maximum(sign * x, 0) + np.maximum(sign * y, 0)) for sign in (1, -1) for x, y in ((a, b), (c, d))
        ]
        return bool(max(sums[0].max(), sums[1].max()) > 32767 or max(sums[2].max(), sums[3].max()) > 32768)

    for vector, row in enumerate(order.astype(int)):
        counts, listed = row[:4], row[4:]
        assert counts.all()  # every case occurs
        assert sorted(listed) == list(range(words))
        kinds = np.repeat(np.arange(4), counts).tolist()
        for word, kind in zip(listed.tolist(), kinds, strict=True):
            assert not (kind < 3 and saturates(vector, word, kind))
            assert all(saturates(vector, word, other) for other in range(kind))


def saturating() -> IntegerNetwork:
    """Return convolutions, some of whose sums do not fit 16 bits when they are requantized."""
    network = convolutions(20, 5, 1, deviation=45)
    image, conv, flat = network.layers
    assert isinstance(conv, n.Conv2d)
    multiplier = n.Multiplier.on_grid(np.full(20, 2**16), 16)
    large = n.Conv2d(
        name=conv.name, inputs=conv.inputs, output=conv.output, weight=conv.weight, bias_o=conv.bias_o,
        multiplier=multiplier, stride=conv.stride, padding=conv.padding,
    )  # fmt: skip
    return IntegerNetwork("n", (image, large, flat), network.outputs)


WRAPS_512 = (
    "_mm512_packs_epi32(_mm512_cvtps_epi32(a), ",
    "_mm512_packus_epi32(_mm512_and_si512(_mm512_cvtps_epi32(a), _mm512_set1_epi32(65535)), ",
)
WRAPS_256 = (
    "_mm256_packs_epi32(_mm256_cvtps_epi32(a.at[0]), ",
    "_mm256_packus_epi32(_mm256_and_si256(_mm256_cvtps_epi32(a.at[0]), _mm256_set1_epi32(65535)), ",
)
"""Conversions to 16 bits that wrap around."""
PRODUCTS = {
    "none": ("", ""),
    "amx: a wrong matrix": ("_tile_dpbusd(3, 5, 7)", "_tile_dpbusd(3, 5, 6)"),
    "amx: signed and unsigned": ("_tile_dpbusd(0, 4, 6)", "_tile_dpbsud(0, 4, 6)"),
    "amx: saturation": WRAPS_512,
    "amx: the next row": ("i + row_pixels - column;", "i + out_w - column;"),
    "amx: the next pixel": ("{here.x + column * step,", "{here.x + (column + 1) * step,"),
    "avx512vnni: a wrong lane": ("_mm512_setr_epi32(0, 4, 8, 12, 1,", "_mm512_setr_epi32(0, 4, 8, 12, 2,"),
    "avx512vnni: saturation": WRAPS_512,
    "avx512vnni: signed and unsigned": ("_mm512_dpbusd_epi32(acc, x, w)", "_mm512_dpbusd_epi32(acc, w, x)"),
    "avxvnni: a wrong lane": ("DOT(acc.at[i], x, w.at[i])", "DOT(acc.at[i], x, w.at[0])"),
    "avxvnni: saturation": WRAPS_256,
    "avxvnni: signed and unsigned": ("dpbusd_avx_epi32(acc, x, w)", "dpbusd_avx_epi32(acc, w, x)"),
    "avx2: a wrong lane": ("_mm_setr_epi8(0, 3, 2, 1, 4, 7,", "_mm_setr_epi8(0, 3, 2, 1, 4, 3,"),
    "avx2: saturation": WRAPS_256,
    "avx2: saturation of pairs": ("EACH_WORD(3, ADD_EXACTLY)", "EACH_WORD(3, ADD_FIRST)"),
    "avx2: signed and unsigned": ("MULTIPLY_8(bytes, w.at[i])", "MULTIPLY_8(w.at[i], bytes)"),
    "sse41: a wrong lane": ("DOT(acc.at[i], x, w.at[i])", "DOT(acc.at[i], x, w.at[0])"),
    "sse41: saturation": (
        "PACK_32(ROUND_F(a), ",
        "_mm_packus_epi32(_mm_and_si128(ROUND_F(a), _mm_set1_epi32(65535)), ",
    ),
    "sse41: saturation of pairs": ("EACH_WORD(3, ADD_EXACTLY)", "EACH_WORD(3, ADD_FIRST)"),
    "sse41: signed and unsigned": ("MULTIPLY_8(bytes, w.at[i])", "MULTIPLY_8(w.at[i], bytes)"),
    "generic: a wrong lane": ("x.at[1] * WEIGHT(w, 4 * i + 1)", "x.at[1] * WEIGHT(w, 4 * i)"),
    "generic: saturation": ("clamp_f(all[k], set_f(0.0f), set_f(255.0f))", "all[k]"),
    "generic: signed and unsigned": ("x.at[3] * WEIGHT(", "(int8_t)x.at[3] * WEIGHT("),
}
"""From name to (text, text with the fault) of the products and the conversion to bytes of one instruction set."""


@pytest.mark.sweep(2)
@pytest.mark.parametrize("fault", PRODUCTS)
def test_faults_in_products_show_on_every_instruction_set(fault: str, tmp_path: Path) -> None:
    need("gcc")
    name = fault.split(":")[0] if fault != "none" else "avx2"
    plain = name == GENERIC.name
    target = TARGETS["avx2" if plain else name]
    network = saturating() if fault.endswith(": saturation") else convolutions(20, 5, 1, deviation=45)
    export_c(network, tmp_path, target=target.name, name="fast")
    kernels = tmp_path / "fast_kernels.h"
    old, new = PRODUCTS[fault]
    assert old in kernels.read_text()
    kernels.write_text(kernels.read_text().replace(old, new))
    if not plain:
        make_runnable(target.instruction_sets[0], tmp_path, "fast")
    done = run(build("gcc", tmp_path, SOURCES, *QUICK, *(["-DFAST_GENERIC"] if plain else [])))
    assert (done.returncode == 0) == (fault == "none")


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks compute their first layers one image after the other, as in large networks."""
    monkeypatch.setattr(lowering, "_BLOCK_BYTES", 2_500)


@pytest.mark.usefixtures("small_cache")
def test_images_meet_after_the_first_layers(tmp_path: Path) -> None:
    """The self-test has more images than a block, on one thread and on two."""
    need("gcc")
    rng = np.random.default_rng(3)
    network = random_network(rng, operators={"conv", "max_pool"}, length=6, image_shape=(3, 16, 16), name="late")
    source = source_of(network, "fast", TARGETS["avx2"])
    assert 0 < source.program.alone < len(source.program.steps)
    images = random_images(np.random.default_rng(0), network, 11)
    spec = network.input.output
    inputs = ReferenceExecutor(network).run(images, [network.input.name])[network.input.name].astype(spec.dtype)
    export_c(network, tmp_path, target="avx2", name="fast", inputs=inputs)
    done = run(build("gcc", tmp_path, SOURCES, *QUICK))
    assert done.stdout.startswith("fast: 11 images, all layers and outputs as expected (")


@pytest.fixture
def always_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share every network, however small."""
    monkeypatch.setattr(sharing, "_HANDOVER", -1e9)


def test_threads_share_large_networks_only() -> None:
    def shared(network: IntegerNetwork) -> bool:
        return source_of(network, "n", TARGETS["native"]).shares_images

    assert shared(convolutions(64, 56))
    assert not shared(convolutions(16, 32))
    assert not shared(every_kernel("uint8"))


@pytest.mark.sweep(1)
@pytest.mark.usefixtures("always_shared")
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_share_an_image_compute_the_same(threads: int, tmp_path: Path) -> None:
    """Of every kind of layer, with fewer and more parts than a layer has rows."""
    need("gcc")
    export_c(every_kernel("mixed"), tmp_path, target="native", name="fast")
    test = tmp_path / "fast_test.c"
    test.write_text(test.read_text().replace("pool_new(2)", f"pool_new({threads})"))
    assert run(build("gcc", tmp_path, SOURCES, *QUICK)).stdout.startswith(EXPECTED)


@pytest.fixture
def always_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution is computed by matrices, even where that is slower."""
    for cycles in ("_LOADED", "_PRODUCT", "_STORE"):
        monkeypatch.setattr(matrices, cycles, 0.0)


@pytest.mark.sweep(1)
@pytest.mark.usefixtures("always_matrices", "always_shared")
@pytest.mark.parametrize("seed", range(1, 9))
def test_matrices_of_any_shape_compute_the_same(seed: int, tmp_path: Path) -> None:
    """Alone, in blocks and shared by three threads. Some bands of rows are shorter than a matrix."""
    need("gcc")
    rng = np.random.default_rng(seed)
    network = random_network(
        rng, operators={"conv", "residual"}, length=6, widest=90, name="wide",
        image_shape=(int(rng.choice([3, 16, 64])), int(rng.integers(5, 15)), int(rng.integers(5, 30))),
    )  # fmt: skip
    spec = network.input.output
    images = rng.integers(spec.lo, spec.hi, (5, *spec.shape), endpoint=True).astype(spec.dtype)
    export_c(network, tmp_path, target="amx", name="fast", inputs=images)
    assert "matrix_words = " in (tmp_path / "fast.c").read_text()
    test = tmp_path / "fast_test.c"
    test.write_text(test.read_text().replace("pool_new(2)", "pool_new(3)"))
    make_runnable(TARGETS["amx"].instruction_sets[0], tmp_path, "fast")
    done = run(build("gcc", tmp_path, SOURCES, *QUICK))
    assert done.stdout == "fast: 5 images, all layers and outputs as expected (amx)\n"


FAULTS = {
    "none": ("fast.c", "", ""),
    "a row left out": (
        "fast_kernels.h", "is_last(part) ? all : start_of(all / unit, next(part)) * unit",
        "start_of(all / unit, next(part)) * unit - 1",
    ),
    "a row computed twice": (
        "fast_kernels.h", "{start_of(all / unit, part) * unit,", "{start_of(all / unit, part) * unit - part.index,",
    ),
    "a halo not waited for": ("fast.c", "wait_for_part(&marks[i].done, batch);", "(void)marks;"),
}  # fmt: skip
"""From name to (file, text, text with the fault)."""
OWN_PARTS = (
    "for (int32_t i = 0; i < parts; i++) {\n            const share part",
    "for (int32_t i = 0; i < (me < parts); i++) {\n            const share part",
)
"""With this change a thread computes only its own parts, so that a late thread hides no fault."""


@pytest.mark.sweep(2)
@pytest.mark.usefixtures("always_shared")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_sharing_are_found_by_the_thread_sanitizer_or_in_the_integers(fault: str, tmp_path: Path) -> None:
    need("gcc")
    export_c(convolutions(4, 9), tmp_path, target="avx2", name="fast")
    for file, old, new in (FAULTS[fault], ("fast.c", *OWN_PARTS)):
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new))
    flags = (*QUICK, "-DFAST_GENERIC", "-fsanitize=thread")
    if compile_c("gcc", tmp_path, ["-x", "c", "/dev/null"], "-fsanitize=thread", "-shared", "-fPIC").returncode:
        pytest.skip("gcc has no thread sanitizer")
    done = run(build("gcc", tmp_path, SOURCES, *flags))
    if fault == "none":
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{EXPECTED}generic)\n", "")
    elif fault == "a row left out":
        assert "alone, by two threads: output" in done.stdout
    else:
        race = "WARNING: ThreadSanitizer: data race" in done.stderr
        assert race or (fault == "a halo not waited for" and "alone, by two threads: output" in done.stdout)
