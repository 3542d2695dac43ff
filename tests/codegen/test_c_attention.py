"""The C of matrix products, softmax and norms: strict compilers, sanitizers, and faults that the self-test finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.codegen.compiling import SANITIZED, STRICT, build, need, run
from tests.integer_networks import OF_ATTENTION, ActivationType, random_images, random_network
from twoscale._codegen.c import export_c
from twoscale._codegen.c.portable.lowering import lower
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators.vectorized import quantize_input
from twoscale.errors import ConfigurationError

SEEDS: dict[ActivationType, int] = {"uint8": 3, "int8": 0, "mixed": 4}


def attention(dtype: ActivationType, seed: int | None = None) -> IntegerNetwork:
    """Return a network with all of the kernels, several times."""
    operators = {*OF_ATTENTION, "reshape"}
    rng = np.random.default_rng(SEEDS[dtype] if seed is None else seed)
    return random_network(rng, operators=operators, length=14, image_shape=(3, 6, 8), dtype=dtype, name="attention")


def exported(network: IntegerNetwork, folder: Path) -> Path:
    images = random_images(np.random.default_rng(7), network, 6)
    export_c(network, folder, name="attention", inputs=quantize_input(images, network.input.output))
    return folder


@pytest.mark.parametrize("dtype", SEEDS)
def test_the_networks_hold_every_kernel(dtype: ActivationType) -> None:
    used = [call.kernel.name for step in lower(attention(dtype)).steps for call in step.calls]
    assert all(used.count(kernel) >= 2 for kernel in OF_ATTENTION)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("dtype", SEEDS)
@pytest.mark.parametrize("flags", [STRICT, SANITIZED], ids=["strict", "sanitized"])
def test_compiled_c_gives_every_integer(dtype: ActivationType, flags: tuple[str, ...], tmp_path: Path) -> None:
    need("gcc")
    folder = exported(attention(dtype), tmp_path)
    done = run(build("gcc", folder, ["attention_test.c", "attention.c"], *flags, "-DATTENTION_TRACE"))
    assert (done.returncode, done.stdout) == (0, "attention: 6 images, all layers and outputs as expected\n")


FAULTS = {
    "a fixed zero point": ("- p->b_zero);", "- p->a_zero);"),
    "quotients round up": ("twice > total || (twice == total && floor % 2)", "twice >= total"),
    "the lowest score": ("if (x[first + j * p->inner] > top)", "if (j == 0)"),
    "truncation to zero": (" - (numerator % denominator < 0)", ""),
    "the variance without the mean": ("p->count * squares - total * total", "p->count * squares"),
    "no epsilon": (" + p->epsilon)", " + 1)"),
    "a root too large": ("<= value)\n            root", "<= value + 2 * root * bit)\n            root"),
    "norms rounded down": ("(product + almost_half + ((product >> shift) & 1)) >> shift", "product >> shift"),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_test_finds_a_planted_fault(fault: str, tmp_path: Path) -> None:
    need("gcc")
    right, wrong = FAULTS[fault]
    for seed in range(12):
        folder = tmp_path / str(seed)
        source = exported(attention("uint8", seed), folder) / "attention.c"
        text = source.read_text()
        if right not in text:
            continue
        source.write_text(text.replace(right, wrong))
        flags = ("-std=c99", "-O1", "-w", "-DATTENTION_TRACE")
        if run(build("gcc", folder, ["attention_test.c", "attention.c"], *flags)).returncode:
            return
    pytest.fail("no network shows it")


def test_norms_over_dimensions_apart_are_refused_in_c() -> None:
    """Every other dimension of seven: four loops within a group."""
    x = n.TensorSpec((2,) * 7, "uint8", 1.0, 128, 0, 255)
    one = np.ones((1,) * 7, np.int32)
    layer = n.Normalize(
        name="norm", inputs=("input",), output=x, axes=(0, 2, 4, 5), epsilon=1, centered=True, gain=one, bias=one
    )
    flat = n.Reshape(name="flat", inputs=("norm",), output=n.TensorSpec((128,), "uint8", 1.0, 128, 0, 255))
    network = IntegerNetwork("apart", (n.QuantizeInput(name="input", inputs=(), output=x), layer, flat), ("flat",))
    with pytest.raises(ConfigurationError, match="layer norm of apart normalizes in more than 3 nested loops"):
        lower(network)
