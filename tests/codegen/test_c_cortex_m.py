"""C for Cortex-M cores with the DSP extension: the same integers for every layer, on hosts and on the cores."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chips import TOOLS as CHIPS_TOOLS
from benchmarks.chips import Counter, network_of
from tests import sweep
from tests.codegen.compiling import DTYPES, SANITIZED, STRICT, build, need, run
from tests.codegen.test_c_on_cortex_m import TOOLS, count_of, make
from tests.integer_networks import ActivationType, random_network
from tests.tflite_files import random_file
from twoscale import models
from twoscale._codegen.c import export_c
from twoscale._codegen.c.cortex_m.dsp import FasterWithDsp
from twoscale._codegen.c.cortex_m.helium import FasterWithHelium
from twoscale._codegen.c.portable.lowering import lower
from twoscale._frontends.tflite import read
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork

TARGETS = ("cortex-m4", "cortex-m55", "cortex-m4-small-ram", "cortex-m55-small-ram")
PASSED = "net: 4 images, all layers and outputs as expected\n"
FAST = {"add", "average_pool", "clamp", "conv", "depthwise", "max_pool", "pad", "residual", "slice", "table", "linear"}


def some_network(seed: int, dtype: ActivationType = "uint8") -> IntegerNetwork:
    """Return a network with convolutions of several sizes, at the edges of what integers allow."""
    shape = (1 + seed % 5, 5 + seed % 9, 4 + seed % 7)
    widest = (6, 12, 20)[seed % 3]
    return random_network(
        np.random.default_rng(seed), operators=FAST, length=9, image_shape=shape, dtype=dtype, widest=widest, name="net"
    )


def one_layer(weight: np.ndarray, shape: tuple[int, ...], *, bias: int = 5, multiplier: int = 400) -> IntegerNetwork:
    """Return a network of one convolution with a padded window."""
    channels, kernel, *_ = len(weight), *weight.shape[2:]
    out = (channels, *shape[1:])
    conv = n.Conv2d(
        name="conv", inputs=("image",), output=n.TensorSpec(out, "uint8", 0.5, 100, 0, 255),
        multiplier=n.Multiplier.on_grid(np.array([multiplier], np.int64)), weight=weight.astype(np.int8),
        bias_o=np.full(channels, bias, np.int32), stride=(1, 1), padding=(kernel // 2,) * 4,
    )  # fmt: skip
    image = n.QuantizeInput(name="image", inputs=(), output=n.TensorSpec(shape, "uint8", 0.5, 7, 0, 255))
    return IntegerNetwork("net", (image, conv), ("conv",))


def self_test(network: IntegerNetwork, folder: Path, *flags: str, target: str = "cortex-m4") -> str:
    """Return the output of the self-test on this machine, with the checksum of every layer."""
    export_c(network, folder, target=target, name="net")
    return run(build("gcc", folder, ["net_test.c", "net.c"], "-DNET_TRACE", *flags)).stdout


def kernels_of(network: IntegerNetwork, faster: type[FasterWithDsp] = FasterWithDsp) -> set[str]:
    return {call.kernel.name for step in lower(network, faster(network)).steps for call in step.calls}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("target", TARGETS)
def test_every_layer_of_random_networks(seed: int, target: str, tmp_path: Path) -> None:
    need("gcc")
    flags = SANITIZED if seed % 2 else (*STRICT, "-Wno-overlength-strings")
    assert self_test(some_network(seed, DTYPES[seed % 3]), tmp_path, *flags, target=target) == PASSED


def test_the_networks_have_every_kernel() -> None:
    used = set().union(*(kernels_of(some_network(seed)) for seed in range(12)))
    assert used >= {"conv2d_halves", "depthwise_halves", "linear_halves", "max_pool2d_bytes", "add_narrow"}
    with_helium = set().union(*(kernels_of(some_network(seed), FasterWithHelium) for seed in range(12)))
    assert with_helium >= {"conv2d_helium", "linear_helium", "max_pool2d_helium", "add_helium", "look_up_helium"}


@pytest.mark.skipif(not sweep.whole(), reason="runs QEMU: --sweep all")
@pytest.mark.parametrize(
    ("cpu", "target"),
    [(cpu, target) for cpu in ("cortex-m4", "cortex-m7", "cortex-m33") for target in TARGETS if "m4" in target]
    + [("cortex-m55", target) for target in (*TARGETS, "portable")],
)
@pytest.mark.parametrize("seed", range(6))
def test_many_networks_on_the_cores(seed: int, cpu: str, target: str, tmp_path: Path) -> None:
    need(*TOOLS)
    export_c(some_network(seed, DTYPES[seed % 3]), tmp_path, target=target, name="net")
    assert count_of(make("run", tmp_path / "net", cpu)) > 0


def test_networks_of_tensorflow_lite(tmp_path: Path) -> None:
    """Their requantization rounds twice."""
    need("gcc")
    content = random_file(np.random.default_rng(200), ["conv", "depthwise", "max_pool"], 4, "int8")
    network = read(Path("random.tflite"), content).network
    assert network.in_fixed_point
    assert kernels_of(network) >= {"conv2d_halves", "depthwise_halves"}
    assert self_test(network, tmp_path, *STRICT, "-Wno-overlength-strings") == PASSED


def test_helium_computes_the_same_on_its_core(tmp_path: Path) -> None:
    """With windows at edges, an odd number of channels and rows that are no multiple of 16 bytes."""
    need(*TOOLS)
    weight = np.random.default_rng(0).integers(-128, 128, (5, 7, 3, 3))
    network = one_layer(weight, (7, 6, 8))
    assert kernels_of(network, FasterWithHelium) == {"conv2d_helium"}
    export_c(network, tmp_path, target="cortex-m55", name="net")
    assert count_of(make("run", tmp_path / "net", "cortex-m55")) > 0


def wide(shape: tuple[int, ...], channels: int, kernel: int, stride: int, *, depthwise: bool = False) -> IntegerNetwork:
    """Return a network of one convolution with 16 channels or more."""
    rng = np.random.default_rng(kernel * stride + channels)
    weight = rng.integers(-128, 128, (channels, 1 if depthwise else shape[0], kernel, kernel)).astype(np.int8)
    size = tuple((extent - 1) // stride + 1 for extent in shape[1:])
    conv = n.Conv2d(
        name="conv", inputs=("image",), output=n.TensorSpec((channels, *size), "uint8", 0.5, 100, 3, 250),
        multiplier=n.Multiplier.on_grid(rng.integers(40, 200, channels)), weight=weight,
        bias_o=rng.integers(-(2**15), 2**15, channels).astype(np.int32), stride=(stride, stride),
        padding=(kernel // 2,) * 4, groups=channels if depthwise else 1,
    )  # fmt: skip
    image = n.QuantizeInput(name="image", inputs=(), output=n.TensorSpec(shape, "uint8", 0.5, 7, 0, 255))
    return IntegerNetwork("net", (image, conv), ("conv",))


WIDE = {
    "columns": wide((16, 5, 9), 6, 3, 1),
    "columns apart": wide((32, 7, 11), 4, 3, 2),
    "an odd channel": wide((16, 4, 8), 5, 3, 1),
    "copied windows": wide((5, 7, 6), 4, 5, 2),
    "single pixels": wide((19, 3, 5), 8, 1, 1),
    "depthwise": wide((24, 6, 5), 24, 3, 2, depthwise=True),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("on_core", [False, *([True] if sweep.whole() else [])])
@pytest.mark.parametrize("case", WIDE)
def test_helium_with_many_channels(case: str, on_core: bool, tmp_path: Path) -> None:
    network = WIDE[case]
    assert kernels_of(network, FasterWithHelium) == {"depthwise_helium" if case == "depthwise" else "conv2d_helium"}
    for target in ("cortex-m55", "cortex-m55-small-ram"):
        if on_core:
            need(*TOOLS)
            export_c(network, tmp_path / target, target=target, name="net")
            count_of(make("run", tmp_path / target / "net", "cortex-m55"))
        elif sweep.whole() or target == "cortex-m55":
            need("gcc")
            flags = SANITIZED if sweep.whole() else (*STRICT, "-O0")
            assert self_test(network, tmp_path / target, *flags, target=target) == PASSED


@pytest.mark.skipif(not sweep.whole(), reason="runs QEMU: --sweep all")
@pytest.mark.parametrize("cpu", ["cortex-m0", "cortex-m33"])
def test_portable_c_on_other_boards(cpu: str, tmp_path: Path) -> None:
    need(*TOOLS)
    export_c(one_layer(np.arange(-54, 54).reshape(4, 3, 3, 3), (3, 6, 8)), tmp_path, target="small-ram", name="net")
    assert count_of(make("run", tmp_path / "net", cpu)) > 0


FAULTS = {
    "cortex-m4": {
        "the wrong lane": (
            "sum1 = add_products((int32_t)(pair >> 32), first", "sum1 = add_products((int32_t)pair, first"
        ),
        "no saturation": ("value = value > 255 ? 255 : value;", ""),
        "weights without a sign": ("return __sxtb16(a);", "return (int32_t)__uxtb16((uint32_t)a);"),
        "an edge row too far": ("in_row >= p->in_h ? NULL", "in_row > p->in_h ? NULL"),
    },
    "cortex-m55": {
        "the wrong lane": ("vrshrq_n_s32(a, 16)), b, 16)", "vrshrq_n_s32(b, 16)), a, 16)"),
        "no saturation": (
            "vminq_s16(vmaxq_s16(helium_rounded(a, b, zero), lo), hi)",
            "vmaxq_s16(helium_rounded(a, b, zero), vminq_s16(lo, hi))",
        ),
        "bytes without a sign": ("veorq_u8(vldrbq_u8(x), vdupq_n_u8(128))", "vldrbq_u8(x)"),
        "an edge row too far": ("top + k >= p->in_h ?", "top + k > p->in_h ?"),
        "no halves to even": ("vabsq_s16(fraction)), 15)", "vabsq_s16(fraction)), 16)"),
    },
    "portable": {
        "the wrong lane": ("sum1 += a * v;", "sum1 += a * u;"),
        "no saturation": ("(uint8_t)(left < lo ? lo : left > hi ? hi : left)", "(uint8_t)left"),
        "weights without a sign": ("v = w[other], u = *w++;", "v = w[other], u = (uint8_t)*w++;"),
        "an edge row too far": ("in_row >= p->in_h ? NULL", "in_row > p->in_h ? NULL"),
    },
}  # fmt: skip
"""Of each target, what is replaced by what."""
CORES = {
    "cortex-m4": ("cortex-m4", "cortex-m33"),
    "cortex-m55": ("cortex-m55",),
    "portable": ("cortex-m0", "cortex-m3"),
}
PLANTED = [
    (cpu, target + rows, fault)
    for target, cpus in CORES.items()
    for cpu in cpus
    for rows in ("", "-small-ram")
    for fault in (None, *FAULTS[target])
]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("cpu", "target", "fault"), PLANTED)
def test_the_self_test_on_the_core_catches_faults(cpu: str, target: str, fault: str | None, tmp_path: Path) -> None:
    need(*TOOLS)
    base = target.removesuffix("-small-ram")
    channels = 16 if base == "cortex-m55" else 3
    weight = np.random.default_rng(0).integers(-127, 128, (4, channels, 3, 3))
    ties = fault == "no halves to even"  # a product in 16 then lies between two integers
    if ties:
        weight //= 32
        weight[:, ::2] = -weight[:, 1::2]
    network = one_layer(weight, (channels, 6, 8), multiplier=4096 if ties else 400)
    export_c(network, tmp_path, target=target.removeprefix("portable-"), name="net")
    text = (tmp_path / "net.c").read_text()
    if fault is None:
        count_of(make("run", tmp_path / "net", cpu))
        return
    old, new = FAULTS[base][fault]
    assert text.count(old) == 1
    (tmp_path / "net.c").write_text(text.replace(old, new))
    done = make("run", tmp_path / "net", cpu)
    assert done.returncode != 0, done.stdout + done.stderr
    assert "is the first to differ" in done.stdout, done.stderr


def test_a_board_counts_as_many_instructions_as_the_plugin(tmp_path: Path) -> None:
    """The layer's trace has a few instructions of its own."""
    need(*CHIPS_TOOLS)
    network = one_layer(np.arange(-54, 54).reshape(4, 3, 3, 3), (3, 6, 8))
    export_c(network, tmp_path, target="cortex-m55", name="net")
    counted = Counter(tmp_path).count(network, "cortex-m55", "cortex-m55", "-O2").instructions
    assert count_of(make("run", tmp_path / "net", "cortex-m55")) == pytest.approx(counted, rel=0.05)


BIG = ("BOARD_cortex-m0=mps2-an385", "MEMORY_cortex-m0=", "CLOCK_cortex-m0=25000000")
"""A board with a Cortex-M3, which executes all instructions of a Cortex-M0+, and with more memory than a micro:bit."""
MODELS = [name for name in models.names() if name != "resnet18"]
"""Whose weights fit the memory where the boards begin: those of ResNet-18 are 11 MB."""
FLASH = {"cortex-m55": 440 * 1024}
"""Bytes for a network on a board with less than the others: 512 KiB, in which the self-test needs some."""
RUNS = {
    "cortex-m0": ("portable", "small-ram"),
    "cortex-m3": ("portable", "small-ram"),
    "cortex-m4": ("cortex-m4", "cortex-m4-small-ram", "portable"),
    "cortex-m33": ("cortex-m4", "cortex-m4-small-ram"),
    "cortex-m55": ("cortex-m55", "cortex-m55-small-ram", "portable"),
}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("cpu", RUNS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_on_every_core(name: str, cpu: str, tmp_path: Path) -> None:
    need(*TOOLS)
    network = of_model(name)
    spec = network.input.output
    images = np.random.default_rng(0).integers(spec.lo, spec.hi + 1, (1, *spec.shape)).astype(spec.dtype)
    for target in sweep.some(RUNS[cpu], 1):
        flash = export_c(network, tmp_path, target=target, name="net", inputs=images).sizes.flash_bytes
        assert flash is not None
        if flash > FLASH.get(cpu, flash):
            pytest.skip("its weights do not fit the board")
        assert count_of(make("run", tmp_path / "net", cpu, *BIG), images=1) > 0


@functools.cache
def of_model(name: str) -> IntegerNetwork:
    return network_of(name)


@pytest.mark.parametrize(("first", "second", "fits"), [(127, -127, True), (-127, -128, False), (0, -128, True)])
def test_weights_that_do_not_fit_a_half_are_computed_by_portable_kernels(first: int, second: int, fits: bool) -> None:
    """A half of a word holds 256 times the second channel's weight plus the first's."""
    weight = np.zeros((2, 3, 3, 3), np.int64)
    weight[0], weight[1] = first, second
    assert kernels_of(one_layer(weight, (3, 6, 8))) == ({"conv2d_halves"} if fits else {"conv2d_tiles"})


@pytest.mark.parametrize("bias", [0, 2**22 - 300_000])
def test_sums_that_need_parts(bias: int, tmp_path: Path) -> None:
    """With the largest weights, the second channel's sum exceeds 24 bits, so windows are taken in parts."""
    need("gcc")
    weight = np.full((4, 33, 3, 3), 127)
    weight[2:] = -127
    assert self_test(one_layer(weight, (33, 3, 5), bias=bias, multiplier=2), tmp_path, "-std=c99", "-O1") == PASSED
    words, part = map(int, re.findall(r"\.(?:words|part) = (\d+)", (tmp_path / "net.c").read_text()))
    assert part < words


def test_a_part_too_long_is_caught(tmp_path: Path) -> None:
    need("gcc")
    weight = np.full((2, 33, 3, 3), 127)
    export_c(one_layer(weight, (33, 3, 5), multiplier=2), tmp_path, target="cortex-m4", name="net")
    text = (tmp_path / "net.c").read_text()
    (tmp_path / "net.c").write_text(re.sub(r"\.part = \d+", ".part = 160", text))
    done = run(build("gcc", tmp_path, ["net_test.c", "net.c"], "-DNET_TRACE", "-std=c99", "-O1"))
    assert "layer 1 (conv) is the first to differ" in done.stdout
