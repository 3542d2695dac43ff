"""The machine that this process runs on, as results record it."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = ["VERSION", "Environment", "current_environment"]

VERSION = "0.1.0"
"""Of twoscale."""


@dataclass(frozen=True)
class Environment:
    """Where a result was made."""

    date: str
    """UTC, ISO 8601, to the second."""
    machine: str
    """Processor or accelerator name."""
    cores: int
    python: str
    versions: dict[str, str]
    """Package name to version."""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def current_environment(*packages: str) -> Environment:
    """Describe this machine, and the installed versions of twoscale, torch, numpy and ``packages``."""
    versions = {}
    for package in ("twoscale", "torch", "numpy", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        python=platform.python_version(),
        versions=versions,
    )
