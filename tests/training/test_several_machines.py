"""Several machines: network namespaces stand for them, each with an address of its own, joined by a shaped link."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_torchrun_on_two_machines_trains_as_two_processes_on_one(name: str, tmp_path: Path) -> None:
    if not sweep.whole():
        pytest.skip("takes half a minute: --sweep all trains on two machines")
    words = [
        "train",
        "net",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--batch-size",
        "64",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--out",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += [f"--master-addr={FIRST}", "--master-port=29511"]
    processes = [
        on(
            name,
            machine,
            [
                "taskset",
                "-c",
                str(rank),
                *launcher,
                f"--node-rank={rank}",
                "-m",
                "twoscale",
                *words,
                str(tmp_path / "two"),
            ],
        )
        for rank, machine in enumerate("ab")
    ]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    one = subprocess.run(
        [sys.executable, "-m", "twoscale", *words, str(tmp_path / "one"), "--procs", "2"],
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stderr
    runs = [load_file(tmp_path / run / "model.safetensors") for run in ("one", "two")]
    assert runs[0].keys() == runs[1].keys()
    assert all(np.array_equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert read_record(tmp_path / "two" / "run.json", RunRecord).world_size == 2
