"""The version of twoscale, and what this process runs on: processor, cores, load, memory, GPUs, installed packages."""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

__all__ = [
    "VERSION",
    "Environment",
    "available_cores",
    "core_count",
    "current_environment",
    "gpu_count",
    "gpu_name",
    "gpu_names",
    "load_average",
    "machine_core_count",
    "memory_bytes",
    "peak_resident_bytes",
    "processor_name",
    "require_posix",
    "this_platform",
]

VERSION = "0.2.0"
"""Version of twoscale. It is written only here."""

POSIX = os.name == "posix"
"""Whether this system has process groups, signals and resource limits: not Windows."""


@dataclass(frozen=True)
class Environment:
    """The machine and the packages with which a result was made."""

    date: str
    """UTC, ISO 8601, to the second."""
    machine: str
    """Processor or accelerator name."""
    cores: int
    """Cores that the process may use."""
    python: str
    versions: dict[str, str]
    """From package name to version."""


def collect_seldom() -> None:
    """Look for unreachable cycles seldom in this process.

    Importing torch makes a million objects that live until the end. To look through them again and again takes a sixth
    of the time that the import takes.
    """
    gc.set_threshold(50_000, 20, 20)


def available_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use, in ascending order.

    Outside Linux these are all cores of the machine, and the numbers cannot be used for pinning.
    """
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(machine_core_count()))


def machine_core_count() -> int:
    """Return how many cores the machine has, at least 1; a process may be allowed fewer."""
    return os.cpu_count() or 1


def core_count() -> int:
    """Return how many cores this process may use, at least 1."""
    return len(available_cores())


def load_average() -> tuple[float, float, float] | None:
    """Return the mean number of running processes over the last 1, 5 and 15 minutes; None if the system does not
    count."""
    if not hasattr(os, "getloadavg"):
        return None
    one, five, fifteen = (round(value, 2) for value in os.getloadavg())
    return one, five, fifteen


def peak_resident_bytes() -> int | None:
    """Return the peak resident set of this process in bytes; None on Windows, which does not count it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): bytes on macOS, KiB elsewhere


def require_posix(what: str) -> None:
    """Check that this system is POSIX.

    Raises:
        ConfigurationError: it is Windows.
    """
    if not POSIX:
        raise ConfigurationError(f"{what} needs Linux or macOS; on Windows, use the Windows Subsystem for Linux")


def memory_bytes() -> int | None:
    """Return the bytes of memory that this process may use: the machine's, or its container's limit if that is less.

    None if neither is known.
    """
    found = []
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    from pathlib import Path

    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # "max" where there is no limit
            found.append(int(text))
    return min(found, default=None)


def available_memory_bytes() -> int | None:
    """Return the bytes of memory that are free, or that the system can free at once; None if that is not known."""
    from pathlib import Path

    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    limit = memory_bytes()
    return min(found if limit is None else [*found, limit], default=None)


def processor_name() -> str:
    """Return the model name of the processor, or else its architecture."""
    from pathlib import Path

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()


def this_platform() -> str:
    """Return the system and the architecture that a library is compiled for, such as "linux x86_64"."""
    import platform

    return f"{sys.platform} {platform.machine()}"


def gpu_count() -> int:
    """Return how many GPUs PyTorch can use; imports torch."""
    import torch

    return torch.cuda.device_count()


def gpu_name(device: torch.device | int | None = None) -> str:
    """Return the name of a GPU, by default of the current one; imports torch."""
    import torch

    return torch.cuda.get_device_name(device)


def gpu_names() -> tuple[str, ...]:
    """Return the names of the GPUs that PyTorch can use; torch is imported only if there is a driver."""
    from pathlib import Path

    if not any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return ()
    return tuple(gpu_name(index) for index in range(gpu_count()))


def current_environment(*packages: str) -> Environment:
    """Describe this machine, and the installed versions of twoscale, torch, numpy and ``packages``."""
    import datetime
    import platform
    from importlib import metadata

    versions = {"twoscale": VERSION}
    for package in ("torch", "numpy", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=processor_name(),
        cores=core_count(),
        python=platform.python_version(),
        versions=versions,
    )
