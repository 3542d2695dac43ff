"""C for Cortex-M cores with the DSP extension: the same integers for every layer, on hosts and on the cores."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests import sweep
from tests.codegen.compiling import DTYPES, SANITIZED, STRICT, build, need, run
from tests.codegen.test_c_on_cortex_m import TOOLS, make
from tests.integer_networks import ActivationType, random_network
from tests.tflite_files import random_file
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


def kernels_of(network: IntegerNetwork) -> set[str]:
    return {call.kernel.name for step in lower(network, FasterWithDsp(network)).steps for call in step.calls}


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
    done = make("run", tmp_path / "net", cpu)
    assert (done.stdout, done.stderr, done.returncode) == (PASSED, "", 0)


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
    assert {type(call).__name__ for call in lower(network, FasterWithHelium(network)).steps[1].calls} == {
        "Conv2dHelium"
    }
    export_c(network, tmp_path, target="cortex-m55", name="net")
    done = make("run", tmp_path / "net", "cortex-m55")
    assert (done.stdout, done.stderr, done.returncode) == (PASSED, "", 0)


@pytest.mark.skipif(not sweep.whole(), reason="runs QEMU: --sweep all")
@pytest.mark.parametrize("cpu", ["cortex-m0", "cortex-m33"])
def test_portable_c_on_other_boards(cpu: str, tmp_path: Path) -> None:
    need(*TOOLS)
    export_c(one_layer(np.arange(-54, 54).reshape(4, 3, 3, 3), (3, 6, 8)), tmp_path, target="small-ram", name="net")
    done = make("run", tmp_path / "net", cpu)
    assert (done.stdout, done.stderr, done.returncode) == (PASSED, "", 0)


FAULTS = {
    "the wrong lane": ("sum1 = add_products((int32_t)(pair >> 32), first", "sum1 = add_products((int32_t)pair, first"),
    "no saturation": ("value = value > 255 ? 255 : value;", ""),
    "weights without a sign": ("return __sxtb16(a);", "return (int32_t)__uxtb16((uint32_t)a);"),
    "an edge row too far": ("in_row >= p->in_h ? NULL", "in_row > p->in_h ? NULL"),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_self_test_on_the_core_catches_faults(fault: str | None, tmp_path: Path) -> None:
    need(*TOOLS)
    weight = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3))
    export_c(one_layer(weight, (3, 6, 8)), tmp_path, target="cortex-m4", name="net")
    text = (tmp_path / "net.c").read_text()
    if fault is not None:
        old, new = FAULTS[fault]
        assert text.count(old) == 1
        (tmp_path / "net.c").write_text(text.replace(old, new))
    done = make("run", tmp_path / "net", "cortex-m4")
    assert (done.returncode == 0) is (fault is None)
    assert (done.stdout == PASSED) is (fault is None)
    assert fault is None or "is the first to differ" in done.stdout, done.stderr


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
