"""The exported C on microcontrollers: the self-test under QEMU, on boards with a small and a large core."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.codegen.compiling import DTYPES, every_kernel, need
from tests.integer_networks import ActivationType
from twoscale._codegen.c import export_c

EXAMPLE = Path(__file__).parents[2] / "examples" / "cortex-m"
TOOLS = ("make", "arm-none-eabi-gcc", "qemu-system-arm")


def make(target: str, exported: Path, cpu: str, *variables: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "-f", str(EXAMPLE / "Makefile"), target, f"NETWORK={exported}", f"CPU={cpu}",
               f"BUILD={exported.parent / 'build'}", *variables]  # fmt: skip
    return subprocess.run(
        command, cwd=exported.parent, capture_output=True, text=True, check=False, timeout=600, stdin=subprocess.DEVNULL
    )


def count_of(done: subprocess.CompletedProcess[str], name: str = "net", images: int = 4) -> int:
    """Check that a self-test passed; return the instructions that the board counted."""
    expected = (
        rf"{name}: {images} images, all layers and outputs as expected\n{name}: (\d+) instructions for an image\n"
    )
    found = re.fullmatch(expected, done.stdout)
    assert found, done.stdout
    assert (done.stderr, done.returncode) == ("", 0)
    return int(found[1])


@pytest.fixture(scope="module", params=DTYPES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(*TOOLS)
    dtype: ActivationType = request.param
    folder = tmp_path_factory.mktemp(dtype)
    result = export_c(every_kernel(dtype), folder)
    return folder / result.prefix


@pytest.mark.parametrize("cpu", ["cortex-m3", "cortex-m7"])
def test_the_self_test_passes(cpu: str, exported: Path) -> None:
    assert count_of(make("run", exported, cpu), "every_kernel") > 0


def test_a_difference_ends_with_an_error(tmp_path: Path) -> None:
    need(*TOOLS)
    network = every_kernel("uint8")
    export_c(network, tmp_path)
    path = tmp_path / "every_kernel_test.c"
    text = path.read_text()
    start = text.index("expected[IMAGES]")
    first = text.index("    {\n", start) + 6
    number = text[first : text.index(",", first)].strip()
    path.write_text(text[:first] + text[first:].replace(number, str(int(number) + 1), 1))
    done = make("run", tmp_path / "every_kernel", "cortex-m3")
    assert done.returncode != 0
    assert f"image 0: output 0 is {number}, expected {int(number) + 1}\n" in done.stdout


def test_its_size_is_constants_and_a_little_code(exported: Path) -> None:
    from twoscale._codegen.c import SizeReport
    from twoscale._files import read_record

    done = make("size", exported, "cortex-m3")
    text, data, bss, *_ = (int(n) for n in done.stdout.splitlines()[1].split()[:3])
    constants = read_record(exported.parent / "every_kernel_sizes.json", SizeReport).constant_bytes
    assert (data, bss) == (0, 0)
    assert constants < text < constants + 8192


def test_images_of_one_value_are_no_special_case(tmp_path: Path) -> None:
    need(*TOOLS)
    network = every_kernel("int8")
    spec = network.input.output
    images = np.stack([np.full(spec.shape, value, np.int8) for value in (spec.lo, spec.zero_point, spec.hi)])
    export_c(network, tmp_path, inputs=images)
    assert make("run", tmp_path / "every_kernel", "cortex-m7").returncode == 0
