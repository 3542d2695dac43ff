"""One module asks the system about the machine, and the version is written in one place."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import twoscale
from twoscale._environment import VERSION, available_cores, core_count, current_environment, load_average

ROOT = Path(__file__).parents[1]
OF_THE_MACHINE = re.compile(
    r"sched_getaffinity|cpu_count|getloadavg|platform\.(processor|machine|python_version)\(|device_count|get_device_name"
)


def askers(files: list[Path]) -> list[str]:
    """Return the files that ask the system about cores, load, processor or GPUs themselves."""
    return sorted(file.name for file in files if OF_THE_MACHINE.search(file.read_text()))


def test_environment() -> None:
    found = current_environment("onnx", "no-such-package")
    assert {"twoscale", "torch", "numpy", "onnx"} == set(found.versions)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found.date)
    assert found.machine
    assert found.cores >= 1
    assert found.versions["twoscale"] == VERSION == twoscale.__version__


def test_one_module_asks_about_the_machine(tmp_path: Path) -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(files) > 150
    assert askers(files) == ["_environment.py"]
    planted = tmp_path / "planted.py"
    for fault in ("import os\n\ncores = os.cpu_count()\n", "import torch\n\nname = torch.cuda.get_device_name(0)\n"):
        planted.write_text(fault)
        assert askers([planted]) == ["planted.py"]


def test_cores_are_those_that_this_process_may_use() -> None:
    cores = available_cores()
    assert core_count() == len(cores) == len(set(cores)) >= 1
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {cores[-1]})
            assert available_cores() == (cores[-1],)
            assert core_count() == 1
        finally:
            os.sched_setaffinity(0, before)


def test_where_the_system_counts_neither_cores_of_a_process_nor_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert available_cores() == (0, 1, 2)
    assert load_average() is None
