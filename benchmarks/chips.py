"""Count the instructions that exported C takes on microcontrollers and on AArch64, under QEMU: ``make bench-chips``.

An instruction is counted when QEMU's emulated processor executes it; that says nothing of cycles, which depend on the
core and its memory. A figure is a run of 1 + k images less a run of 1, divided by k, so that starting costs nothing.
Programs for microcontrollers are built as examples/cortex-m builds them. ``python -m benchmarks.chips aarch64`` counts
AArch64 alone, and ``cortex-m`` the others; names of targets and of networks, such as ``cortex-m4 resnet8`` or ``aarch64
resnet18``, count only these. The rows of the rest are kept. The records are in benchmarks/results/chips.json.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import twoscale
from twoscale import models
from twoscale._codegen.c import export_c
from twoscale._codegen.targets import WeightsInFlash
from twoscale._files import read_record, write_record

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "cortex-m"
RESULTS = HERE / "results" / "chips.json"
TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm", "cc")
BOARDS = {
    "cortex-m0": "mps2-an385",
    "cortex-m3": "mps2-an385",
    "cortex-m4": "mps2-an386",
    "cortex-m7": "mps2-an500",
    "cortex-m33": "mps2-an505",
    "cortex-m55": "mps3-an547",
}
"""A Cortex-M3 executes all instructions of a Cortex-M0, and counts the same."""
PLACES = {
    "mps2-an505": {"flash_at": 0x10000000, "flash_bytes": 2**22, "ram_at": 0x38000000, "ram_bytes": 2**22},
    "mps3-an547": {"flash_at": 0x10000000, "flash_bytes": 2**19, "ram_at": 0x30000000, "ram_bytes": 2**19},
}
"""Memory of boards that differ from an MPS2, for the linker script."""
OPTIONS = {
    "resnet8": ("-Os", "-O2", "-O3"),
    "resnet20": ("-O2",),
    "dscnn": ("-O2",),
    "mobilenetv1": ("-O2",),
    "autoencoder": ("-O2",),
}
"""Of each network."""
PACKED = {"resnet8": (4, 2)}
"""Bits of weights that are packed, of networks that are counted with them too: ``portable`` on a Cortex-M4, -O2."""
SHAPES = {"dscnn": (1, 49, 10), "mobilenetv1": (3, 96, 96), "autoencoder": (640,)}
"""Of inputs that are not (3, 32, 32)."""
ADAPTED = ("mobilenetv2", "resnet18")
"""Networks so deep that batch norms must take their statistics from the images, so that these reach the last layer."""
TARGETS = {
    "portable": ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7"),
    "small-ram": ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7"),
    "cortex-m4": ("cortex-m4", "cortex-m7"),
    "cortex-m4-small-ram": ("cortex-m4", "cortex-m7"),
    "cortex-m55": ("cortex-m55",),
    "cortex-m55-small-ram": ("cortex-m55",),
}
"""From targets for microcontrollers to the cores that they are counted on."""
WINOGRAD = " --weights-in-flash winograd"
"""Option of export that follows the compiler's, of networks that are counted with it too: ``cortex-m4``, -O2."""
WITH_WINOGRAD = ("resnet8", "resnet20")
AARCH64_TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64", "cc")
LEVELS = {"neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max", "generic": "cortex-a72"}
"""From the targets for AArch64, and the plain C for any processor, to processors, as QEMU names them."""
AARCH64_COMPILERS = {"aarch64-linux-gnu-gcc": (), "clang-19": ("--target=aarch64-linux-gnu",)}
"""With their options."""
AARCH64_OPTIONS = {"resnet8": ("-O2", "-O3"), "resnet20": ("-O2",), "mobilenetv2": ("-O2",), "resnet18": ("-O2",)}
"""Of each network."""
_MORE_IMAGES = 2

_MAIN = """
#include "net.h"

static uint8_t arena[NET_ARENA_BYTES];
static {input} image[NET_INPUT_COUNT];
static {output} output[NET_OUTPUT_COUNT];

int main(void)
{{
    for (int i = 0; i < NET_INPUT_COUNT; i++)
        image[i] = ({input})(i * 37 + i / 96);
    for (int n = 0; n < IMAGES; n++)
        net_run(image, arena, output);
    return output[0] == 123 ? 1 : 0;
}}
"""

_AARCH64_MAIN = """
#include "net.h"

#include <stdlib.h>

static uint8_t arena[NET_ARENA_BYTES];
static {input} image[NET_INPUT_COUNT];
static {output} output[NET_OUTPUT_COUNT];

int main(int count, char **arguments)
{{
    for (int i = 0; i < NET_INPUT_COUNT; i++)
        image[i] = ({input})(i * 37 + i / 96);
    for (int n = 0; n < atoi(arguments[count - 1]); n++)
        net_run(image, NET_INTEGERS, 1, output, arena, NULL, NULL);
    return 0;
}}
"""


@dataclass(frozen=True)
class Row:
    """One figure."""

    network: str
    target: str
    cpu: str
    """As QEMU and the compiler name it."""
    compiler: str
    options: str
    """Of the compiler, and ``WINOGRAD``."""
    macs: int
    """Multiply-adds of one image."""
    instructions: int
    """Of one image."""
    weight_bits: int = 8
    flash_bytes: int | None = None
    """Of code and constants; None where they were not measured."""


@dataclass(frozen=True)
class Results:
    """All figures."""

    qemu: str
    rows: tuple[Row, ...]


def network_of(name: str, bits: int = 8) -> twoscale.IntegerNetwork:
    """Return a model with random weights as an integer network: instructions hardly depend on the weights.

    Args:
        name: of the model.
        bits: of its weights.
    """
    torch.manual_seed(0)
    images = torch.rand(8, *SHAPES.get(name, (3, 32, 32)))
    model = models.create(name)
    if name in ADAPTED:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model(images)
    return twoscale.quantize(model.eval(), [images], name=name, scheme=twoscale.Scheme(weight_bits=bits))


def version_of(tool: str) -> str:
    """Return the first line of what a tool says of itself."""
    return subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


class Counter:
    """Counts instructions; makes its plugin and programs in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugin = folder / "qemu_count.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(self.plugin), str(HERE / "qemu_count.c")]
        subprocess.run(command, check=True)

    def count(self, network: twoscale.IntegerNetwork, target: str, cpu: str, options: str, weight_bits: int = 8) -> Row:
        """Return the instructions of one image. ``weight_bits`` is only recorded."""
        flags = options.removesuffix(WINOGRAD)
        macs = self.export(network, target, "int8" if flags == options else "winograd")
        less, more = (self.run(cpu, flags, images) for images in (1, 1 + _MORE_IMAGES))
        return Row(
            network.name, target, cpu, version_of("arm-none-eabi-gcc"), options, macs,
            round((more - less) / _MORE_IMAGES), weight_bits, self.flash(cpu, flags),
        )  # fmt: skip

    @property
    def program(self) -> Path:
        """The program of the last run."""
        return self.folder / "export" / "program.elf"

    @property
    def blocks(self) -> Path:
        """Of the last run, for each block of instructions its address, how many it has, and how often it ran."""
        return self.folder / "export" / "blocks.txt"

    def export(self, network: twoscale.IntegerNetwork, target: str, weights_in_flash: WeightsInFlash = "int8") -> int:
        """Write the C of a network and a program that runs it; return the multiply-adds of one image."""
        exported = self.folder / "export"
        result = export_c(network, exported, target=target, name="net", weights_in_flash=weights_in_flash)
        types = {"input": f"{network.input.output.dtype}_t", "output": f"{network.spec(network.output).dtype}_t"}
        (exported / "main.c").write_text(_MAIN.format(**types))
        return result.sizes.macs

    def run(self, cpu: str, options: str, images: int) -> int:
        """Compile and run what was exported; return the instructions of all images and of the start."""
        exported = self.folder / "export"
        program, count = self.program, exported / "count.txt"
        places = PLACES.get(BOARDS[cpu], {}).items()
        self.compile(
            cpu, options, *(f"-Wl,--defsym={name}={at}" for name, at in places), f"-DIMAGES={images}",
            "-T", str(EXAMPLE / "mps2.ld"), "-nostartfiles", "--specs=rdimon.specs", "-Wl,--gc-sections",
            "-o", str(program), "net.c", "main.c", str(EXAMPLE / "startup.c"),
        )  # fmt: skip
        count.unlink(missing_ok=True)
        subprocess.run(
            ["qemu-system-arm", "-M", BOARDS[cpu], "-nographic", "-monitor", "none", "-serial", "none",
             "-semihosting-config", "enable=on,target=native", "-plugin",
             f"{self.plugin},out={count},each={self.blocks}", "-d", "plugin", "-kernel", str(program)],
            cwd=exported, check=True, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        return int(count.read_text())

    def compile(self, cpu: str, options: str, *others: str) -> None:
        """Compile in the folder of what was exported."""
        floats = "hard" if cpu == "cortex-m55" else "soft"
        subprocess.run(
            ["arm-none-eabi-gcc", f"-mcpu={cpu}", "-mthumb", f"-mfloat-abi={floats}", *options.split(), "-std=c99",
             "-ffunction-sections", "-fdata-sections", *others],
            cwd=self.folder / "export", check=True,
        )  # fmt: skip

    def flash(self, cpu: str, options: str) -> int:
        """Return the bytes of code and constants of what was exported."""
        self.compile(cpu, options, "-c", "-o", "net.o", "net.c")
        sizes = subprocess.run(
            ["arm-none-eabi-size", "net.o"], cwd=self.folder / "export", check=True, capture_output=True, text=True
        )
        text, data = sizes.stdout.splitlines()[1].split()[:2]
        return int(text) + int(data)

    def count_aarch64(self, network: twoscale.IntegerNetwork, target: str, compiler: str, options: str) -> Row:
        """Return the instructions of one image on AArch64, on the processor for ``target``."""
        exported, cpu = self.folder / f"{network.name}-{target}", LEVELS[target]
        result = export_c(network, exported, target="native" if target == "generic" else target, name="net")
        types = {"input": f"{network.input.output.dtype}_t", "output": f"{network.spec(network.output).dtype}_t"}
        (exported / "main.c").write_text(_AARCH64_MAIN.format(**types))
        defines = ["-DNET_GENERIC"] if target == "generic" else []
        subprocess.run(
            [compiler, *AARCH64_COMPILERS[compiler], *options.split(), "-std=gnu99", "-ffp-contract=off", "-pthread",
             *defines, "-static", "-o", "program", "net.c", "main.c"],
            cwd=exported, check=True,
        )  # fmt: skip
        counts = []
        for images in (1, 1 + _MORE_IMAGES):
            count = exported / "count.txt"
            subprocess.run(
                ["qemu-aarch64", "-cpu", cpu, "-plugin", f"{self.plugin},out={count}", "-d", "plugin", "./program",
                 str(images)],
                cwd=exported, check=True, stdin=subprocess.DEVNULL, timeout=600,
            )  # fmt: skip
            counts.append(int(count.read_text()))
        instructions = round((counts[1] - counts[0]) / _MORE_IMAGES)
        return Row(network.name, target, cpu, version_of(compiler), options, result.sizes.macs, instructions)


def show(row: Row) -> None:
    """Print a row."""
    bits = "" if row.weight_bits == 8 else f", {row.weight_bits} bits"
    print(
        f"{row.network + bits:15} {row.target:19} {row.cpu:10} {row.options}  "
        f"{row.instructions / 1e6:7.2f} M instructions, {row.instructions / row.macs:6.3f} per multiply-add  "
        f"{row.compiler}",
        flush=True,
    )


def require(tools: Sequence[str], packages: str) -> None:
    """Exit if a tool is missing.

    Raises:
        SystemExit: names the tools and the packages of Debian.
    """
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} must be installed (Debian: {packages})")


def count_microcontrollers(counter: Counter, targets: Collection[str], networks: Collection[str]) -> list[Row]:
    """Count what microcontrollers take."""
    rows = []
    for name in networks:
        network = network_of(name)
        for target, cpus in TARGETS.items():
            if target not in targets:
                continue
            for cpu in cpus:
                for options in OPTIONS[name]:
                    rows.append(counter.count(network, target, cpu, options))
                    show(rows[-1])
        for cpu in TARGETS["cortex-m4"] if "cortex-m4" in targets and name in WITH_WINOGRAD else ():
            rows.append(counter.count(network, "cortex-m4", cpu, "-O2" + WINOGRAD))
            show(rows[-1])
        for bits in PACKED.get(name, ()) if "portable" in targets else ():
            rows.append(counter.count(network_of(name, bits), "portable", "cortex-m4", "-O2", bits))
            show(rows[-1])
    return rows


def count_aarch64(counter: Counter, targets: Collection[str], networks: Collection[str]) -> list[Row]:
    """Count what the levels of AArch64 take."""
    rows = []
    for name in networks:
        network = network_of(name)
        for target in targets:
            for compiler in AARCH64_COMPILERS:
                for options in AARCH64_OPTIONS[name]:
                    rows.append(counter.count_aarch64(network, target, compiler, options))
                    show(rows[-1])
    return rows


def updated(old: Sequence[Row], new: Sequence[Row], networks: Sequence[str], targets: Sequence[str]) -> list[Row]:
    """Return the rows of ``targets`` in order, with new figures in the place of old ones."""
    known = {
        (row.network, row.target, row.cpu, row.options, "clang" in row.compiler, row.weight_bits): row
        for row in (*old, *new)
        if row.target in targets
    }
    cpus = [*BOARDS, *LEVELS.values()]
    return sorted(
        known.values(),
        key=lambda row: (
            networks.index(row.network), -row.weight_bits, targets.index(row.target), cpus.index(row.cpu),
            "clang" in row.compiler, row.options,
        ),
    )  # fmt: skip


def chosen(wanted: Collection[str], known: Collection[str], others: Collection[str]) -> list[str]:
    """Return those of ``known`` that the command line names, or all if it names none and none of ``others``."""
    if {*known, *others}.isdisjoint(wanted):
        return list(known)
    return [name for name in known if name in wanted]


def main() -> None:
    """Count everything, or what the command line names, print it and record it."""
    wanted = sys.argv[1:] or ["cortex-m", "aarch64"]
    unknown = set(wanted) - {"cortex-m", "aarch64", *TARGETS, *LEVELS, *OPTIONS, *AARCH64_OPTIONS}
    if unknown:
        raise SystemExit(f"{sorted(unknown)[0]} is no target or network that is counted")
    old = read_record(RESULTS, Results)
    on_aarch64 = not {"aarch64", *LEVELS}.isdisjoint(wanted)
    on_cores = not on_aarch64 or not {"cortex-m", *TARGETS}.isdisjoint(wanted)
    cores, aarch64 = [], []
    with tempfile.TemporaryDirectory() as folder:
        if on_cores:
            require(TOOLS, "gcc-arm-none-eabi, qemu-system-arm")
            cores = count_microcontrollers(
                Counter(Path(folder)), chosen(wanted, TARGETS, LEVELS), chosen(wanted, OPTIONS, AARCH64_OPTIONS)
            )
        if on_aarch64:
            require([*AARCH64_TOOLS, *AARCH64_COMPILERS], "gcc-aarch64-linux-gnu, clang-19, qemu-user")
            aarch64 = count_aarch64(
                Counter(Path(folder)), chosen(wanted, LEVELS, TARGETS), chosen(wanted, AARCH64_OPTIONS, OPTIONS)
            )
    rows = (
        *updated(old.rows, cores, list(OPTIONS), list(TARGETS)),
        *updated(old.rows, aarch64, list(AARCH64_OPTIONS), list(LEVELS)),
    )
    write_record(RESULTS, Results(version_of("qemu-system-arm") if on_cores else old.qemu, rows))


if __name__ == "__main__":
    main()
