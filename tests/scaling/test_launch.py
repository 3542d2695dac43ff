from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twoscale._environment import available_cores
from twoscale.errors import ConfigurationError, TwoscaleError
from twoscale.scaling._measure.launch import Host, _bytecode, function_of, launch
from twoscale.scaling._measure.records import Outcome

ROOT = Path(__file__).parents[2]


def _gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody waits for has)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def _all_gone(pids: list[int], seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(map(_gone, pids)):
            return True
        time.sleep(0.05)
    return False


def test_ranks_get_arguments_threads_cores_and_each_other(ranks: Callable[..., Outcome[Any]]) -> None:
    outcome = ranks("about", {"x": [1, "two", None]}, environment={"EXTRA": "yes"})
    assert outcome.status == "ok", outcome.log_tail
    assert (outcome.world_size, outcome.threads_per_rank, outcome.message, outcome.log_tail) == (2, 1, "", "")
    result = outcome.value
    assert result["arguments"] == {"x": [1, "two", None]}
    assert result["sum"] == 3.0
    assert result["threads"] == 1  # torchrun would have set it, but for one rank: not a proof, the next is
    assert result["extra"] == "yes"
    if len(available_cores()) >= 2:
        assert result["cores"] == [available_cores()[0]]


def test_one_rank_may_have_more_threads(ranks: Callable[..., Outcome[Any]]) -> None:
    result = ranks("about", world_size=1, threads_per_rank=3, pin=False).value
    assert result["threads"] == 3
    assert result["cores"] == list(available_cores())


@pytest.mark.sweep(1)  # two ranks: tests/training/test_launching.py, with the same environment
@pytest.mark.parametrize("world_size", [1, 2])
def test_files_where_the_user_is_are_no_modules(
    ranks: Callable[..., Outcome[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    (tmp_path / "statistics.py").write_text("")
    monkeypatch.chdir(tmp_path)
    outcome = ranks("about", world_size=world_size)
    assert outcome.ok, outcome.log_tail


def test_an_exception_in_one_rank_is_a_recorded_crash_that_names_it(ranks: Callable[..., Outcome[Any]]) -> None:
    outcome = ranks("fail_second")
    assert outcome.status == "crash"
    # Rank 0 complains of a lost connection; the cause is the first to fail.
    assert outcome.message == "rank 1: ValueError: planted failure of two lines"
    assert "ValueError: planted failure" in outcome.log_tail
    with pytest.raises(TwoscaleError, match=r"no measurement \(crash\): rank 1: ValueError"):
        _ = outcome.value


def test_a_killed_rank_is_a_recorded_crash(ranks: Callable[..., Outcome[Any]]) -> None:
    outcome = ranks("kill_second")
    assert (outcome.status, outcome.message) == ("crash", "rank 1: killed by SIGKILL")


def test_an_aborted_rank_leaves_where_it_was_in_the_record(ranks: Callable[..., Outcome[Any]]) -> None:
    outcome = ranks("abort", world_size=1)
    assert (outcome.status, outcome.message) == ("crash", "rank 0: killed by SIGABRT")
    assert "Fatal Python error: Aborted" in outcome.log_tail
    assert "in abort" in outcome.log_tail


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory limits are the kernel's, and Linux's here")
def test_running_out_of_memory_is_a_recorded_failure(ranks: Callable[..., Outcome[Any]]) -> None:
    outcome = ranks("fill_memory", world_size=1, memory_limit_bytes=1 << 30)
    assert outcome.status == "out-of-memory"
    assert outcome.message.startswith("rank 0: RuntimeError: ")
    assert "can't allocate memory" in outcome.message


def test_a_time_out_ends_every_process_even_stubborn_ones(ranks: Callable[..., Outcome[Any]], tmp_path: Path) -> None:
    # As long as it takes to start, then a moment: the ranks hang and ignore SIGTERM.
    timeout = 5.0
    while not (pids := [int(text) for file in tmp_path.glob("pid-*") if (text := file.read_text())]):
        outcome = ranks("hang", {"folder": str(tmp_path)}, timeout=timeout)
        assert outcome.status == "time-out"
        assert outcome.message == f"no result after {timeout:g} s; every process was ended"
        timeout *= 2
    assert _all_gone(pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends the children of a killed process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_an_interrupted_or_killed_launcher(number: signal.Signals, tmp_path: Path) -> None:
    arguments = {"folder": str(tmp_path)}
    call = f"launch('tests.scaling.workers:hang', {arguments}, world_size=2)"
    code = f"from twoscale.scaling._measure.launch import launch; {call}"
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert launcher.stderr is not None
    try:
        deadline = time.monotonic() + 600
        while len(files := list(tmp_path.glob("pid-*"))) < 2 or not all(file.read_text() for file in files):
            assert time.monotonic() < deadline, "the ranks did not start"
            assert launcher.poll() is None, launcher.stderr.read().decode()
            time.sleep(0.1)
        pids = [int(file.read_text()) for file in files]
        launcher.send_signal(number)
        launcher.wait(600)
    finally:
        launcher.kill()
        launcher.stderr.close()
    assert launcher.returncode == -number
    assert _all_gone(pids)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("twoscale.scaling.nowhere:run", "no function 'twoscale.scaling.nowhere:run' .*expected 'module:function'"),
        ("twoscale.scaling._measure.launch:nothing", "has no attribute 'nothing'"),
        ("twoscale.scaling._measure.launch", "expected 'module:function'"),
        ("twoscale.scaling._measure.agents:JOB", "is no function"),
    ],
)
def test_targets_that_are_no_functions(target: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        function_of(target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 0}, "world_size is 0; expected a positive multiple of 1 host"),
        ({"world_size": 3, "hosts": (Host(), Host())}, r"expected a positive multiple of 2 host\(s\)"),
        ({"threads_per_rank": 0}, "threads_per_rank is 0; expected at least 1"),
        ({"timeout": 0}, "timeout is 0; expected a positive number of seconds"),
    ],
)
def test_numbers_outside_their_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        launch("twoscale.scaling._measure.bandwidth:run", **options)


def test_the_launcher_does_not_import_torch() -> None:
    names = (
        "_measure.launch",
        "_measure.capacity",
        "_questions.link_model",
        "_questions.step_forecast",
        "_measure.statistics",
    )
    modules = ", ".join(f"twoscale.scaling.{name}" for name in names)
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("forbidden", [True, False])
def test_launches_share_compiled_modules_where_python_writes_none(
    forbidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", forbidden)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **_bytecode(tmp_path)}
    subprocess.run([sys.executable, "-c", "import this"], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert bool(list(tmp_path.rglob("this.*.pyc"))) == forbidden
    assert _bytecode(None) == {}


def test_what_rank_0_does_is_reported_while_it_works(ranks: Callable[..., Outcome[Any]]) -> None:
    seen: list[str] = []
    outcome = ranks("at_work", {"words": ["one", "two"]}, world_size=1, watch=seen.append)
    assert outcome.ok, outcome.message
    assert seen == ["one", "two"]
