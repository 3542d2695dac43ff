"""Every module can be imported on systems without POSIX modules, and features that need POSIX say so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_imports import MODULES
from twoscale import _environment as environment
from twoscale import _files as files
from twoscale._launching import torchrun
from twoscale.errors import ConfigurationError
from twoscale.scaling import run_study, study_config

# Modules that Windows lacks. Other packages are imported before these are removed, since they detect the system
# themselves.
WITHOUT_POSIX = """
import importlib, os, signal, sys
import jinja2, msgspec, numpy, onnx, platformdirs, rich.live, rich.progress, tyro
import torch, torch.distributed, torch.distributed.run, torch.fx.experimental.proxy_tensor, torch.utils.data
import torch.utils.flop_counter, torch.optim.swa_utils, safetensors.torch
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for name in ("fork", "getloadavg", "getuid", "killpg", "sched_getaffinity", "sched_setaffinity", "setsid", "sysconf"):
    delattr(os, name) if hasattr(os, name) else None
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1"):
    delattr(signal, name) if hasattr(signal, name) else None
"""
IMPORT = "\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
USE = """
from pathlib import Path
from twoscale import _environment, _files, data
assert _environment.core_count() >= 1
assert _environment.load_average() is None and _environment.peak_resident_bytes() is None
with _files.held(Path("folder"), "testing"):
    _files.write_text(Path("folder/text"), "written")
assert data.load("digits").test.labels.shape == (360,)
"""


def run(code: str, folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX + code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_module_imports_without_posix(tmp_path: Path) -> None:
    run(IMPORT + USE, tmp_path, *MODULES)
    assert (tmp_path / "folder" / "text").read_text() == "written"


def test_a_planted_posix_import_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="fcntl"):
        run("import fcntl", tmp_path)


def test_a_lock_is_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="locks"):
        files.lock(file.fileno(), wait=False)
    with files.held(tmp_path, "testing"), files.held(tmp_path, "testing"):
        pass


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda folder: torchrun.run(2, 0, "module", []), "running several processes"),
        (lambda folder: run_study(study_config(), folder / "study"), "measuring how training scales"),
    ],
)
def test_what_needs_posix_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: Callable[[Path], object], what: str
) -> None:
    monkeypatch.setattr(environment, "POSIX", False)
    with pytest.raises(ConfigurationError, match=f"^{what} needs Linux or macOS"):
        call(tmp_path)
    assert list(tmp_path.iterdir()) == []
