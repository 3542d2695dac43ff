"""The features of this machine's processor."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from twoscale._codegen.targets import GENERIC, InstructionSet, Target

__all__ = ["features", "instruction_sets"]


@functools.cache
def features() -> frozenset[str] | None:
    """Return the features of this processor by the names that compilers use, such as "avx512vnni".

    None where the system does not list them (outside Linux).
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].replace("_", "").split())
    return None


def instruction_sets(target: Target) -> Sequence[InstructionSet]:
    """Return the instruction set of the target that is the best on this machine; all of them where its features are not
    known."""
    known = features()
    if known is None:
        return target.instruction_sets
    return [next((isa for isa in target.instruction_sets if known.issuperset(isa.features)), GENERIC)]
