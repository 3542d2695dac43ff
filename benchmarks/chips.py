"""Count the instructions that exported C takes on microcontrollers, under QEMU: ``make bench-chips``.

An instruction is counted when QEMU's emulated processor executes it; that says nothing of cycles, which depend on the
core and its memory. A figure is a run of 1 + k images less a run of 1, divided by k, so that starting costs nothing.
Programs are built as examples/cortex-m builds them. The records are in benchmarks/results/chips.json.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import twoscale
from twoscale import models
from twoscale._codegen.c import export_c
from twoscale._files import write_record

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "cortex-m"
RESULTS = HERE / "results" / "chips.json"
TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm", "cc")
BOARDS = {"cortex-m0": "mps2-an385", "cortex-m3": "mps2-an385", "cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500"}
"""A Cortex-M3 executes all instructions of a Cortex-M0, and counts the same."""
OPTIONS = {
    "resnet8": ("-Os", "-O2", "-O3"),
    "resnet20": ("-O2",),
    "dscnn": ("-O2",),
    "mobilenetv1": ("-O2",),
    "autoencoder": ("-O2",),
}
"""Of each network."""
SHAPES = {"dscnn": (1, 49, 10), "mobilenetv1": (3, 96, 96), "autoencoder": (640,)}
"""Of inputs that are not (3, 32, 32)."""
TARGETS = ("portable", "small-ram")
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


@dataclass(frozen=True)
class Row:
    """One figure."""

    network: str
    target: str
    cpu: str
    """As QEMU and the compiler name it."""
    compiler: str
    options: str
    macs: int
    """Multiply-adds of one image."""
    instructions: int
    """Of one image."""


@dataclass(frozen=True)
class Results:
    """All figures."""

    qemu: str
    rows: tuple[Row, ...]


def network_of(name: str) -> twoscale.IntegerNetwork:
    """Return a model with random weights as an integer network: instructions hardly depend on the weights."""
    torch.manual_seed(0)
    images = torch.rand(8, *SHAPES.get(name, (3, 32, 32)))
    return twoscale.quantize(models.create(name).eval(), [images], name=name)


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

    def count(self, network: twoscale.IntegerNetwork, target: str, cpu: str, options: str) -> Row:
        """Return the instructions of one image."""
        exported = self.folder / "export"
        result = export_c(network, exported, target=target, name="net")
        types = {"input": f"{network.input.output.dtype}_t", "output": f"{network.spec(network.output).dtype}_t"}
        (exported / "main.c").write_text(_MAIN.format(**types))
        less, more = (self._run(exported, cpu, options, images) for images in (1, 1 + _MORE_IMAGES))
        return Row(
            network.name, target, cpu, version_of("arm-none-eabi-gcc"), options, result.sizes.macs,
            round((more - less) / _MORE_IMAGES),
        )  # fmt: skip

    def _run(self, exported: Path, cpu: str, options: str, images: int) -> int:
        program, count = exported / "program.elf", exported / "count.txt"
        subprocess.run(
            ["arm-none-eabi-gcc", f"-mcpu={cpu}", "-mthumb", "-mfloat-abi=soft", *options.split(), "-std=c99",
             "-ffunction-sections", "-fdata-sections", f"-DIMAGES={images}", "-T", str(EXAMPLE / "mps2.ld"),
             "-nostartfiles", "--specs=rdimon.specs", "-Wl,--gc-sections", "-o", str(program), "net.c", "main.c",
             str(EXAMPLE / "startup.c")],
            cwd=exported, check=True,
        )  # fmt: skip
        count.unlink(missing_ok=True)
        subprocess.run(
            ["qemu-system-arm", "-M", BOARDS[cpu], "-nographic", "-monitor", "none", "-serial", "none",
             "-semihosting-config", "enable=on,target=native", "-plugin", f"{self.plugin},out={count}", "-d", "plugin",
             "-kernel", str(program)],
            cwd=exported, check=True, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        return int(count.read_text())


def main() -> None:
    """Count everything, print it and record it."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} must be installed (Debian: gcc-arm-none-eabi, qemu-system-arm)")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(Path(folder))
        for name in OPTIONS:
            network = network_of(name)
            for target in TARGETS:
                for cpu in BOARDS:
                    for options in OPTIONS[name]:
                        row = counter.count(network, target, cpu, options)
                        rows.append(row)
                        print(
                            f"{name:9} {target:9} {cpu:9} {options}  {row.instructions / 1e6:7.1f} M instructions, "
                            f"{row.instructions / row.macs:5.2f} per multiply-add",
                            flush=True,
                        )
    write_record(RESULTS, Results(version_of("qemu-system-arm"), tuple(rows)))


if __name__ == "__main__":
    main()
