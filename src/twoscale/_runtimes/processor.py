"""The features of this machine's processor."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

from twoscale._codegen.targets import GENERIC, InstructionSet, Target
from twoscale._environment import this_platform

__all__ = ["features", "instruction_sets"]


@functools.cache
def features() -> frozenset[str] | None:
    """Return the features of this processor by the names that compilers use, such as "avx512vnni".

    None where the system does not list them (outside Linux). AMX is left out if Linux does not grant it to this
    process.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(("flags", "Features")):
            found = frozenset(line.split(":", 1)[1].replace("_", "").split())
            return found if "amxint8" in found and _may_use_amx() else found - {"amxtile", "amxint8"}
    return None


def _may_use_amx() -> bool:
    """Ask Linux for AMX's registers, as the C does. The answer holds for this process and its threads."""
    if this_platform() != "linux x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # numbers of the system call and its arguments
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, ctypes.c_long(tile_data)) == 0)


def instruction_sets(target: Target) -> Sequence[InstructionSet]:
    """Return the instruction set of the target that is the best on this machine; all of them where its features are not
    known."""
    known = features()
    if known is None:
        return target.instruction_sets
    return [next((isa for isa in target.instruction_sets if known.issuperset(isa.features)), GENERIC)]
