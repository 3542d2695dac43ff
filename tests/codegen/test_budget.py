"""Flash and RAM of exported C: figures that compiled programs keep, and budgets that refuse what does not fit."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chips import network_of
from tests import sweep
from tests.codegen.compiling import DTYPES, every_kernel, need
from tests.integer_networks import OF_ATTENTION, ActivationType, random_network
from twoscale._cli.export import export_command
from twoscale._codegen.c import Budget, export_c, fitting_target, sizes_of
from twoscale._codegen.c.budget import ALTERNATIVES
from twoscale._codegen.c.cortex_m.kernels import HELIUM
from twoscale._codegen.c.portable.footprint import KERNEL_COSTS
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError

CORES = {
    "portable": ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m55"),
    "small-ram": ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m55"),
    "cortex-m4": ("cortex-m4", "cortex-m33"),
    "cortex-m4-small-ram": ("cortex-m4", "cortex-m33"),
    "cortex-m55": ("cortex-m55",),
    "cortex-m55-small-ram": ("cortex-m55",),
}
CASES = [(target, core) for target, cores in CORES.items() for core in cores]


def compiled(folder: Path, core: str) -> tuple[int, int]:
    """Return the flash of net.c on a core, and the stack of its largest chain of calls if each calls all others."""
    need("arm-none-eabi-gcc")
    floats = "hard" if core == "cortex-m55" else "soft"
    subprocess.run(
        ["arm-none-eabi-gcc", f"-mcpu={core}", "-mthumb", f"-mfloat-abi={floats}", "-O2", "-std=c99", "-fstack-usage",
         "-c", "net.c"],
        cwd=folder, check=True,
    )  # fmt: skip
    size = subprocess.run(["arm-none-eabi-size", "net.o"], cwd=folder, capture_output=True, text=True, check=True)
    text, data, bss = map(int, size.stdout.splitlines()[1].split()[:3])
    assert data in (0, 4)  # a volatile constant of the kernels for the DSP extension
    assert bss == 0
    used = {line.split("\t")[0].rsplit(":", 1)[1]: int(line.split("\t")[1]) for line in _usage(folder)}
    return text + data, chain(used, (folder / "net.c").read_text().replace("#endif\n{", "{"))


def _usage(folder: Path) -> list[str]:
    return (folder / "net.su").read_text().splitlines()


def chain(used: dict[str, int], source: str) -> int:
    """Return the stack of the deepest chain of calls; a function calls those whose names are in its text."""
    frames: dict[str, int] = {}
    for name, size in used.items():
        base = name.split(".")[0]
        frames[base] = max(frames.get(base, 0), size)
    bodies = {
        match[1]: match[2] for match in re.finditer(r"^\w[^;{}=#]*?(\w+)\([^;{}]*\)\n\{(.*?)^\}", source, re.M | re.S)
    }

    def deepest(name: str) -> int:
        called = set(re.findall(r"(\w+)\(", bodies[name])) & set(bodies) - {name}
        return frames.get(name, 0) + max((deepest(other) for other in called), default=0)

    return deepest("net_run")


def keeps_its_figures(network: IntegerNetwork, target: str, core: str, folder: Path) -> None:
    sizes = export_c(network, folder, target=target, name="net").sizes
    flash, stack = compiled(folder, core)
    assert sizes.footprint is not None
    assert flash <= sizes.flash_bytes <= 1.15 * flash + 5000
    assert stack <= sizes.footprint.stack_bytes <= 1.3 * stack + 1500


@pytest.mark.skipif(not sweep.whole(), reason="it takes half a minute: pytest --sweep all")
def test_compiled_resnet8_takes_what_the_report_says(tmp_path: Path) -> None:
    network = network_of("resnet8")
    for target, core in CASES:
        keeps_its_figures(network, target, core, tmp_path)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("target", "core"), CASES)
def test_compiled_kernels_take_what_the_report_says(
    target: str, core: str, dtype: ActivationType, tmp_path: Path
) -> None:
    keeps_its_figures(every_kernel(dtype), target, core, tmp_path)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("target", "core"), CASES)
def test_attention_takes_what_the_report_says(target: str, core: str, seed: int, tmp_path: Path) -> None:
    operators = {*OF_ATTENTION, "conv", "linear"}
    network = random_network(np.random.default_rng(seed), operators=operators, length=14)
    keeps_its_figures(network, target, core, tmp_path)


def test_every_cost_is_of_a_kernel() -> None:
    assert set(KERNEL_COSTS) <= {kernel.name for kernel in HELIUM.kernels}


def test_every_target_for_microcontrollers_has_alternatives() -> None:
    assert set(ALTERNATIVES) == set(CORES)


def test_a_budget_that_is_kept_changes_nothing(tmp_path: Path) -> None:
    network = every_kernel("uint8")
    sizes = sizes_of(network, "portable")
    export_c(network, tmp_path / "a")
    export_c(network, tmp_path / "b", max_ram=sizes.ram_bytes, max_flash=sizes.flash_bytes)
    for path in (tmp_path / "a").iterdir():
        assert path.read_text() == (tmp_path / "b" / path.name).read_text()


@pytest.fixture(scope="module")
def lab() -> IntegerNetwork:
    """A network whose arena is smaller row by row."""
    rng = np.random.default_rng(0)
    return random_network(
        rng, operators={"conv", "residual"}, length=6, image_shape=(3, 32, 32), dtype="uint8", name="lab"
    )


def test_one_byte_too_little_is_refused(lab: IntegerNetwork, tmp_path: Path) -> None:
    sizes = sizes_of(lab, "small-ram")
    with pytest.raises(ConfigurationError, match=r"^lab takes .* of RAM .*, 1 more than the .* allowed with target"):
        export_c(lab, tmp_path / "out", target="small-ram", max_ram=sizes.ram_bytes - 1)
    with pytest.raises(ConfigurationError, match=r"of flash \(constants .*, code .*\), 1 more than"):
        export_c(lab, tmp_path / "out", target="small-ram", max_flash=sizes.flash_bytes - 1)
    assert not (tmp_path / "out").exists()


def test_the_message_names_the_target_that_fits(lab: IntegerNetwork, tmp_path: Path) -> None:
    small = sizes_of(lab, "small-ram")
    fitting = f"target small-ram fits: {small.ram_bytes:,} bytes of RAM and {small.flash_bytes:,} of flash"
    with pytest.raises(ConfigurationError, match=fitting):
        export_c(lab, tmp_path, max_ram=small.ram_bytes)
    assert fitting_target(lab, Budget(ram=small.ram_bytes)) == "small-ram"
    assert fitting_target(lab, Budget(ram=sizes_of(lab, "portable").ram_bytes)) == "portable"


def test_the_message_names_what_no_target_can_save(lab: IntegerNetwork, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no target takes less RAM than small-ram with [\d,]+ bytes, most of"):
        export_c(lab, tmp_path, max_ram=1000)
    with pytest.raises(
        ConfigurationError, match=r"weights of 4 bits in half a byte, .* need fewer weights or bits first: logits 9,228"
    ):
        fitting_target(lab, Budget(flash=12_000))
    with pytest.raises(ConfigurationError, match=r"of RAM .* and .* of flash .*"):
        export_c(lab, tmp_path, max_ram=1000, max_flash=1000)


def test_the_command_refuses_before_it_writes(tmp_path: Path) -> None:
    every_kernel("uint8").save(tmp_path / "net.onnx")
    with pytest.raises(ConfigurationError, match="bytes of RAM"):
        export_command(tmp_path / "net.onnx", tmp_path / "out", max_ram="1K")
    with pytest.raises(ConfigurationError, match="--max-flash is much; expected a size such as"):
        export_command(tmp_path / "net.onnx", tmp_path / "out", max_flash="much")
    with pytest.raises(ConfigurationError, match="are for C on microcontrollers"):
        export_command(tmp_path / "net.onnx", tmp_path / "out.onnx", to="qdq", max_flash="1M")
    with pytest.raises(ConfigurationError, match="max_ram and max_flash are for microcontrollers; expected target"):
        export_command(tmp_path / "net.onnx", tmp_path / "out", target="native", max_ram="1M")
    assert not (tmp_path / "out").exists()
    export_command(tmp_path / "net.onnx", tmp_path / "out", max_ram="64K", max_flash="64K")
    assert (tmp_path / "out" / "every_kernel.c").exists()
