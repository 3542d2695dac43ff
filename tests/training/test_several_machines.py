"""Several machines: network namespaces stand for them, each with an address of its own, joined by a shaped link."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import sweep
from twoscale._files import read_record
from twoscale._launching import interfaces
from twoscale.errors import ConfigurationError
from twoscale.training import RunRecord

SCRIPT = Path(__file__).parents[2] / "scripts" / "netns"
FIRST, SECOND = "10.231.0.1", "10.231.0.2"
CHOICE = "import os; from twoscale._launching.interfaces import *; choose_interface(); print(os.environ[INTERFACE])"


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    name = f"m{os.getpid() % 10**8}"
    made = subprocess.run([SCRIPT, "up", name, "1000"], capture_output=True, text=True)
    if made.returncode == 3:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    yield name
    subprocess.run([SCRIPT, "down", name], check=True)


def on(name: str, machine: str, words: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command on one of the machines, "a" or "b"."""
    variables = {key: value for key, value in os.environ.items() if key != interfaces.INTERFACE}
    return subprocess.Popen(
        ["ip", "netns", "exec", f"{name}-{machine}", *words],
        env=variables | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("machine", ["a", "b"])
def test_the_interface_is_the_one_that_leads_to_the_first_machine(name: str, machine: str) -> None:
    process = on(name, machine, [sys.executable, "-c", CHOICE], GROUP_WORLD_SIZE="2", MASTER_ADDR=FIRST)
    out, err = process.communicate(timeout=100)
    assert (out, err) == (f"veth-{name}\n", "")


def test_an_interface_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    monkeypatch.setenv(interfaces.INTERFACE, "eth7")
    interfaces.choose_interface()
    assert os.environ[interfaces.INTERFACE] == "eth7"


def test_a_launch_on_one_machine_needs_no_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    monkeypatch.delenv(interfaces.INTERFACE, raising=False)
    interfaces.choose_interface()
    assert interfaces.INTERFACE not in os.environ


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.1.1", r"MASTER_ADDR is '127.0.1.1', on this machine a loopback address \(127.0.0.1\), which the other"),
        ("nowhere.invalid", r"MASTER_ADDR is 'nowhere.invalid', to which this machine finds no way"),
        ("", r"MASTER_ADDR is '', "),
    ],
)
def test_an_address_that_others_do_not_reach(monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    """Debian gives the machine's own name the address 127.0.1.1."""
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.delenv(interfaces.INTERFACE, raising=False)
    with pytest.raises(ConfigurationError, match=message):
        interfaces.choose_interface()


WORDS = [
    "train", "net", "--data", "digits", "--batch-size", "50", "--lr", "0.01", "--checkpoint-every", "5",
    "--device", "cpu", "--threads", "1",
]  # fmt: skip


def two_machines(name: str, port: int, out: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Start the documented command on both machines, which share their files."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += [f"--master-addr={FIRST}", f"--master-port={port}"]
    return [
        on(name, machine, ["taskset", "-c", str(rank % (os.cpu_count() or 1)), *launcher, f"--node-rank={rank}", "-m",
                           "twoscale", *WORDS, *words, "--out", str(out)])
        for rank, machine in enumerate("ab")
    ]  # fmt: skip


def one_machine(out: Path, *words: str) -> dict[str, np.ndarray]:
    """Train in two processes of this machine, and return the weights."""
    done = subprocess.run(
        [sys.executable, "-m", "twoscale", *WORDS, *words, "--out", str(out), "--procs", "2"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return load_file(out / "model.safetensors")


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_torchrun_on_two_machines_trains_as_two_processes_on_one(name: str, tmp_path: Path) -> None:
    if not sweep.whole():
        pytest.skip("takes half a minute: --sweep all trains on two machines")
    for process in two_machines(name, 29511, tmp_path / "two", "--epochs", "1"):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert_same(load_file(tmp_path / "two" / "model.safetensors"), one_machine(tmp_path / "one", "--epochs", "1"))
    assert read_record(tmp_path / "two" / "run.json", RunRecord).world_size == 2


def processes_of(name: str, machine: str) -> list[int]:
    """Return the processes of a machine."""
    listed = subprocess.run(["ip", "netns", "pids", f"{name}-{machine}"], capture_output=True, text=True, check=True)
    return [int(word) for word in listed.stdout.split()]


def test_a_run_goes_on_after_a_machine_was_killed(name: str, tmp_path: Path) -> None:
    """The second machine ends at once, in the middle; the same command with --resume ends in the same weights."""
    if not sweep.whole():
        pytest.skip("takes a minute: --sweep all kills a machine")
    out, words = tmp_path / "two", ("--epochs", "8")
    first, second = two_machines(name, 29513, out, *words)

    def done() -> int:
        file = out / "run.json"
        return read_record(file, RunRecord).mini_batches if file.exists() else 0

    deadline = time.monotonic() + 200
    while done() < 10:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in processes_of(name, "b"):
        os.kill(pid, signal.SIGKILL)
    _, err = first.communicate(timeout=200)
    second.communicate(timeout=60)
    assert first.returncode != 0
    (line,) = [line for line in err.splitlines() if line.startswith("twoscale: error: ")]
    assert line.startswith("twoscale: error: lost the connection to a process on another machine (")
    assert "RuntimeError" not in err
    assert 10 <= done() < 232, err
    assert not processes_of(name, "a")
    for process in two_machines(name, 29515, out, *words, "--resume"):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    record = read_record(out / "run.json", RunRecord)
    assert (record.mini_batches, record.world_size) == (232, 2)
    assert_same(load_file(out / "model.safetensors"), one_machine(tmp_path / "one", *words))
