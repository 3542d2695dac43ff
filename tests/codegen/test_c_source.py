"""The exported C compiles without warnings, is right under sanitizers, uses integers only, and detects faults."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codegen.compiling import DTYPES, NOT_INLINED, SANITIZED, STRICT, build, compile_c, every_kernel, need, run
from tests.integer_networks import random_network
from twoscale._codegen.c import SizeReport, default_images, export_c
from twoscale._codegen.c.common.names import Identifiers
from twoscale._codegen.c.portable.lowering import lower
from twoscale._codegen.c.portable.source import Source
from twoscale._codegen.targets import TARGETS
from twoscale._files import read_record
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale.errors import ConfigurationError, QuantizationError, TwoscaleError

EXPECTED = "every_kernel: 4 images, all layers and outputs as expected\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same export for each type of activations. Tests that change files use a copy."""
    made: dict[str, Path] = {}
    for dtype in DTYPES:
        made[dtype] = tmp_path_factory.mktemp(dtype)
        export_c(every_kernel(dtype), made[dtype])
    return made


@pytest.fixture
def uint8_folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the uint8 export."""
    return shutil.copytree(folders["uint8"], tmp_path / "copy")


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert text.count(old) >= count, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new, count))


def tiny(name: str = "tiny", layer: str = "head") -> IntegerNetwork:
    """Return one linear layer on six integers."""
    return IntegerNetwork(
        name,
        (
            n.QuantizeInput(name="image", inputs=(), output=n.TensorSpec((6,), "uint8", 0.5, 4, 0, 255)),
            n.Linear(
                name=layer, inputs=("image",), output=n.TensorSpec((2,), "int32", 0.25), multiplier=None,
                weight=np.array([[1, -2, 3, -4, 5, -6], [-127, 127, -127, 127, -127, 127]], np.int8),
                bias_o=np.array([7, -8], np.int32),
            ),
        ),
        (layer,),
    )  # fmt: skip


def entries_that_show(network: IntegerNetwork) -> list[int]:
    """Count, for each table, the entries that the self-test's images look up and that differ from their neighbour."""
    reference = ReferenceExecutor(network)
    values: dict[str, NDArray[Any]] = {network.input.name: default_images(network)[0]}
    counts = []
    for layer in network.layers[1:]:
        inputs = [values[name] for name in layer.inputs]
        values[layer.name] = reference.compute(layer, inputs)
        if isinstance(layer, n.Table):
            entry = np.unique(inputs[0]).astype(np.int64) + (128 if inputs[0].dtype == np.int8 else 0)
            counts.append(int((layer.table[entry] != layer.table[entry ^ 1]).sum()))
    return counts


def test_the_test_networks_hold_every_kernel() -> None:
    for dtype in DTYPES:
        program = lower(every_kernel(dtype))
        used = {call.kernel.name for step in program.steps for call in step.calls}
        assert used >= {"conv2d", "conv2d_tiles", "linear", "add_narrow", "multiply", "average_pool2d", "max_pool2d",
                        "copy", "rescale", "clamp", "look_up", "memset", "memcpy"}  # fmt: skip
        assert any(isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None for layer in program.network)
        assert any(step.in_place_of and program.places[step.layer.name] == program.places[step.in_place_of[0]]
                   for step in program.steps)  # fmt: skip
        assert max(entries_that_show(program.network)) >= 30
    assert Source(lower(every_kernel("int8")), "x", TARGETS["portable"]).output_type == "int8_t"


@pytest.mark.parametrize(("multiplier", "kernel"), [(2**22 - 17, "add_narrow"), (2**23, "add")])
def test_sums_of_large_products(multiplier: int, kernel: str, tmp_path: Path) -> None:
    """Sums are computed in 32 bits where that is enough."""
    need("gcc")
    spec = n.TensorSpec((2, 3, 4), "uint8", 0.5, 128, 0, 255)
    network = IntegerNetwork(
        "sum",
        (
            n.QuantizeInput(name="image", inputs=(), output=spec),
            n.Table(name="table", inputs=("image",), output=spec, table=np.arange(255, -1, -1, dtype=np.int16)),
            n.Add(
                name="sum", inputs=("image", "table"), output=spec,
                multipliers=(n.Multiplier.on_grid(np.array([multiplier]), 14),) * 2,
            ),
        ),
        ("sum",),
    )  # fmt: skip
    assert [call.kernel.name for call in lower(network).steps[2].calls] == [kernel]
    export_c(network, tmp_path)
    done = run(build("gcc", tmp_path, ["sum_test.c", "sum.c"], "-DSUM_TRACE", *SANITIZED))
    assert done.stdout == "sum: 4 images, all layers and outputs as expected\n"


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_a_warning_and_passes_its_self_test(
    compiler: str, dtype: str, folders: dict[str, Path]
) -> None:
    need(compiler)
    sources = ["every_kernel_test.c", "every_kernel.c"]
    program = build(compiler, folders[dtype], sources, *STRICT, "-DEVERY_KERNEL_TRACE", out=f"traced-{compiler}")
    assert run(program).stdout == EXPECTED
    program = build(compiler, folders[dtype], sources, *STRICT, out=f"plain-{compiler}")
    assert run(program).stdout == "every_kernel: 4 images, all outputs as expected\n"


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_clean_under_the_sanitizers(dtype: str, folders: dict[str, Path]) -> None:
    need("gcc")
    sources = ["every_kernel_test.c", "every_kernel.c"]
    program = build("gcc", folders[dtype], sources, *SANITIZED, "-DEVERY_KERNEL_TRACE", out="sanitized")
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED, "")


def test_the_arena_is_neither_too_small_nor_too_large(uint8_folder: Path) -> None:
    need("gcc")
    (uint8_folder / "exact.c").write_text(
        """
        #include <stdlib.h>
        #include "every_kernel.h"
        int main(void)
        {
            uint8_t *arena = malloc(EVERY_KERNEL_ARENA_BYTES);
            uint8_t *image = calloc(EVERY_KERNEL_INPUT_COUNT, 1);
            int32_t *output = malloc(EVERY_KERNEL_OUTPUT_COUNT * sizeof *output);
            every_kernel_run(image, arena, output);
            free(arena); free(image); free(output);
            return 0;
        }
        """
    )
    assert run(build("gcc", uint8_folder, ["exact.c", "every_kernel.c"], *SANITIZED)).returncode == 0
    size = lower(every_kernel("uint8")).arena_bytes
    edit(uint8_folder / "every_kernel.h", f"ARENA_BYTES {size}", f"ARENA_BYTES {size - 1}")
    done = run(build("gcc", uint8_folder, ["exact.c", "every_kernel.c"], *SANITIZED))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_memory_may_have_any_alignment(uint8_folder: Path) -> None:
    need("gcc")
    edit(uint8_folder / "every_kernel_test.c", "_run(images[image], arena,", "_run(images[image], arena + 1,", 2)
    edit(uint8_folder / "every_kernel_test.c", "arena[EVERY_KERNEL_ARENA_BYTES]", "arena[EVERY_KERNEL_ARENA_BYTES + 1]")
    sources = ["every_kernel_test.c", "every_kernel.c"]
    done = run(build("gcc", uint8_folder, sources, *SANITIZED, "-DEVERY_KERNEL_TRACE"))
    assert (done.stdout, done.stderr) == (EXPECTED, "")


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_holds_no_floating_point_no_heap_and_no_state(dtype: str, folders: dict[str, Path]) -> None:
    text = (folders[dtype] / "every_kernel.c").read_text()
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(float|double|malloc|calloc|free|math\.h|stdlib\.h|goto)\b", code)
    assert set(re.findall(r"#include (\S+)", code)) == {'"every_kernel.h"', "<string.h>"}
    # Everything static is a constant, a function, or the check of shifts.
    for line in re.findall(r"^static .*", code, flags=re.MULTILINE):
        assert line.startswith("static const ") or "(" in line, line


def test_a_processor_without_floating_point_needs_no_library_for_it(uint8_folder: Path) -> None:
    need("arm-none-eabi-gcc", "arm-none-eabi-nm")
    for cpu in ("cortex-m0", "cortex-m3"):
        flags = (*STRICT, "-c", f"-mcpu={cpu}", "-mthumb", "-mfloat-abi=soft")
        build("arm-none-eabi-gcc", uint8_folder, ["every_kernel.c"], *flags, out=f"{cpu}.o")
        done = subprocess.run(
            ["arm-none-eabi-nm", "--undefined-only", "--format=just-symbols", f"{cpu}.o"],
            cwd=uint8_folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        # The compiler's own integer helpers: division, 64-bit products and shifts.
        integers = {"__aeabi_idiv", "__aeabi_idivmod", "__aeabi_lmul", "__aeabi_llsl", "__aeabi_lasr", "__aeabi_llsr"}
        assert set(done.stdout.split()) <= {"memcpy", "memset", *integers}


def test_the_stack_is_small_and_its_size_known(uint8_folder: Path) -> None:
    need("arm-none-eabi-gcc")
    flags = (*STRICT, "-c", "-mcpu=cortex-m3", "-mthumb", "-fstack-usage")
    build("arm-none-eabi-gcc", uint8_folder, ["every_kernel.c"], *flags, out="stack.o")
    usage = [line.split("\t") for line in next(uint8_folder.glob("*.su")).read_text().splitlines()]
    assert {kind for _, _, kind in usage} == {"static"}
    assert sum(int(size) for _, size, _ in usage) < 1024


def test_the_header_is_fit_for_cpp(uint8_folder: Path) -> None:
    need("g++")
    (uint8_folder / "use.cpp").write_text(
        '#include "every_kernel.h"\nint main() { return sizeof(EVERY_KERNEL_FINGERPRINT) == 65 ? 0 : 1; }\n'
    )
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-DEVERY_KERNEL_FLOAT")
    assert run(build("g++", uint8_folder, ["use.cpp"], *flags)).returncode == 0


def test_make_tests_it_and_shows_its_size(uint8_folder: Path) -> None:
    need("make", "cc", "size")
    done = subprocess.run(["make", "test", "size"], cwd=uint8_folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert EXPECTED in done.stdout
    assert "every_kernel.o" in done.stdout
    subprocess.run(["make", "clean"], cwd=uint8_folder, capture_output=True, check=True)
    assert not list(uint8_folder.glob("*.o"))


def faultless(*, tiles: bool = True) -> IntegerNetwork:
    """Return a network that reveals every fault below: ties in the pool, extreme images, values spread out."""
    rng = np.random.default_rng(5)

    def spec(*shape: int, lo: int = 0, hi: int = 255) -> n.TensorSpec:
        return n.TensorSpec(shape, "uint8", 1.0, 40, lo, hi)

    def on_grid(*integers: int, shift: int = 16) -> n.Multiplier:
        return n.Multiplier.on_grid(np.array(integers), shift)

    layers = (
        n.QuantizeInput(name="image", inputs=(), output=spec(2, 8, 8)),
        n.Pad(name="pad", inputs=("image",), output=spec(2, 9, 9), widths=((0, 0), (1, 0), (0, 1))),
        n.Conv2d(
            name="conv", inputs=("pad",), output=spec(4, 8, 8),
            multiplier=on_grid(301, 302, 303, 304) if tiles else on_grid(30100, 30200, 30300, 30400),
            weight=rng.integers(-127, 128, (4, 2 if tiles else 1, 3, 3)).astype(np.int8),
            bias_o=rng.integers(-999, 999, 4).astype(np.int32), padding=(1, 1, 0, 0), groups=1 if tiles else 2,
        ),
        n.Clamp(name="clamp", inputs=("conv",), output=spec(4, 8, 8, lo=30, hi=200)),
        n.AveragePool2d(
            name="pool", inputs=("clamp",), output=spec(4, 4, 4), kernel=(2, 2), stride=(2, 2),
            multiplier=on_grid(16384),
        ),
        n.MaxPool2d(name="max", inputs=("pool",), output=spec(4, 3, 3), kernel=(2, 2), stride=(1, 1)),
        n.Add(
            name="add", inputs=("max", "max"), output=spec(4, 3, 3),
            multipliers=(on_grid(8192, shift=14), on_grid(4096, shift=14)),
        ),
        n.Reshape(name="flat", inputs=("add",), output=spec(36)),
        n.Linear(
            name="head", inputs=("flat",), output=n.TensorSpec((3,), "int32", 1.0), multiplier=None,
            weight=rng.integers(-127, 128, (3, 36)).astype(np.int8), bias_o=np.array([1, 2, 3], np.int32),
        ),
    )  # fmt: skip
    return IntegerNetwork("faults", layers, ("head",))


def one_more(match: re.Match[str]) -> str:
    """Return the text of a match with its only number one larger."""
    return match[0].replace(match[1], str(int(match[1]) + 1))


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    ("after", "pattern", "replacement", "layer"),
    [
        ("kernels", r"almost_half \+ floor_is_odd", "almost_half + 1", "pool"),
        ("kernels", r"\(left < lo \? lo : left > hi \? hi : left\)", "left", "conv"),
        ("kernels", r"sum1 \+= a \* v", "sum1 += u * v", "conv"),
        ("kernels", r"v = w\[other\]", "v = (uint8_t)w[other]", "conv"),
        ("kernels", r"in_row < 0 \|\|", "in_row < -1 ||", "conv"),
        ("kernels", r"left < 0 \?", "left < -1 ?", "conv"),
        ("kernels", r"rest = run & 7", "rest = run & 3", "conv"),
        ("1 of 8: pad", r"memset\(arena \+ \d+, (\d+),", one_more, "pad"),
        ("2 of 8: conv", r"\.in_zero = (\d+)", one_more, "conv"),
        ("2 of 8: conv", r"\.pad_top = (\d+)", one_more, "conv"),
        ("2 of 8: conv", r"conv_weight.*\n +(-?\d+)", one_more, "conv"),
        ("2 of 8: conv", r"conv_bias.*\n +(-?\d+)", lambda m: m[0].replace(m[1], "40000"), "conv"),
        ("3 clamp", r"clamp\(arena \+ \d+, arena \+ \d+, 256, (\d+),", one_more, "clamp"),
        ("4 of 8: pool", r"\{(16384)\}", one_more, "pool"),
        ("4 of 8: pool", r"\.zero = (\d+)", one_more, "pool"),
        ("5 of 8: max", r"\.kernel_w = (\d)", lambda m: m[0].replace(m[1], "1"), "max"),
        ("6 of 8: add", r"\.b_multiplier = (\d+)", one_more, "add"),
        ("8 of 8: head", r"head_weight.*\n +(-?\d+)", one_more, "head"),
    ],
)
def test_a_planted_fault_is_caught_in_its_layer(
    after: str, pattern: str, replacement: str | Callable[[re.Match[str]], str], layer: str, tmp_path: Path
) -> None:
    assert_caught(faultless(), after, pattern, replacement, layer, tmp_path)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"\(q < to->lo \? to->lo : q > to->hi \? to->hi : q\)", "q"),
        (r"dilation_h < 0", "dilation_h < -1"),
        (r"\(int16_t\)\(x\[i\] - zero\)", "(int16_t)(int8_t)(x[i] - zero)"),
    ],
)
def test_a_planted_fault_of_other_convolutions_is_caught(pattern: str, replacement: str, tmp_path: Path) -> None:
    """For convolutions that are not computed in tiles and whose products need 64 bits."""
    assert_caught(faultless(tiles=False), "kernels", pattern, replacement, "conv", tmp_path)


def assert_caught(
    network: IntegerNetwork,
    after: str,
    pattern: str,
    replacement: str | Callable[[re.Match[str]], str],
    layer: str,
    tmp_path: Path,
) -> None:
    """Change the C and check that the self-test names the layer."""
    need("gcc")
    export_c(network, tmp_path)
    path = tmp_path / "faults.c"
    text = path.read_text()
    start = text.index(after)
    changed, count = re.subn(pattern, replacement, text[start:], count=1)
    assert count == 1
    assert changed != text[start:]
    path.write_text(text[:start] + changed)
    done = run(build("gcc", tmp_path, ["faults_test.c", "faults.c"], "-std=c99", "-O1", "-DFAULTS_TRACE"))
    assert done.returncode == 1
    found = re.search(
        r"image \d: layer \d \((\w+)\) is the first to differ: CRC-32 \w{8}, expected \w{8}\n", done.stdout
    )
    assert found, done.stdout
    assert found[1] == layer
    assert re.search(r"faults: \d of 4 images differ\n$", done.stdout)


def test_without_a_fault_the_same_self_test_passes(tmp_path: Path) -> None:
    need("gcc")
    export_c(faultless(), tmp_path)
    program = build("gcc", tmp_path, ["faults_test.c", "faults.c"], *STRICT, "-DFAULTS_TRACE")
    assert run(program).stdout == "faults: 4 images, all layers and outputs as expected\n"


def test_a_wrong_output_is_shown_without_the_trace(tmp_path: Path) -> None:
    need("gcc")
    export_c(faultless(), tmp_path)
    edit(tmp_path / "faults.c", "head_bias[3] = {\n    1,", "head_bias[3] = {\n    5,")
    done = run(build("gcc", tmp_path, ["faults_test.c", "faults.c"], "-std=c99"))
    assert done.returncode == 1
    assert re.search(r"image 0: output 0 is -?\d+, expected -?\d+\n", done.stdout)
    assert done.stdout.endswith("faults: 4 of 4 images differ\n")


def test_files_of_different_exports_do_not_compile(uint8_folder: Path, tmp_path: Path) -> None:
    need("gcc")
    export_c(tiny("every-kernel"), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "every_kernel.h", uint8_folder)
    done = compile_c("gcc", uint8_folder, ["every_kernel.c"], "-std=c99", "-c")
    assert done.returncode != 0
    assert "every_kernel.c and every_kernel.h are from different exports" in done.stderr


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("my net-1!", "my_net_1"),
        ("8bit", "n8bit"),
        ("double", "net_double"),
        ("stdint", "net_stdint"),
        ("*/ évil \\\n#error \"?", "vil_error"),
        ("日本", "network"),
        ("conv2d", "conv2d"),
        ("a" * 300, "a" * 40),
    ],
)  # fmt: skip
def test_any_name_gives_files_that_compile(name: str, prefix: str, tmp_path: Path) -> None:
    need("gcc")
    result = export_c(tiny("plain", layer=name), tmp_path, name=name)
    assert result.prefix == prefix
    assert f"{prefix}.c" in result.files
    program = build("gcc", tmp_path, [f"{prefix}_test.c", f"{prefix}.c"], *STRICT, f"-D{prefix.upper()}_TRACE")
    assert run(program).returncode == 0


def test_layers_whose_names_differ_only_in_signs_are_kept_apart(tmp_path: Path) -> None:
    need("gcc")
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (6, 6)).astype(np.int8)
    spec = n.TensorSpec((6,), "uint8", 1.0, 0, 0, 255)
    layers: list[n.Layer] = [n.QuantizeInput(name="image", inputs=(), output=spec)]
    for name in ("a.b", "a_b", "a b", "a_b_2", "a.b.weight", "a_b_weight"):
        layers.append(
            n.Linear(name=name, inputs=(layers[-1].name,), output=spec, weight=weight,
                     multiplier=n.Multiplier.on_grid(rng.integers(50, 900, 6)), bias_o=np.zeros(6, np.int32))
        )  # fmt: skip
    export_c(IntegerNetwork("names", tuple(layers), (layers[-1].name,)), tmp_path)
    program = build("gcc", tmp_path, ["names_test.c", "names.c"], *STRICT, "-DNAMES_TRACE")
    assert run(program).returncode == 0


def test_the_same_network_gives_the_same_files(folders: dict[str, Path], tmp_path: Path) -> None:
    result = export_c(every_kernel("uint8"), tmp_path)
    for path in result.paths:
        assert path.read_bytes() == (folders["uint8"] / path.name).read_bytes()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_constants_from_a_file_are_the_same_numbers(compiler: str, uint8_folder: Path) -> None:
    need(compiler)
    source = Source(lower(every_kernel("uint8")), "every-kernel", TARGETS["portable"], binary=True)
    (uint8_folder / "every_kernel.c").write_text(source.source())
    (uint8_folder / source.data_file).write_bytes(source.data())
    sources = ["every_kernel_test.c", "every_kernel.c"]
    program = build(compiler, uint8_folder, sources, "-std=c99", "-Wall", "-Werror", "-DEVERY_KERNEL_TRACE")
    assert run(program).stdout == EXPECTED


def test_the_report_counts_bytes_and_multiply_adds(tmp_path: Path) -> None:
    result = export_c(tiny(), tmp_path)
    sizes = read_record(tmp_path / "tiny_sizes.json", SizeReport)
    assert sizes == result.sizes
    assert (sizes.constant_bytes, sizes.macs, sizes.input_bytes, sizes.output_bytes) == (12 + 8, 12, 6, 8)
    assert (sizes.arena_bytes, sizes.layers[1].where) == (1, "output")
    text = (tmp_path / "tiny_sizes.txt").read_text()
    assert "tiny: 14 parameters, 12 multiply-adds per image" in text
    assert re.search(r"1  head +Linear +2 +12 +20 +8 +output", text)


def test_sizes_are_those_of_the_layers() -> None:
    network = every_kernel("mixed")
    for step in lower(network).steps:
        layer = step.layer
        if isinstance(layer, n.Conv2d):
            out, per_group, kernel_h, kernel_w = layer.weight.shape
            assert step.macs == int(np.prod(layer.output.shape[1:])) * out * per_group * kernel_h * kernel_w
            multipliers = 0 if layer.multiplier is None else len(layer.multiplier.values)
            largest, run = np.abs(layer.weight, dtype=np.int16).max(), kernel_w * per_group
            pairs = -(-out // 2) * kernel_h  # of channels that share bytes
            weights = layer.weight.size if largest > 7 else pairs * (run if largest > 1 else -(-run // 2))
            expected = weights + 4 * out + (4 * multipliers if multipliers > 1 else 0)
            assert sum(constant.size for constant in step.constants) == expected


def test_pixels_become_the_integers_of_the_python_pipeline(tmp_path: Path) -> None:
    need("gcc")
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    network = random_network(np.random.default_rng(1), image_shape=(3, 4, 4), dtype="int8", length=2, name="pixels")
    network = dataclasses.replace(network, metadata={"mean": list(mean), "std": list(std)})
    export_c(network, tmp_path)
    (tmp_path / "show.c").write_text(
        """
        #include <stdio.h>
        #include "pixels.h"
        int main(void)
        {
            for (int i = 0; i < 3 * 256; i++)
                printf("%d ", pixels_pixels[i / 256][i % 256]);
            return 0;
        }
        """
    )
    program = build("gcc", tmp_path, ["show.c", "pixels.c"], *STRICT)
    found = np.array(run(program).stdout.split(), int).reshape(3, 256)
    spec = network.input.output
    for channel in range(3):
        for pixel in range(256):
            x = np.float32(np.float32(pixel) / np.float32(255) - np.float32(mean[channel])) / np.float32(std[channel])
            q = np.rint(x / np.float32(spec.scale)) + spec.zero_point
            assert found[channel, pixel] == min(max(int(q), spec.lo), spec.hi)


def test_without_a_known_normalization_there_is_no_table_of_pixels(folders: dict[str, Path]) -> None:
    assert "_pixels" not in (folders["uint8"] / "every_kernel.h").read_text()


def test_the_arithmetic_holds_at_the_ends_of_int32(tmp_path: Path) -> None:
    need("gcc")
    # Accumulators within 2**31 − 1 − 255·127 of the limits, and the largest multiplier: products near 2**55.
    spec = n.TensorSpec((4,), "uint8", 1.0, 0, 0, 255)
    limit = 2**31 - 1 - 255 * 127 * 2
    head = n.Linear(
        name="head", inputs=("image",), output=n.TensorSpec((6,), "int8", 1.0, 0, -128, 127),
        multiplier=n.Multiplier.on_grid(np.array([2**24 - 1, 2**24 - 1, 1, 1, 1, 65536])),
        weight=np.array([[127, 127, 0, 0]] * 5 + [[1, -1, 0, 0]], np.int8),
        bias_o=np.array([limit, -limit, limit, -limit, 32768, 0], np.int32),
    )  # fmt: skip
    network = IntegerNetwork("edges", (n.QuantizeInput(name="image", inputs=(), output=spec), head), ("head",))
    images = np.array([[0, 0, 0, 0], [255, 255, 255, 255], [255, 0, 0, 0], [0, 128, 0, 0]], np.uint8)
    export_c(network, tmp_path, inputs=images)
    assert run(build("gcc", tmp_path, ["edges_test.c", "edges.c"], *SANITIZED, "-DEDGES_TRACE")).returncode == 0
    accumulators = images.astype(int) @ head.weight.T.astype(int) + head.bias_o
    assert np.abs(accumulators).max() == 2**31 - 1


def test_test_images_may_be_given(tmp_path: Path) -> None:
    need("gcc")
    images = np.array([[0, 1, 2, 3, 254, 255]] * 7, np.uint8)
    export_c(tiny(), tmp_path, inputs=images)
    assert "#define IMAGES 7" in (tmp_path / "tiny_test.c").read_text()
    program = build("gcc", tmp_path, ["tiny_test.c", "tiny.c"], *STRICT, "-DTINY_TRACE")
    assert run(program).stdout == "tiny: 7 images, all layers and outputs as expected\n"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 6), np.float32), r"test images of tiny must be uint8 of shape \(N, 6\), got float32"),
        (np.zeros((1, 5), np.uint8), r"got uint8 of shape \(1, 5\)"),
        (np.zeros((0, 6), np.uint8), "needs at least one image"),
    ],
)
def test_test_images_that_do_not_fit_are_refused(images: NDArray[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        export_c(tiny(), tmp_path / "out", inputs=images)
    assert not (tmp_path / "out").exists()


def test_test_images_out_of_range_are_refused(tmp_path: Path) -> None:
    network = random_network(np.random.default_rng(0), dtype="uint8", bits=4)
    (images,) = default_images(network)
    images[0] = 255
    with pytest.raises(ConfigurationError, match=r"must be integers in \[\d+, \d+\], got \d+\.\.255"):
        export_c(network, tmp_path, inputs=images)


def test_made_up_images_reach_both_ends_of_the_range() -> None:
    network = every_kernel("int8")
    spec = network.input.output
    (images,) = default_images(network, 5)
    assert images.dtype == np.int8
    assert (images[-2] == spec.lo).all()
    assert (images[-1] == spec.hi).all()
    assert len(np.unique(images[:-2])) > 10


def test_free_float_multipliers_are_refused(tmp_path: Path) -> None:
    network = random_network(np.random.default_rng(0), on_grid=False, operators={"conv"}, output="accumulators")
    with pytest.raises(ConfigurationError) as caught:
        export_c(network, tmp_path)
    assert re.fullmatch(
        r"layer conv\d of random has free float multipliers, which integer-only C cannot reproduce; "
        r"move them onto the grid with network\.requantize\(\) or twoscale requantize, or "
        r'quantize with a scheme on the grid, e\.g\. scheme="default"',
        str(caught.value),
    )


def test_a_network_that_computes_nothing_is_refused(tmp_path: Path) -> None:
    network = IntegerNetwork("nothing", tiny().layers, ("image",))
    with pytest.raises(
        ConfigurationError, match="layer image of nothing is an output of the network: there is nothing to compute"
    ):
        export_c(network, tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TwoscaleError, match="cannot write"):
        export_c(tiny(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def chain(names: list[str], size: int = 6) -> IntegerNetwork:
    """Return a network of convolutions with these names."""
    rng = np.random.default_rng(0)
    spec = n.TensorSpec((2, size, size), "uint8", 0.1, 128, 0, 255)
    layers: list[n.Layer] = [n.QuantizeInput(name="image", inputs=(), output=spec)]
    for name in names:
        layers.append(
            n.Conv2d(
                name=name, inputs=(layers[-1].name,), output=spec, padding=(1, 1, 1, 1),
                weight=rng.integers(-127, 128, (2, 2, 3, 3), dtype=np.int8), bias_o=np.arange(2, dtype=np.int32),
                multiplier=n.Multiplier.on_grid(np.array([90, 100]), 16),
            )
        )  # fmt: skip
    flat = n.TensorSpec((2 * size * size,), "uint8", 0.1, 128, 0, 255)
    layers.append(n.Reshape(name="the end", inputs=(names[-1],), output=flat))
    return IntegerNetwork("net", tuple(layers), ("the end",))


DEEP = "features.stage_three.block_number_twelve.inner.branch"


@pytest.mark.sweep
@pytest.mark.parametrize("target", ["portable", "small-ram", "native"])
@pytest.mark.parametrize(
    "names",
    [
        [f"{DEEP}.conv_{i}" for i in range(3)],
        [DEEP[:length] + "_" + "xy"[i % 2] * 30 for i, length in enumerate((33, 33, 39, 40, 40))],
        ["x_layer", "x", "x_weight", "x_2", "x weight", "x-weight", "weight", "x_weight_2"],
        ["conv2d", "conv2d_row", "requantize", "NULL", "main", "INT32_MAX", "arena", "block", "é", "ü"],
        ["esc\x1b[31m", "bell\x07", "right\u202eleft", "line\nfeed", "*/", '"', "x" * 100_000],
    ],
    ids=["a long prefix", "cut at every length", "endings", "words of C", "control characters"],
)
def test_any_names_give_c_that_compiles(names: list[str], target: str, tmp_path: Path) -> None:
    """However long names are and wherever they are cut, their C identifiers are unique, and no other symbol is
    exported."""
    need("gcc")
    result = export_c(chain(names), tmp_path, target=target)
    vector = target == "native"
    flags = ("-std=gnu99", "-O0", "-Wall", "-Wextra", "-Werror", "-pthread", NOT_INLINED) if vector else STRICT
    program = build("gcc", tmp_path, ["net_test.c", "net.c"], *flags, *[] if vector else ["-DNET_TRACE"])
    assert run(program).stdout.startswith("net: 4 images, all layers and outputs as expected")
    for path in result.paths:
        text = path.read_text()
        assert path.suffix == ".json" or all(character in "\t\n" or " " <= character <= "~" for character in text)
        assert path.suffix == ".json" or max(map(len, text.splitlines())) < 1000


def test_identifiers_that_are_cut_are_told_apart() -> None:
    """Planted: if endings were cut too, the weights of two layers would have the same name."""
    identifiers = Identifiers()
    bases = [identifiers.of(f"{DEEP}.conv_{i}") for i in range(3)]
    assert len(set(bases)) == 3
    assert max(map(len, bases)) <= 42
    endings = [identifiers.ending(base, kind) for base in bases for kind in ("weight", "bias", "multiplier", "layer")]
    assert len(set(endings)) == 12
    assert max(map(len, endings)) < 63  # significant characters in C99
    assert identifiers.ending(bases[0], "weight") not in endings


def test_means_whose_sums_overflow_are_refused() -> None:
    """In C they would be undefined; with one pixel less they are not."""
    size = 2_902
    spec = n.TensorSpec((1, size, size), "uint8", 0.1, 0, 0, 255)

    def network(kernel: tuple[int, int]) -> IntegerNetwork:
        pool = n.AveragePool2d(
            name="mean", inputs=("image",), output=n.TensorSpec((1, 1, 1), "uint8", 0.1, 0, 0, 255), kernel=kernel,
            stride=kernel, multiplier=n.Multiplier.on_grid(np.array([1]), 16),
        )  # fmt: skip
        image = n.QuantizeInput(name="image", inputs=(), output=dataclasses.replace(spec, shape=(1, *kernel)))
        flat = n.Reshape(name="flat", inputs=("mean",), output=n.TensorSpec((1,), "uint8", 0.1, 0, 0, 255))
        return IntegerNetwork("net", (image, pool, flat), ("flat",))

    assert 2_901 * 2_902 * 255 < 2**31 < 2_903 * 2_902 * 255
    lower(network((2_901, 2_902)))
    with pytest.raises((ConfigurationError, QuantizationError), match="mean"):
        lower(network((2_903, 2_902)))
