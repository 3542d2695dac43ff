"""How processes are started and how they end: sockets, imports, orphans, exit codes."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from twoscale._launching import agent, processes, torchrun
from twoscale.scaling._measure.launch import launch
from twoscale.training._ranks import Ranks, _Answer

ROOT = Path(__file__).parents[2]
needs_proc = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads /proc")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parents() -> dict[int, int]:
    """Return every process of this machine with its parent."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        found[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def family_of(process: int) -> set[int]:
    """Return a process and all that descend from it."""
    parent_of, family = parents(), {process}
    while more := {pid for pid, parent in parent_of.items() if parent in family} - family:
        family |= more
    return family


def listening(pids: set[int]) -> set[Address]:
    """Return the addresses on which processes listen for TCP connections."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                found = re.fullmatch(r"socket:\[(\d+)\]", str(file.readlink()))
            except OSError:
                continue
            if found:
                inodes.add(found.group(1))
    addresses: set[Address] = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = struct.unpack(f"<{len(raw) // 4}I", raw)
                addresses.add(ipaddress.ip_address(b"".join(struct.pack(">I", word) for word in words)))
    return addresses


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 600.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start training in two processes in the folder of the test."""
    started = []

    def begin(*words: str, before: str = "") -> subprocess.Popen[str]:
        code = f"import sys\nfrom twoscale._cli import main\n{before}\nmain(sys.argv[1:])"
        command = [
            sys.executable,
            "-P",
            "-c",
            code,
            "train",
            "net",
            "--device",
            "cpu",
            "--procs",
            "2",
            "--threads",
            "1",
        ]
        process = subprocess.Popen(
            [*command, "--batch-size", "50", "--out", str(tmp_path / "run"), *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ranks_of(process: subprocess.Popen[str]) -> set[int]:
    """Return the processes that train, once both do."""
    family = family_of(process.pid)
    assert process.poll() is None, process.communicate()
    found = {pid for pid in family if b"RANK=" in _environ(pid)}
    return found if len(found) == 2 else set()


def _environ(pid: int) -> bytes:
    try:
        return b"".join(
            entry for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if entry.startswith(b"RANK=")
        )
    except OSError:
        return b""


@needs_proc
def test_training_listens_on_the_loopback_interface_only(start: Start, tmp_path: Path) -> None:
    process = start("--epochs", "1000")
    wait_for(lambda: (tmp_path / "run" / "run.json").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    found = listening(family_of(process.pid))
    assert found  # the store, and gloo's connections
    assert all(address.is_loopback for address in found), found


@needs_proc
def test_torchruns_own_rendezvous_would_be_found(start: Start, tmp_path: Path) -> None:
    planted = 'from twoscale._launching import torchrun\ntorchrun.meeting = lambda: ["--standalone"]'
    process = start("--epochs", "1000", before=planted)
    wait_for(lambda: (tmp_path / "run" / "run.json").exists() or process.poll() is not None)
    assert not all(address.is_loopback for address in listening(family_of(process.pid)))


def listening_of_a_job(_: dict[str, Any]) -> list[str]:
    """Return the addresses on which this launch listens; runs in each of its ranks."""
    import torch.distributed as dist

    dist.barrier()
    addresses = listening(family_of(os.getppid()))
    dist.barrier()
    return [str(address) for address in addresses]


@needs_proc
def test_measurements_listen_on_the_loopback_interface_only() -> None:
    outcome = launch(
        f"{__name__}:listening_of_a_job", world_size=2, threads_per_rank=1, environment={"PYTHONPATH": str(ROOT)}
    )
    assert outcome.ok, outcome.log_tail
    assert outcome.result
    assert all(ipaddress.ip_address(address).is_loopback for address in outcome.result)


def test_files_in_the_current_folder_are_not_imported(start: Start, tmp_path: Path) -> None:
    for name in ("torch", "numpy", "msgspec", "statistics", "twoscale"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(9)\n")
    process = start("--epochs", "1")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert not (tmp_path / "ran").exists()


@needs_proc
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.5])
def test_no_process_outlives_a_command_that_is_killed(seconds: float, start: Start) -> None:
    """The ranks are still importing when the command dies; whoever adopts them is not their parent."""
    process = start("--epochs", "1000")
    ranks = wait_for(lambda: ranks_of(process))
    family = family_of(process.pid)
    assert ranks < family
    time.sleep(seconds)
    process.kill()
    process.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in family - {process.pid}))


@needs_proc
def test_a_process_whose_parent_is_gone_ends_at_once() -> None:
    code = "from twoscale._launching.processes import die_with_parent; die_with_parent(); print('lives')"
    for parent, lives in ((os.getpid(), True), (1, False), (os.getppid(), False)):
        environment = {**os.environ, processes.PARENT: str(parent)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.stdout == "lives\n", done.returncode == 0) == (lives, lives)


def test_children_of_a_process_are_not_told_who_its_parent_was(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os; from twoscale._launching.processes import PARENT, die_with_parent\n"
        "die_with_parent(); assert PARENT not in os.environ"
    )
    environment = {**os.environ, processes.PARENT: str(os.getpid())}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@needs_proc
def test_a_killed_rank_is_not_taken_for_integers_that_differ(start: Start) -> None:
    process = start("--epochs", "1000")
    [rank, _] = sorted(wait_for(lambda: ranks_of(process)))
    os.kill(rank, signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGKILL
    how = r"was ended by SIGKILL, usually because memory ran out, and the others were ended with it"
    assert re.fullmatch(f"twoscale: process [01] {how}", err.splitlines()[-1])


AT_THE_END = """
import threading, time
from twoscale._launching.processes import leave
class Late:
    def __del__(self):
        print("taken down")
late = Late()
print("done")
"""


@pytest.mark.parametrize(("how", "out"), [("leave(3)", "done\n"), ("raise SystemExit(3)", "done\ntaken down\n")])
def test_leaving_does_not_take_down_the_interpreter(how: str, out: str) -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END + how], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, out)


def test_leaving_when_nobody_reads_the_output() -> None:
    code = (
        "import sys; from twoscale._launching.processes import leave; print('x' * 100000); sys.stdout.close(); leave(0)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_who_is_done_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])
    processes.wait_until(lambda: next(answers))
    assert list(answers) == []
    monkeypatch.setattr(processes, "_PATIENCE", 0.05)
    processes.wait_until(lambda: False)


def test_what_a_store_on_one_address_takes() -> None:
    """The address is bound, not all of the machine's."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous import RendezvousParameters

    from twoscale._launching import rendezvous

    parameters = RendezvousParameters("twoscale", "127.0.0.1:0", "name", 1, 1, rank="0")
    handler = rendezvous._create(parameters)
    info = handler.next_rendezvous()
    again = handler.next_rendezvous()
    address, address_again = info.bootstrap_store_info, again.bootstrap_store_info
    assert address is not None
    assert address_again is not None
    assert (address.master_addr, info.rank, info.world_size) == ("127.0.0.1", 0, 1)
    assert address_again.master_port == address.master_port
    client = TCPStore("127.0.0.1", address.master_port, is_master=False)
    client.set("key", "value")
    assert client.get("key") == b"value"
    with pytest.raises(OSError, match="refused"), socket.socket() as other:
        other.connect(("127.0.0.2", address.master_port))


def test_arguments_of_torchrun() -> None:
    words = torchrun.meeting("10.0.0.1", port=29500, host=1, hosts=2)
    assert words[:-1] == [
        "--nnodes=2", "--rdzv-backend=twoscale", "--rdzv-endpoint=10.0.0.1:29500", "--rdzv-conf=rank=1",
    ]  # fmt: skip


def test_one_process_asks_nobody() -> None:
    assert Ranks().from_leader(lambda: 3, int) == 3
    assert Ranks().gathered(b"x") == [b"x"]
    assert _Answer().error is None


def test_hosts_with_run_ids_of_their_own_meet_in_one_store() -> None:
    """Each host's command makes its own id; what one host writes must be found by the other."""

    from torch.distributed.elastic.rendezvous import RendezvousParameters

    from twoscale._launching import rendezvous

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    first, second = (
        rendezvous._create(
            RendezvousParameters("twoscale", f"127.0.0.1:{port}", f"run {rank}", 2, 2, None, rank=str(rank))
        )
        for rank in range(2)
    )
    first.next_rendezvous().store.set("written by", "the first host")
    there = second.next_rendezvous().store
    assert there.check(["written by"])
    assert there.get("written by") == b"the first host"


def test_what_the_agent_does_when_a_rank_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """A rank that printed what was wrong is not started again: every process would say the same."""

    def failed(code: int) -> logging.LogRecord:
        return logging.LogRecord("log", logging.ERROR, "", 0, f"{agent._FAILED} (pid: %s)", (code, 1, 7), None)

    failures = agent._Failures(1)
    failures.emit(failed(-9))
    died = "process 1 was ended by SIGKILL, usually because memory ran out"
    assert capsys.readouterr().err == f"twoscale: {died}; all are started again, restart 1 of 1\n"
    failures.emit(failed(-9))  # there is no second restart
    assert capsys.readouterr().err == ""
    for code in (2, 130):
        with pytest.raises(SystemExit) as ended:
            failures.emit(failed(code))
        assert ended.value.code == code


@pytest.mark.parametrize(
    ("error", "machines", "lost"),
    [
        (
            RuntimeError("[pair.cc:537] Read error [10.0.0.2]:6: Connection reset by peer. This"),
            "2",
            "connection reset",
        ),
        (RuntimeError("[tcp/pair.cc:563] Connection closed by peer [10.0.0.2]:6"), "2", "connection closed"),
        (RuntimeError("Connection reset by peer"), "1", None),  # on one machine, the agent says who ended
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "2", None),
        (OSError("Connection reset by peer"), "2", None),
    ],
)
def test_a_lost_machine_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, machines: str, lost: str | None
) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    assert processes.lost_peer(error) == (None if lost is None else f"{lost} by peer")
