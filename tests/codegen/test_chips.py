"""Instruction counts of exported C equal those of the record, so a slower kernel is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chips import (
    AARCH64_TOOLS,
    LEVELS,
    RESULTS,
    TARGETS,
    TOOLS,
    Counter,
    Results,
    Row,
    network_of,
)
from tests.codegen.compiling import need
from twoscale._files import read_record
from twoscale._ir.integer_network import IntegerNetwork

RECORD = read_record(RESULTS, Results)
RESNET8 = [row for row in RECORD.rows if row.network == "resnet8" and row.options == "-O2"]
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
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.target}-{row.cpu}")
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
