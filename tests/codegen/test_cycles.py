"""The estimate of cycles: classes of instructions, the model's sums, and the record."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks import chips, cycles
from twoscale._files import read_record

LISTING = """
00000000 <kernel>:
   0:\tb5f0      \tpush\t{r4, r5, r6, r7, lr}
   2:\te8bd 8ff0 \tldmia.w\tsp!, {r4-r11, pc}
   6:\t6803      \tldr\tr3, [r0, #0]
   8:\t684c      \tldr\tr4, [r1, #4]
   a:\tfb23 4205 \tsmlad\tr2, r3, r5, r4
   e:\tfb83 4505 \tsmull\tr4, r5, r3, r5
  12:\t3101      \tadds\tr1, #1
  14:\td1f7      \tbne.n\t6 <kernel+0x6>
"""
RECORD = msgspec.json.decode(cycles.RESULTS.read_bytes(), type=tuple[cycles.Estimate, ...])


def test_executed_instructions_are_classed() -> None:
    found = cycles.classes_of(LISTING, [(0, 2, 1), (6, 6, 10), (0x5000, 3, 9), (0x12, 2, 0)])
    assert found == {
        "load": 10, "next_load": 10, "multiple": 2, "register": 14, "multiply": 10, "long_multiply": 10, "branch": 10,
        "other": 10,
    }  # fmt: skip


def test_the_estimate_is_a_sum() -> None:
    core = cycles.CORES["Cortex-M4"]
    classes = {"load": 10, "next_load": 5, "multiply": 7, "branch": 4, "other": 3}
    assert cycles.estimate(core, classes) == 20 + 5 + 7 + 12 + 3
    assert cycles.estimate(core, classes, wait_states=2) == 47 + 8


@pytest.mark.parametrize("mnemonic", ["b.n", "bl", "bx", "cbnz", "beq.n", "bls.w", "le"])
def test_branches(mnemonic: str) -> None:
    assert cycles.class_of(mnemonic) == "branch"


@pytest.mark.parametrize("mnemonic", ["bic.w", "bfi", "lsls", "bics", "sxtb16", "sbfx"])
def test_other_instructions(mnemonic: str) -> None:
    assert cycles.class_of(mnemonic) == "other"


def test_the_record_counts_as_many_instructions_as_the_other() -> None:
    counted = {
        (row.target, row.cpu): row.instructions
        for row in read_record(chips.RESULTS, chips.Results).rows
        if (row.network, row.options, row.weight_bits) == ("resnet8", "-O2", 8)
    }
    assert [row.core for row in RECORD] == list(cycles.CORES)
    for row in RECORD:
        core = cycles.CORES[row.core]
        assert row.cycles == cycles.estimate(core, row.classes)
        assert row.instructions == sum(count for kind, count in row.classes.items() if kind != "register")
        if core.cpu != "cortex-m33":
            assert row.instructions == pytest.approx(counted[core.target, core.cpu], rel=0.01)
