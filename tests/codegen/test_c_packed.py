"""Weights of 4 and 2 bits take half and a quarter of the bytes in C, and every integer stays the same."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.chips import network_of
from tests import sweep
from tests.codegen.compiling import DTYPES, SANITIZED, STRICT, build, every_kernel, need, run
from tests.codegen.test_budget import CASES, compiled, keeps_its_figures
from tests.integer_networks import ActivationType
from twoscale._codegen.c import export_c, sizes_of
from twoscale._codegen.c.common.packing import pack, storage_bits
from twoscale._codegen.c.portable.lowering import lower
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

EXPECTED = "every_kernel: 4 images, all layers and outputs as expected\n"


def narrowed(network: IntegerNetwork, bits: int, *, lowest: bool = False) -> IntegerNetwork:
    """Return a network with weights of few bits: up to the limit of either sign, or with ``lowest`` down to one less
    in even channels, where it is stored in the low bits."""
    limit = 2 ** (bits - 1) - 1

    def few(weight: NDArray[np.int8]) -> NDArray[np.int8]:
        small = weight.astype(np.int64) % (2 * limit + 1) - limit
        if lowest:
            small[::2] = np.where(weight[::2] % 3 == 0, -limit - 1, small[::2])
        result: NDArray[np.int8] = small.astype(np.int8)
        return result

    layers = tuple(
        dataclasses.replace(layer, weight=few(layer.weight)) if isinstance(layer, n.Accumulating) else layer
        for layer in network
    )
    return dataclasses.replace(network, layers=layers)


def unpacked(stored: NDArray[np.int8], bits: int, shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Read packed weights number by number, as docs/c.md describes them."""
    weight = np.zeros(shape, np.int64)
    for channel, row, tap in np.ndindex(shape):
        line = stored[channel // 2, row].tolist()
        number = line[tap] if bits == 4 else line[tap // 2] >> 4 if tap % 2 else (line[tap // 2] & 15 ^ 8) - 8
        base = 2**bits
        second = (number + base // 2) // base
        weight[channel, row, tap] = second if channel % 2 else number - base * second
    return weight


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (5, 3, 9), (3, 1, 7)])
def test_packed_weights_read_back(bits: int, shape: tuple[int, int, int]) -> None:
    limit = 2 ** (bits - 1)
    weight = np.random.default_rng(0).integers(1 - limit, limit, shape).astype(np.int8)
    weight[::2, 0, 0] = -limit  # in the low bits it fits beside any weight
    assert storage_bits(weight) == bits
    stored = pack(weight, bits)
    assert np.array_equal(unpacked(stored, bits, shape), weight)
    assert stored.nbytes == (shape[0] + 1) // 2 * shape[1] * (shape[2] if bits == 4 else (shape[2] + 1) // 2)


@pytest.mark.parametrize(
    ("pair", "bits"),
    [
        ((1, -1), 2), ((-2, 1), 2), ((0, -2), 2), ((-1, -2), 4), ((2, 0), 4), ((-3, 0), 4), ((7, -7), 4), ((-8, 7), 4),
        ((-8, -7), 4), ((0, -8), 4), ((-1, -8), 8), ((8, 0), 8), ((-9, 0), 8), ((-127, 127), 8), ((0, 0), 2),
    ],
)  # fmt: skip
def test_bits_come_from_the_integers(pair: tuple[int, int], bits: int) -> None:
    assert storage_bits(np.array(pair, np.int8).reshape(2, 1)) == bits


def test_weights_whose_sums_may_not_fit_keep_bytes() -> None:
    assert storage_bits(np.ones((1, 65_793), np.int8)) == 2
    assert storage_bits(np.ones((1, 65_794), np.int8)) == 8


@pytest.mark.sweep(1)
@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["portable", "small-ram"])
def test_the_self_test_passes(target: str, dtype: ActivationType, bits: int, lowest: bool, tmp_path: Path) -> None:
    need("gcc")
    network = narrowed(every_kernel(dtype), bits, lowest=lowest)
    export_c(network, tmp_path, target=target)
    text = (tmp_path / "every_kernel.c").read_text()
    assert {f"linear_{bits}(", f"conv2d_tile_{bits}(", "dot_packed("} <= set(re.findall(r"\w+\(", text))
    assert f"{6 - bits} bits each" not in text
    sources = ["every_kernel_test.c", "every_kernel.c"]
    flags = (STRICT, SANITIZED) if sweep.whole() else (("-std=c99", "-Wall", "-Wextra", "-Werror"),)
    for chosen in flags:
        assert run(build("gcc", tmp_path, sources, *chosen, "-DEVERY_KERNEL_TRACE")).stdout == EXPECTED


def mixed() -> IntegerNetwork:
    """Return convolutions of 8, 4 and 2 bits, the last with an odd number of channels and int32 outputs."""
    rng = np.random.default_rng(3)

    def spec(*shape: int) -> n.TensorSpec:
        return n.TensorSpec(shape, "uint8", 1.0, 20, 0, 255)

    def conv(name: str, x: str, shape: tuple[int, ...], limit: int, output: n.TensorSpec) -> n.Conv2d:
        multiplier = n.Multiplier.on_grid(np.array([900 // limit]), 16) if output.dtype == "uint8" else None
        return n.Conv2d(
            name=name, inputs=(x,), output=output, multiplier=multiplier,
            weight=rng.integers(-limit, limit + 1, shape).astype(np.int8),
            bias_o=rng.integers(-999, 999, shape[0]).astype(np.int32), padding=(1, 1, 1, 1),
        )  # fmt: skip

    layers = (
        n.QuantizeInput(name="image", inputs=(), output=spec(3, 5, 7)),
        conv("eight", "image", (5, 3, 3, 3), 127, spec(5, 5, 7)),
        conv("four", "eight", (3, 5, 3, 3), 7, spec(3, 5, 7)),
        conv("two", "four", (3, 3, 3, 3), 1, n.TensorSpec((3, 5, 7), "int32", 1.0)),
    )
    return IntegerNetwork("mixed", layers, ("two",))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("pattern", "replacement", "layer"),
    [
        ("", "", ""),
        (r"sum1 \+= a \* both", "sum1 += b * both", "four"),
        (r"\(sum3 - sum2\) >> bits", "(sum3 - sum2) >> 3", "four"),
        (r"\(sum1 - sum0\) >> bits", "(sum1 - (bits == 4) * sum0) >> bits", "two"),
        (r"LOW_4\(\*w\)\)\n            w\+\+;", "LOW_4(*w)) w += bits == 4;", "two"),
        (r": taps >> 4\)", ": LOW_4(taps >> 4) & 7)", "two"),
        (r"bits == 4 \? LOW_4\(both\)", "bits == 4 ? both & 15", "four"),
        (r"i \+= 2 - next", "i++", "two"),
        (r"\.weight_bits = 4", ".weight_bits = 2", "four"),
        (r"four_weight.*\n +(-?\d+)", "four_weight[135] = {0", "four"),
    ],
)
def test_widths_may_differ_and_a_planted_fault_is_caught(
    pattern: str, replacement: str, layer: str, tmp_path: Path
) -> None:
    need("gcc")
    export_c(mixed(), tmp_path)
    path = tmp_path / "mixed.c"
    text, count = re.subn(pattern, replacement, path.read_text(), count=1) if pattern else (path.read_text(), 1)
    assert count == 1
    path.write_text(text)
    said = run(build("gcc", tmp_path, ["mixed_test.c", "mixed.c"], "-std=c99", "-DMIXED_TRACE", "-w")).stdout
    if not pattern:
        assert said == "mixed: 4 images, all layers and outputs as expected\n"
    else:
        found = re.search(r"layer \d \((\w+)\) is the first to differ", said)
        assert found
        assert found[1] == layer


def test_the_report_counts_packed_bytes() -> None:
    network = mixed()
    sizes = {layer.name: layer.constant_bytes for layer in sizes_of(network, "portable").layers}
    assert sizes["eight"] == 5 * 27 + 4 * 5
    assert sizes["four"] == 2 * 3 * 15 + 4 * 3
    assert sizes["two"] == 2 * 3 * 5 + 4 * 3


def test_kernels_with_their_own_layout_keep_bytes() -> None:
    for target in ("cortex-m4", "cortex-m55"):
        sizes = {layer.name: layer.constant_bytes for layer in sizes_of(mixed(), target).layers}
        assert sizes["two"] >= 3 * 27


def test_a_network_without_packed_weights_has_none_of_it(tmp_path: Path) -> None:
    network = mixed()
    wide = dataclasses.replace(network, layers=network.layers[:2], outputs=("eight",))
    export_c(wide, tmp_path)
    text = (tmp_path / "mixed.c").read_text()
    assert "weight_bits" not in text
    assert "LOW_4" not in text
    assert not re.search(r"#ifn?def (?!MIXED_)", text)
    assert [call.kernels[-1].name for step in lower(network).steps[1:] for call in step.calls] == [
        "conv2d_tile", "conv2d_tile_4", "conv2d_tile_2",
    ]  # fmt: skip


@pytest.mark.skipif(not sweep.whole(), reason="it takes half a minute: pytest --sweep all")
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize(("target", "core"), [case for case in CASES if case[0] in ("portable", "small-ram")])
def test_compiled_kernels_take_what_the_report_says(target: str, core: str, bits: int, tmp_path: Path) -> None:
    for dtype in DTYPES:
        keeps_its_figures(narrowed(every_kernel(dtype), bits), target, core, tmp_path)


@pytest.mark.skipif(not sweep.whole(), reason="it quantizes ResNet-8 three times: pytest --sweep all")
def test_resnet8_takes_little_more_than_half_the_flash(tmp_path: Path) -> None:
    flash = {}
    for bits in (8, 4, 2):
        export_c(network_of("resnet8", bits), tmp_path, name="net")
        flash[bits] = compiled(tmp_path, "cortex-m4")[0]
    assert flash[4] <= 0.55 * flash[8]
    assert flash[2] <= 0.32 * flash[8]
