"""Instruction counts of exported C equal those of the record, so a slower kernel is noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.chips import (
    AARCH64_TOOLS,
    LEVELS,
    RESULTS,
    TARGETS,
    TOOLS,
    WINOGRAD,
    Counter,
    Results,
    Row,
    network_of,
)
from tests.codegen.compiling import need
from twoscale._files import read_record
from twoscale._ir.integer_network import IntegerNetwork

RECORD = read_record(RESULTS, Results)
RESNET8 = [
    row
    for row in RECORD.rows
    if (row.network, row.weight_bits) == ("resnet8", 8) and row.options.removesuffix(WINOGRAD) == "-O2"
]
ROWS = [row for row in RESNET8 if row.target in TARGETS and row.cpu != "cortex-m7"]
AARCH64 = [row for row in RESNET8 if row.target in LEVELS and "clang" not in row.compiler]


@pytest.fixture(scope="module")
def network() -> IntegerNetwork:
    return network_of("resnet8")


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Counter:
    need(*TOOLS)
    return Counter(tmp_path_factory.mktemp("chips"))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.target}-{row.cpu}{row.options[3:]}")
def test_resnet8_takes_as_many_instructions_as_recorded(row: Row, network: IntegerNetwork, counter: Counter) -> None:
    found = counter.count(network, row.target, row.cpu, row.options)
    if found.compiler != row.compiler:
        pytest.skip(f"the record is of {row.compiler}, and here is {found.compiler}")
    assert found.macs == row.macs
    assert found.instructions == pytest.approx(row.instructions, rel=0.03)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("row", AARCH64, ids=lambda row: row.target)
def test_resnet8_takes_as_many_instructions_on_aarch64(row: Row, network: IntegerNetwork, tmp_path: Path) -> None:
    need(*AARCH64_TOOLS)
    found = Counter(tmp_path).count_aarch64(network, row.target, "aarch64-linux-gnu-gcc", row.options)
    if found.compiler != row.compiler:
        pytest.skip(f"the record is of {row.compiler}, and here is {found.compiler}")
    assert (found.macs, found.cpu) == (row.macs, row.cpu)
    assert found.instructions == pytest.approx(row.instructions, rel=0.03)


def test_the_record_holds_every_level_of_aarch64() -> None:
    assert [row.target for row in AARCH64] == list(LEVELS)


def test_each_compiler_makes_c_of_o3_at_least_as_short_as_of_o2() -> None:
    """So Makefiles of all vector targets use -O3. gcc once took twice as many instructions for plain C."""
    found = {
        (row.target, row.compiler, row.options): row.instructions for row in RECORD.rows if row.network == "resnet8"
    }
    for (target, compiler, options), instructions in found.items():
        if target in LEVELS and options == "-O3":
            assert instructions <= 1.01 * found[target, compiler, "-O2"], (target, compiler)


def test_the_record_holds_every_target_and_core() -> None:
    assert {(row.target, row.cpu) for row in ROWS} == {
        (target, cpu) for target, cpus in TARGETS.items() for cpu in cpus if cpu != "cortex-m7"
    }


def test_a_kernel_that_is_slower_shows(
    network: IntegerNetwork, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: one multiply-add at a time, as without tiles."""
    read_text = Path.read_text

    def slower(path: Path, *arguments: str, **options: str) -> str:
        text = read_text(path, *arguments, **options)
        return text.replace("run & ~7", "run & 0").replace("rest = run & 7", "rest = run")

    monkeypatch.setattr(Path, "read_text", slower)
    row = next(row for row in ROWS if (row.target, row.cpu) == ("portable", "cortex-m3"))
    assert counter.count(network, row.target, row.cpu, row.options).instructions > 1.03 * row.instructions


NAMES = {
    "ResNet-8": "resnet8",
    "ResNet-20": "resnet20",
    "DS-CNN": "dscnn",
    "MobileNetV1 0.25, 96×96": "mobilenetv1",
    "autoencoder, 640 wide": "autoencoder",
}
"""Of networks in docs/c.md."""


def in_millions(row: Row, digits: int, each: int) -> str:
    return f"{row.instructions / 1e6:.{digits}f} ({row.instructions / row.macs:.{each}f})"


def test_the_tables_of_the_document_are_those_of_the_record() -> None:
    text = (Path(__file__).parents[2] / "docs" / "c.md").read_text()
    counted = {(row.network, row.target, row.cpu, row.options): row for row in RECORD.rows if row.weight_bits == 8}
    found = re.findall(r"^\| (.+), `([\w-]+)`, `(-O\w)` \|(.*)\|$", text, re.M)
    assert len(found) > 15
    for name, target, options, cells in found:
        for cpu, cell in zip(("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7"), cells.split("|"), strict=True):
            row = counted.get((NAMES[name], target, cpu, options))
            digits = 1 if row is None or row.instructions >= 1e6 else 2
            assert cell.strip() == ("" if row is None else in_millions(row, digits, 2)), (name, target, cpu)
    for name, network in NAMES.items():
        cells = [
            in_millions(counted[network, target, "cortex-m55", "-O2"], 2, 3)
            for target in ("cortex-m55", "cortex-m55-small-ram")
        ]
        assert f"| {name} | {' | '.join(cells)} |" in text
    whole = counted["resnet8", "portable", "cortex-m4", "-O2"]
    for row in (whole, *(row for row in RECORD.rows if row.weight_bits != 8)):
        assert row.flash_bytes is not None
        assert whole.flash_bytes is not None
        share = f"{100 * row.flash_bytes / whole.flash_bytes:.1f}" if row != whole else "100"
        line = f"| {row.weight_bits} bits | {row.flash_bytes:,} bytes | {share} % | {row.instructions / 1e6:.2f} |"
        assert line in text
    for name in ("ResNet-8", "ResNet-20"):
        for weights, options in (("int8", "-O2"), ("winograd", "-O2" + WINOGRAD)):
            cells = [counted[NAMES[name], "cortex-m4", cpu, options] for cpu in ("cortex-m4", "cortex-m7")]
            counts = " | ".join(in_millions(row, 1, 2) for row in cells)
            assert f"| {name}, `{weights}` | {cells[0].flash_bytes:,} bytes | {counts} |" in text
