"""Convolutions with transformed weights: the same integers with fewer products."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import sweep
from tests.codegen.compiling import SANITIZED, STRICT, build, need, run
from tests.codegen.test_budget import compiled
from tests.codegen.test_c_cortex_m import BIG, PASSED, of_model, one_layer, wide
from tests.codegen.test_c_on_cortex_m import TOOLS, count_of, make
from twoscale._codegen.c import export_c
from twoscale._codegen.c.cortex_m.dsp import FasterWithDsp, winograd_weights
from twoscale._codegen.c.portable.calls import folded_biases
from twoscale._codegen.c.portable.lowering import lower
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError

SHAPES = [(16, 8, 8), (16, 5, 11), (16, 1, 16), (32, 7, 16), (48, 6, 6), (64, 3, 13), (64, 4, 24)]


def kernels_of(network: IntegerNetwork) -> list[str]:
    faster = FasterWithDsp(network, winograd=True)
    return [call.kernel.name for step in lower(network, faster).steps for call in step.calls]


def with_residual() -> IntegerNetwork:
    """Return a network of two convolutions, the second with the first one's input added."""
    image, first = wide((16, 6, 8), 16, 3, 1).layers
    assert isinstance(first, n.Conv2d)
    joined = dataclasses.replace(
        first, name="joined", inputs=("conv", "image"), multiplier=n.Multiplier.on_grid(np.arange(20, 36), ADD_SHIFT),
        residual_multiplier=n.Multiplier.on_grid(np.array([9000]), ADD_SHIFT),
    )  # fmt: skip
    return IntegerNetwork("net", (image, first, joined), ("joined",))


def sums_only(weight: NDArray[np.int64], shape: tuple[int, int, int], bias: int) -> IntegerNetwork:
    """Return a network of one convolution whose outputs are its sums."""
    image, conv = one_layer(weight, shape, bias=bias).layers
    assert isinstance(conv, n.Conv2d)
    output = n.TensorSpec(conv.output.shape, "int32", 0.5)
    return IntegerNetwork("net", (image, dataclasses.replace(conv, output=output, multiplier=None)), ("conv",))


def exported(network: IntegerNetwork, folder: Path) -> Path:
    """Write the C, with images of the extremes and of random bytes in the self-test."""
    spec = network.input.output
    images = np.random.default_rng(0).integers(0, 256, (4, *spec.shape)).astype(np.uint8)
    images[0], images[1], images[2] = 0, 255, np.where(images[2] < 128, 0, 255)
    export_c(network, folder, target="cortex-m4", name="net", inputs=images, weights_in_flash="winograd")
    return folder


def self_test(folder: Path, *flags: str) -> str:
    return run(build("gcc", folder, ["net_test.c", "net.c"], "-DNET_TRACE", *flags)).stdout


@pytest.mark.sweep(2)
@pytest.mark.parametrize("channels", [4, 5, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_size_computes_the_same(shape: tuple[int, int, int], channels: int, tmp_path: Path) -> None:
    need("gcc")
    network = wide(shape, channels, 3, 1)
    assert kernels_of(network) == ["conv2d_winograd"]
    flags = SANITIZED if sweep.whole() else (*STRICT, "-Wno-overlength-strings")
    assert self_test(exported(network, tmp_path), *flags) == PASSED


def test_a_residual_is_added(tmp_path: Path) -> None:
    need("gcc")
    network = with_residual()
    assert kernels_of(network) == ["conv2d_winograd", "conv2d_winograd"]
    assert self_test(exported(network, tmp_path), "-std=c99", "-O1") == PASSED


@pytest.mark.parametrize("weight", [127, -128])
def test_sums_at_the_bound_are_exact(weight: int, tmp_path: Path) -> None:
    """Four times a sum of the largest weights and bytes and of the largest bias is just below 2^31."""
    need("gcc")
    weights = np.full((4, 64, 3, 3), weight)
    zero, taps = 7, 64 * 9
    bias = (2**29 - 1 - 255 * abs(weight) * taps) * (1 if weight > 0 else -1) + zero * weight * taps
    network = sums_only(weights, (64, 3, 8), bias)
    assert kernels_of(network) == ["conv2d_winograd"]
    largest = abs(int(folded_biases(conv_of(network), zero)[0])) + 255 * abs(weight) * taps
    assert 4 * largest == 2**31 - 4
    assert kernels_of(sums_only(weights, (64, 3, 8), bias + (1 if weight > 0 else -1))) != ["conv2d_winograd"]
    assert self_test(exported(network, tmp_path), *SANITIZED) == PASSED


def conv_of(network: IntegerNetwork) -> n.Conv2d:
    (conv,) = (layer for layer in network if isinstance(layer, n.Conv2d))
    return conv


def test_transformed_weights_give_four_times_the_sums() -> None:
    """By the equations of the kernel, with Python's integers; extremes of weights and bytes included."""
    rng = np.random.default_rng(0)
    weight = rng.choice([-128, -127, 0, 1, 127], (3, 16, 3, 3)).astype(np.int8)
    weight[0], weight[1, :, 1] = -128, 127
    words = winograd_weights(weight)
    assert words.shape == (2, 16, 8, 2)
    halves = np.stack([words.astype(np.int16), words >> 16], 3)  # pair, position, word, half, channel
    assert np.abs(halves).max() == 9 * 128
    inputs = halves.reshape(2, 16, 4, 2, 2, 2).transpose(0, 5, 2, 4, 3, 1).reshape(4, 16, 4, 4).astype(object)
    assert not inputs[3].any()
    data = rng.choice([0, 1, 255], (16, 4, 4)).astype(object)
    rows = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], object)
    columns = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], object)
    found = [
        columns @ sum(w * (rows @ x @ rows.T) for w, x in zip(of, data, strict=True)) @ columns.T for of in inputs[:3]
    ]
    expected = [
        [[sum((of * data[:, i : i + 3, j : j + 3]).ravel()) for j in range(2)] for i in range(2)]
        for of in weight.astype(object)
    ]
    assert np.array_equal(found, 4 * np.array(expected))


OTHERS = {
    "a stride of 2": wide((16, 8, 16), 4, 3, 2),
    "5 x 5": wide((16, 8, 8), 4, 5, 1),
    "8 channels": wide((8, 8, 8), 4, 3, 1),
    "80 channels, too much stack": wide((80, 8, 8), 4, 3, 1),
    "3 outputs": wide((16, 8, 8), 3, 3, 1),
    "less than half a group": wide((16, 4, 3), 4, 3, 1),
    "depthwise": wide((16, 8, 8), 16, 3, 1, depthwise=True),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_convolutions_keep_their_kernels(case: str) -> None:
    assert "conv2d_winograd" not in kernels_of(OTHERS[case])


FAULTS = {
    "a row of the inputs": ("minus(C2, C1)", "minus(C1, C2)"),
    "an outer column": ("[3 * WINOGRAD_APART] = minus(C1, C3)", "[3 * WINOGRAD_APART] = minus(C1, C2)"),
    "bytes with a sign": ("(int32_t)(of_a >> 8 & 0x00ff00ffu)", "(int32_t)(of_a >> 8 & 0x007f00ffu)"),
    "a lane": ("ADD(sum3, right, second)", "ADD(sum3, left, second)"),
    "no bias": ("(uint32_t)m[40] + bias", "(uint32_t)m[40]"),
    "a row of the outputs": ("(m1 - m2 -", "(m1 + m2 -"),
    "no division": ("(left_lower + lower) >> 2", "(left_lower + lower)"),
    "an edge row too far": ("top + k >= p->in_h", "top + k > p->in_h"),
    "an edge of zeros": ("p->in_zero, (size_t)(after", "0, (size_t)(after"),
    "a column too many": ("p->out_w - column < 8 ?", "p->out_w - column < 7 ?"),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, tmp_path: Path) -> None:
    need("gcc")
    folder = exported(wide((16, 5, 15), 6, 3, 1), tmp_path)
    text = (folder / "net.c").read_text()
    old, new = FAULTS[fault]
    assert text.count(old) == 1
    (folder / "net.c").write_text(text.replace(old, new))
    assert "is the first to differ" in self_test(folder, "-std=c99", "-O1")


@pytest.mark.sweep(1)
@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m33", "cortex-m7"])
def test_the_cores_compute_the_same(cpu: str, tmp_path: Path) -> None:
    need(*TOOLS)
    assert count_of(make("run", exported(wide((32, 5, 11), 5, 3, 1), tmp_path) / "net", cpu)) > 0


@pytest.mark.skipif(not sweep.whole(), reason="runs QEMU: --sweep all")
@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m33"])
@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_models_on_the_cores(name: str, cpu: str, tmp_path: Path) -> None:
    need(*TOOLS)
    network = of_model(name)
    assert kernels_of(network).count("conv2d_winograd") == {"resnet8": 4, "resnet20": 16}[name]
    export_c(network, tmp_path, target="cortex-m4", name="net", weights_in_flash="winograd")
    assert count_of(make("run", tmp_path / "net", cpu, *BIG)) > 0


def test_compiled_code_takes_what_the_report_says(tmp_path: Path) -> None:
    network = with_residual()
    sizes = export_c(network, tmp_path, target="cortex-m4", name="net", weights_in_flash="winograd").sizes
    flash, stack = compiled(tmp_path, "cortex-m4")
    assert sizes.footprint is not None
    assert sizes.flash_bytes is not None
    assert flash <= sizes.flash_bytes <= 1.15 * flash + 5000
    assert stack <= sizes.footprint.stack_bytes <= 1.3 * stack + 1500


def test_other_targets_refuse_the_option(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="weights_in_flash is winograd; expected target cortex-m4, got portable"
    ):
        export_c(with_residual(), tmp_path / "out", weights_in_flash="winograd")
    assert not (tmp_path / "out").exists()


def test_a_budget_counts_transformed_weights(tmp_path: Path) -> None:
    """They are 3.56 times as large; the message names the target without the option."""
    with pytest.raises(
        ConfigurationError, match=r"of flash .* with target cortex-m4 and winograd weights; target cortex-m4 fits"
    ):
        export_c(
            with_residual(), tmp_path, target="cortex-m4", max_flash=20_000, name="net", weights_in_flash="winograd"
        )
