"""AMX's tile instructions in plain C, so that its kernels can be tested on any processor with AVX-512 VNNI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from twoscale._codegen.targets import InstructionSet
from twoscale._runtimes import processor

__all__ = ["make_runnable"]

_FUNCTIONS = """\
#ifndef EMULATED_AMX
#define EMULATED_AMX
#include <stdint.h>
#include <string.h>
static __thread struct { uint8_t row_bytes[8], rows[8]; int8_t at[8][16][64]; } emulated;

__attribute__((unused)) static void emulated_config(const void *shapes)
{
    const uint8_t *bytes = shapes;

    memset(&emulated, 0, sizeof emulated);
    for (int i = 0; i < 8; i++) {
        emulated.row_bytes[i] = bytes[16 + 2 * i];
        emulated.rows[i] = bytes[48 + i];
    }
}

__attribute__((unused)) static void emulated_loadd(int tile, const void *from, long step)
{
    memset(emulated.at[tile], 0, sizeof emulated.at[tile]);
    for (int row = 0; row < emulated.rows[tile]; row++)
        memcpy(emulated.at[tile][row], (const char *)from + row * step, emulated.row_bytes[tile]);
}

__attribute__((unused)) static void emulated_stored(int tile, void *to, long step)
{
    for (int row = 0; row < emulated.rows[tile]; row++)
        memcpy((char *)to + row * step, emulated.at[tile][row], emulated.row_bytes[tile]);
}

__attribute__((unused)) static void emulated_dot(int to, int a, int b, int signed_a, int signed_b)
{
    for (int row = 0; row < emulated.rows[to]; row++)
        for (int column = 0; column < emulated.row_bytes[to] / 4; column++) {
            int32_t sum;

            memcpy(&sum, &emulated.at[to][row][4 * column], 4);
            for (int k = 0; k < emulated.row_bytes[a]; k++) {
                const int8_t x = emulated.at[a][row][k], w = emulated.at[b][k / 4][4 * column + k % 4];

                sum += (signed_a ? x : (uint8_t)x) * (signed_b ? w : (uint8_t)w);
            }
            memcpy(&emulated.at[to][row][4 * column], &sum, 4);
        }
}
#define emulated_dpbusd(to, a, b) emulated_dot(to, a, b, 0, 1)
#define emulated_dpbsud(to, a, b) emulated_dot(to, a, b, 1, 0)
#define emulated_dpbuud(to, a, b) emulated_dot(to, a, b, 0, 0)
#define emulated_dpbssd(to, a, b) emulated_dot(to, a, b, 1, 1)
#define emulated_release() (void)0
#endif
"""


def make_runnable(isa: InstructionSet, folder: Path, name: str) -> None:
    """Skip the test where this CPU lacks an instruction set. Only AMX is emulated instead.

    Args:
        isa: the instruction set.
        folder: of the exported C.
        name: of the network.
    """
    known = processor.features() or frozenset()
    if known.issuperset(isa.features):
        return
    if not isa.multiplies_matrices or not known.issuperset({*isa.features} - {"amxint8"}):
        pytest.skip(f"this CPU has no {isa.title}")
    kernels, source = folder / f"{name}_kernels.h", folder / f"{name}.c"
    text = kernels.read_text()
    config = '__asm__ volatile("ldtilecfg (%0)" ::"r"(&shapes) : "memory");'
    assert config in text
    kernels.write_text(_FUNCTIONS + text.replace(config, "emulated_config(&shapes);").replace("_tile_", "emulated_"))
    text, count = re.subn(r"\bhas_amx\(\)(?! *\n)", "1", source.read_text())
    assert count
    source.write_text(text)
