"""benchmarks/peers/hide.py hides instruction sets from the libraries that it is told of, and from no others."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.hide import cpuid_sites, hidden_environment

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("objdump") is None,
    reason="needs Linux on x86-64 with objdump",
)
_SOURCE = """
#include <cpuid.h>
unsigned at_start;
unsigned features(void)
{
    unsigned a, b, c, d;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    return b;
}
unsigned no_cpuid(unsigned x) { return x + 0xa20f; }
const unsigned char data[] = {0x0f, 0xa2};
__attribute__((constructor)) static void begin(void) { at_start = features(); }
"""
_PROGRAM = """
import ctypes, sys
for path in sys.argv[1:]:
    library = ctypes.CDLL(path)
    found = library.features() & 0xffffffff, ctypes.c_uint.in_dll(library, "at_start").value, library.no_cpuid(1)
    print(*found)
"""
_COMPILE = ("cc", "-O2", "-shared", "-fPIC", "-Wl,-z,noseparate-code")  # data and instructions in one segment
_AVX512, _AVX2 = 0xDC230000, 1 << 5


def test_cpuid_answers_without_what_is_hidden(tmp_path: Path) -> None:
    libraries = [tmp_path / name for name in ("hidden.so", "other.so")]
    (tmp_path / "features.c").write_text(_SOURCE)
    for library in libraries:
        subprocess.run([*_COMPILE, "-o", library, tmp_path / "features.c"], check=True)
    bytes_of_cpuid = libraries[0].read_bytes().count(b"\x0f\xa2")
    assert 0 < len(cpuid_sites(libraries[0])) < bytes_of_cpuid  # one of them is a constant

    environment = hidden_environment(tmp_path, "avx2", libraries[:1])
    lines = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *libraries], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    hidden, other = ([int(number) for number in line.split()] for line in lines)
    assert hidden == [other[0] & ~_AVX512, other[0] & ~_AVX512, 0xA20F + 1]
    assert other[0] == other[1]
    assert hidden[0] & _AVX2 == other[0] & _AVX2
