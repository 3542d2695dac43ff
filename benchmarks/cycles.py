"""Estimate the cycles of one image on Cortex-M cores, from counted instructions: ``python -m benchmarks.cycles``.

QEMU counts each executed instruction by its address, and the program's disassembly gives its class. A core takes a
number of cycles for each class, and flash adds wait states where the sequence of fetches breaks.
It is a model: it knows nothing of stalls between dependent instructions, of caches, or of data in slow memory. The
record is in benchmarks/results/cycles.json.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import twoscale
from benchmarks.chips import HERE, TOOLS, Counter, network_of, require
from twoscale._files import write_record

RESULTS = HERE / "results" / "cycles.json"
_MULTIPLE = re.compile(r"(ldm|stm|push|pop|vldm|vstm|vpush|vpop)")
_LONG = re.compile(r"[su](mull|mlal|maal)")
_MULTIPLY = re.compile(r"(mul|mla|mls|sml|smu|smmul|smml)")
_BRANCH = re.compile(r"(b|bl|bx|blx|cbz|cbnz|le|dls|wls|tbb|tbh|b(eq|ne|cs|cc|hs|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le))$")
_MEMORY = ("load", "store")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t[0-9a-f]{4}(?: [0-9a-f]{4})?\s+(\S+)(?:\s+(.*))?$", re.M)
CLASSES = (
    "load",
    "next_load",
    "store",
    "multiple",
    "register",
    "multiply",
    "long_multiply",
    "divide",
    "branch",
    "vector",
    "other",
)
"""Of instructions. "next_load" is a load or store directly after another. "register" counts the registers that
instructions of the class "multiple" load or store."""


@dataclass(frozen=True)
class Core:
    """Cycles of each class; a class that is not named takes one."""

    cpu: str
    """As QEMU and the compiler name it."""
    target: str
    """Of export."""
    cycles: Mapping[str, float]
    source: str
    """Where the cycles come from."""
    disassembly: tuple[str, ...] = ()
    """Options of objdump, where the program alone does not say all of its instructions."""


_M4 = {"load": 2.0, "branch": 3.0, "divide": 7.0}
CORES = {
    "Cortex-M0+": Core(
        "cortex-m0", "portable", {"load": 2.0, "next_load": 2.0, "store": 2.0, "branch": 2.0},
        "two-stage pipeline, multiplication in one cycle, branches taken",
    ),
    "Cortex-M3": Core(
        "cortex-m3", "portable", _M4 | {"multiply": 1.5, "long_multiply": 4.5},
        "three-stage pipeline, branches taken with two cycles to refill; MLA takes 2, MUL 1",
    ),
    "Cortex-M4": Core("cortex-m4", "cortex-m4", _M4, "as Cortex-M3; all multiplications in one cycle"),
    "Cortex-M33": Core("cortex-m33", "cortex-m4", _M4, "as Cortex-M4"),
    "Cortex-M7": Core(
        "cortex-m7", "cortex-m4",
        {
            **dict.fromkeys(("load", "next_load", "store", "multiply", "long_multiply"), 0.75),
            "other": 0.6,
            "divide": 7.0,
        },
        "two issues per cycle, which four of five other instructions and half of the rest are taken to use; "
        "branches predicted",
    ),
    "Cortex-M55": Core(
        "cortex-m55", "cortex-m55", {"vector": 2.0, "branch": 1.5, "divide": 7.0},
        "two beats of a vector per cycle, scalar loads in one cycle, branches predicted half of the time",
        ("-m", "armv8.1-m.main"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A result of MLPerf Tiny for the same network with other software."""

    board: str
    core: str
    megahertz: float
    milliseconds: float

    @property
    def cycles(self) -> float:
        """Of one image."""
        return self.megahertz * self.milliseconds * 1e3


PUBLISHED = {
    "resnet8": (
        Published("STM32 L4R5", "Cortex-M4", 120, 165),
        Published("STM32 H7A3", "Cortex-M7", 280, 40.8),
    )
}


@dataclass(frozen=True)
class Estimate:
    """One figure."""

    network: str
    core: str
    target: str
    instructions: int
    """Of one image."""
    classes: dict[str, int] = field(default_factory=dict)
    """How many of them are of each class; "register" is not one of them."""
    cycles: int = 0
    """With flash that has no wait states."""


def class_of(mnemonic: str) -> str:
    """Return the class of an instruction, without regard to its neighbours."""
    name = mnemonic.lower().split(".")[0]
    checks = (
        ("multiple", _MULTIPLE.match(name) is not None),
        ("branch", _BRANCH.match(name) is not None),
        ("vector", name.startswith("v")),
        ("load", name.startswith("ldr")),
        ("store", name.startswith("str")),
        ("divide", name.startswith(("sdiv", "udiv"))),
        ("long_multiply", _LONG.match(name) is not None),
        ("multiply", _MULTIPLY.match(name) is not None),
    )
    return next((kind for kind, holds in checks if holds), "other")


def registers_of(operands: str) -> int:
    """Return how many registers a list such as "{r4-r7, lr}" holds."""
    listed = re.search(r"\{(.*)\}", operands)
    count = 0
    for part in listed[1].split(",") if listed else ():
        first, _, last = part.strip().partition("-")
        numbers = [int(re.sub(r"\D", "", name) or 0) for name in (first, last or first)]
        count += max(1, numbers[1] - numbers[0] + 1)
    return count


def classes_of(listing: str, blocks: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    """Return how often each class was executed.

    Args:
        listing: disassembly by objdump, with one instruction per line.
        blocks: address, number of instructions, and how often they ran, of each block.
    """
    shown = [(int(m[1], 16), m[2], m[3] or "") for m in _INSTRUCTION.finditer(listing)]
    index = {address: place for place, (address, _, _) in enumerate(shown)}
    found: Tally[str] = Tally()
    for address, size, runs in blocks:
        if not runs or address not in index:
            continue
        before = ""
        for _, mnemonic, operands in shown[index[address] : index[address] + size]:
            kind = class_of(mnemonic)
            if kind == "multiple":
                found["register"] += runs * registers_of(operands)
            found["next_load" if kind in _MEMORY and before in _MEMORY else kind] += runs
            before = kind
    return {kind: found[kind] for kind in CLASSES if found[kind]}


def estimate(core: Core, classes: Mapping[str, int], wait_states: int = 0) -> int:
    """Return the cycles of instructions.

    Args:
        core: which cycles each class takes.
        classes: how many of each.
        wait_states: of the flash, paid once for each branch, whose target no prefetch has read.
    """
    total = sum(core.cycles.get(kind, 1.0) * count for kind, count in classes.items())
    return round(total + wait_states * classes.get("branch", 0))


def measure(counter: Counter, network: twoscale.IntegerNetwork, name: str) -> Estimate:
    """Return the estimate for one image, with the classes of its instructions."""
    core = CORES[name]
    counter.export(network, core.target)
    counts: list[dict[str, int]] = []
    for images in (2, 4):
        counter.run(core.cpu, "-O2", images)
        command = ["arm-none-eabi-objdump", *core.disassembly, "-d", str(counter.program)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        numbers = [line.split() for line in counter.blocks.read_text().splitlines()]
        blocks = [(int(address), int(size), int(runs)) for address, size, runs in numbers]
        counts.append(classes_of(listing, blocks))
    less, more = counts
    classes = {kind: round((more.get(kind, 0) - less.get(kind, 0)) / 2) for kind in CLASSES if kind in more}
    instructions = sum(count for kind, count in classes.items() if kind != "register")
    return Estimate(network.name, name, core.target, instructions, classes, estimate(core, classes))


def main() -> None:
    """Estimate the networks that the command line names, by default ResNet-8."""
    require([*TOOLS, "arm-none-eabi-objdump"], "gcc-arm-none-eabi, qemu-system-arm")
    estimates = []
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(Path(folder))
        for network in sys.argv[1:] or ["resnet8"]:
            made = network_of(network)
            for name in CORES:
                found = measure(counter, made, name)
                estimates.append(found)
                print(
                    f"{network:11} {name:11} {found.target:10} {found.instructions / 1e6:7.2f} M instructions "
                    f"{found.cycles / 1e6:7.2f} M cycles"
                )
                for known in PUBLISHED.get(network, ()):
                    if known.core == name:
                        print(f"    {known.board}: {known.cycles / 1e6:.2f} M cycles with other software")
    write_record(RESULTS, tuple(estimates))


if __name__ == "__main__":
    main()
