"""Hides instruction sets from every runtime in a process, by another answer of CPUID (hide.c).

Programs execute CPUID to learn which instructions they may use. Here it is found in the libraries that the runtimes
load, and replaced while they are loaded. This needs Linux on x86-64 and objdump, but no help of the processor:
few can fault on CPUID, and virtual ones seldom.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["cpuid_sites", "hidden_environment", "loaded_libraries", "unhidden_libraries"]

_CPUID = b"\x0f\xa2"
_BEFORE = 256
"""Bytes that are disassembled before a possible CPUID; after a wrong start, instructions are soon told apart again."""
_BETWEEN = b"\x90" * 32
_HAS_BYTES, _INSTRUCTIONS = 1, 4  # ELF's SHT_PROGBITS, SHF_EXECINSTR
_HIDE, _SITES = "hide.so", "cpuid-sites.txt"


def loaded_libraries() -> list[Path]:
    """Return the libraries that this process has loaded by now."""
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    found = {line[5] for line in lines if len(line) == 6 and "x" in line[1] and ".so" in line[5]}
    return [Path(name) for name in sorted(found) if Path(name).exists()]


def _executable_parts(elf: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each section of instructions: its offset in the file, its address when loaded at 0, its bytes.

    Segments are not enough, since those that may be executed can contain tables of symbols too.
    """
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    for index in range(count):
        kind, flags, address, offset, length = struct.unpack_from("<IQQQQ", elf, table + index * size + 4)
        if kind == _HAS_BYTES and flags & _INSTRUCTIONS:
            yield offset, address, length


def cpuid_sites(library: Path) -> list[int]:
    """Return the addresses of all CPUID instructions, relative to where the library is loaded.

    Its two bytes can also be part of other instructions, so objdump disassembles what is before them.
    """
    elf = library.read_bytes()
    pieces = bytearray()
    address_at: dict[int, int] = {}  # of what may be a CPUID, by its place in `pieces`
    for offset, address, length in _executable_parts(elf):
        for match in re.finditer(re.escape(_CPUID), elf[offset : offset + length]):
            at = offset + match.start()
            before = elf[max(offset, at - _BEFORE) : at]
            address_at[len(pieces) + len(before)] = address + match.start()
            pieces += before + _CPUID + _BETWEEN
    if not pieces:
        return []
    with tempfile.NamedTemporaryFile() as file:
        file.write(pieces)
        file.flush()
        command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn", file.name]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    decoded = {int(place, 16) for place in re.findall(r"^ *([0-9a-f]+):\s+cpuid", lines, re.MULTILINE)}
    return [address for place, address in address_at.items() if place in decoded]


def hidden_environment(folder: Path, isa: str, libraries: Iterable[Path]) -> dict[str, str]:
    """Return the environment of a process in which CPUID tells of nothing better than ``isa``.

    Args:
        folder: for the library that hides, and the list of instructions.
        isa: "avx512vnni", "avxvnni" or "avx2".
        libraries: those whose CPUID instructions are replaced when the process loads them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hide, sites = folder / _HIDE, folder / _SITES
    source = Path(__file__).with_name("hide.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(hide), str(source)], check=True)
    lines = [f"{site:x} {library.resolve()}\n" for library in libraries for site in cpuid_sites(library)]
    sites.write_text("".join(lines))
    return {**os.environ, "LD_AUDIT": str(hide), "BEST_ISA": isa, "CPUID_SITES": str(sites)}


def unhidden_libraries(folder: Path) -> list[Path]:
    """Return the loaded libraries with a CPUID that is not replaced, without the engine's, which is told what to use.

    Args:
        folder: that of ``hidden_environment``.
    """
    listed = {line.split(maxsplit=1)[1] for line in (folder / _SITES).read_text().splitlines()}
    listed.add(str((folder / _HIDE).resolve()))
    others = (library for library in loaded_libraries() if str(library.resolve()) not in listed)
    return [library for library in others if "twoscale" not in library.parts and cpuid_sites(library)]
