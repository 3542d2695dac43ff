"""Several hosts: how they find each other, what a host refuses, and studies over them.

Threads stand for hosts where no ranks run; elsewhere network namespaces do, each with an address of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests import sweep
from twoscale._environment import available_cores
from twoscale._launching.hosts import Connection, ConnectionLost, Place, find_place, first_node, gather, join
from twoscale.errors import ConfigurationError
from twoscale.scaling import load_study, study_config
from twoscale.scaling._measure.agents import Ending, Job, Meeting
from twoscale.scaling._measure.hosts import End, Follower, Part, Stop, Team, serve
from twoscale.scaling._measure.ledger import gloo_crossing, gloo_sent
from twoscale.scaling._measure.records import BandwidthRecord, BandwidthRow, LedgerEntry, Op, RankGroup
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import WireResult
from twoscale.scaling._questions import replicas, sampler
from twoscale.scaling._questions.communication import links_sentence
from twoscale.scaling._questions.forecast import link_of, over
from twoscale.scaling._questions.link_model import MeasuredStep
from twoscale.scaling._questions.registry import needs_of
from twoscale.scaling._questions.wire import WireAnswer
from twoscale.scaling._study import progress
from twoscale.scaling._study import run as study
from twoscale.scaling._study.machine import Machine, StudyHost
from twoscale.scaling._study.plan import later_cells

SCRIPT = Path(__file__).parents[2] / "scripts" / "netns"
NAMES = ("WORLD_SIZE", "GROUP_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES")
ADDRESS = "127.0.0.1"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def _free() -> int:
    with socket.create_server((ADDRESS, 0)) as probe:
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- the place of a host


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("a,b", "a"), ("a[07-09,12],b1", "a07"), ("rack[2,5]-x[1-3]", "rack2-x"), ("n[001-128]", "n001")],
)
def test_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes).startswith(first)


def test_one_host_has_no_place() -> None:
    assert find_place() is None
    assert find_place(hosts=1) is None


def test_the_place_of_a_host_that_is_named_by_hand() -> None:
    assert find_place(3, 2, "10.0.0.1:29400") == Place(3, 2, "10.0.0.1", 29400)
    assert find_place(2, 0, "[fd00::1]:29400") == Place(2, 0, "fd00::1", 29400)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((2, None, "10.0.0.1:1"), "--hosts, --host and --address are given together"),
        ((2, 2, "10.0.0.1:1"), "--host is 2 and --hosts 2; expected 0 to 1"),
        ((2, 0, "10.0.0.1"), "--address is 10.0.0.1; expected the first host's address and a port"),
        ((2, 0, "10.0.0.1:99999"), "--address is 10.0.0.1:99999; expected"),
    ],
)
def test_a_place_that_makes_no_sense(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        find_place(*given)


def test_several_processes_on_a_host_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match=r"torchrun started 2 processes on this host, .* --nproc-per-node=1"):
        find_place()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(ConfigurationError, match=r"srun started 4 processes on 2 node\(s\), .* --ntasks-per-node=1"):
        find_place()


def test_the_place_that_slurm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"STEP_NUM_TASKS": "3", "STEP_NUM_NODES": "3", "JOB_ID": "77", "STEP_ID": "1", "PROCID": "2",
                 "STEP_NODELIST": "n[4-6]"}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    place = find_place()
    assert place is not None
    assert (place.hosts, place.host, place.address, place.token) == (3, 2, "n4", "77.1")
    assert 20_000 <= place.port < 30_000


# ---------------------------------------------------------------- joining


def _gathered(place: Place, patience: float = 20.0) -> tuple[threading.Thread, list[Any]]:
    """Gather hosts in a thread; the list gets what it returns, or its error."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(gather(place, "1", patience))
        except ConfigurationError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_hosts_join_in_any_order_and_strangers_do_not() -> None:
    port = _free()
    thread, found = _gathered(Place(3, 0, ADDRESS, port, "secret"))
    second = join(Place(3, 2, ADDRESS, port, "secret"), "1", b'{"a":2}', 20.0)
    for stranger in (b"GET / HTTP/1.1\r\n\r\n", (1 << 31).to_bytes(4, "big"), b""):
        with socket.create_connection((ADDRESS, port)) as connected:
            connected.sendall(stranger)
    for place, version, message in (
        (Place(3, 1, ADDRESS, port, "guess"), "1", "no study that waits for this host"),
        (Place(3, 1, ADDRESS, port, "secret"), "2", "host 1 runs twoscale 2 and host 0 runs 1"),
        (Place(4, 1, ADDRESS, port, "secret"), "1", "this is host 1 of 4, and host 0 expects 3 hosts"),
        (Place(3, 2, ADDRESS, port, "secret"), "1", "there are two hosts 2"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            join(place, version, b"{}", 20.0)
    first = join(Place(3, 1, ADDRESS, port, "secret"), "1", b'{"a":1}', 20.0)
    thread.join(20)
    (joined,) = found
    assert [(one.host, one.about) for one in joined] == [(1, b'{"a":1}'), (2, b'{"a":2}')]
    assert all(one.name == socket.gethostname() for one in joined)
    joined[1].connection.send(b"x" * 3_000_000)
    assert second.receive(timeout=20) == b"x" * 3_000_000
    for connection in (first, second, *(one.connection for one in joined)):
        connection.close()


def test_a_host_that_does_not_come_is_named() -> None:
    thread, found = _gathered(Place(3, 0, ADDRESS, 0), patience=0.2)
    thread.join(20)
    assert "no connection from host 1, 2 within 0.2 s" in str(found[0])
    with pytest.raises(ConfigurationError, match=r"host 0 was not reached at 127.0.0.1:\d+ within 0.1 s"):
        join(Place(2, 1, ADDRESS, _free()), "1", b"{}", 0.1)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"this host cannot listen at 192\.0\.2\.1:2000"):
        gather(Place(2, 0, "192.0.2.1", 2000), "1", 1.0)


# ---------------------------------------------------------------- serving


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    """Both ends of a connection: host 0's and another's."""
    with socket.create_server((ADDRESS, 0)) as listener:
        other = Connection(socket.create_connection(listener.getsockname()))
        leader = Connection(listener.accept()[0])
    yield leader, other
    leader.close()
    other.close()


def test_a_host_ends_with_the_study(pair: tuple[Connection, Connection]) -> None:
    leader, other = pair
    leader.send(msgspec.json.encode(Stop()))  # of a part that had ended already
    leader.send(msgspec.json.encode(End(130)))
    assert serve(other) == 130


def test_a_host_notices_that_host_0_is_gone(pair: tuple[Connection, Connection]) -> None:
    leader, other = pair
    leader.close()
    with pytest.raises(ConnectionLost, match="it closed the connection"):
        serve(other)


@pytest.mark.parametrize("target", ["os:system", "twoscale.models:create", "subprocess:run"])
def test_a_host_runs_measurements_only(pair: tuple[Connection, Connection], target: str) -> None:
    leader, other = pair
    job = Job(target, {}, "cpu", 1, False, None)
    leader.send(msgspec.json.encode(Part(job, Meeting(2, 2, 1, ADDRESS, 1))))
    with pytest.raises(ConnectionLost, match="which is no measurement of this library"):
        serve(other)


def test_a_lost_host_is_named_and_its_cells_are_left_for_later(
    pair: tuple[Connection, Connection], tmp_path: Path
) -> None:
    leader, other = pair
    team = Team(followers=(Follower(1, "node7", b"{}", leader),))
    assert team.missing(2) == ""
    other.close()
    assert team.followers[0].report(5.0) is None
    assert team.missing(1) == ""
    assert team.missing(2) == "host 1 (node7) is lost: it closed the connection"
    config = study_config("cpu", sections=("speedup",), hosts=(1, 2), world_sizes=(1,), repeats=1)
    cell = next(cell for cell in later_cells(config, needs_of(config.sections), {}) if cell.hosts == 2)
    here = Machine.here("cpu")
    runner = study._Runner(config, tmp_path, 1, None, progress.NoProgress(), here, team, (StudyHost("node7", here),))
    record = runner.run(cell)
    assert record is not None
    assert (record.outcome.status, record.outcome.message) == ("crash", team.missing(2))
    assert record.other_machines == (here,)
    assert list(tmp_path.iterdir()) == []


def test_a_report_names_the_first_failure() -> None:
    ending = Ending((1,), {1: -9, 0: 1}, {}, False, "")
    assert ending.cause()[:2] == ("crash", "rank 1: killed by SIGKILL")


# ---------------------------------------------------------------- links


def test_groups_are_every_number_of_ranks_on_every_number_of_hosts() -> None:
    config = study_config("cpu", sections=("wire", "speedup"), hosts=(1, 2, 3), world_sizes=(1, 2), repeats=1)
    assert [str(group) for group in config.groups] == [
        "1 rank", "2 ranks", "2 ranks on 2 hosts", "3 ranks on 3 hosts", "4 ranks on 2 hosts", "6 ranks on 3 hosts",
    ]  # fmt: skip
    cells = later_cells(config, needs_of(config.sections), {})
    assert {(c.world_size, c.hosts) for c in cells if c.kind == "wire"} == {(2, 1), (3, 3)}
    assert len({cell.name for cell in cells}) == len(cells)
    with pytest.raises(ConfigurationError, match="hosts begins with 2; expected 1"):
        study_config("cpu", hosts=(2, 4))


def _step(world_size: int, hosts: int) -> MeasuredStep:
    link = link_of(study_config("cpu"), RankGroup(world_size, hosts))
    return MeasuredStep(world_size, 1, link, 1.0, 1.0, ())


def test_a_forecast_between_hosts_takes_steps_with_as_many_ranks_on_each() -> None:
    steps = [_step(*each) for each in ((1, 1), (2, 1), (2, 2), (4, 2), (3, 3))]
    assert over(steps, steps[0].link) == [steps[0], steps[1]]
    assert over(steps, steps[2].link) == [steps[0], steps[2], steps[4]]
    assert over(steps, steps[3].link) == [steps[1], steps[3]]
    assert str(steps[3].link.group(8)) == "8 ranks on 4 hosts"


def test_orders_and_replicas_are_those_of_one_host() -> None:
    """The other hosts' ranks write none, whichever cell ran first."""

    def record(hosts: int, *found: str) -> Any:
        return SimpleNamespace(cell=SimpleNamespace(hosts=hosts), result=WireResult((), found, found, ()))  # type: ignore[arg-type]

    measured: Any = SimpleNamespace(of=lambda kind: [record(2), record(1, "found")])
    found: Any = ("found",)
    assert sampler.QUESTION.answer(measured).orders == found
    assert replicas.QUESTION.answer(measured).replicas == found


def test_links_within_and_between_hosts_are_told_apart() -> None:
    def record(world_size: int, hosts: int, rate: float) -> BandwidthRecord:
        row = BandwidthRow("all_reduce", 1 << 20, summarize([1.0]), rate, rate, rate)
        return BandwidthRecord(world_size, "gloo", (row,), (), hosts)

    within, between = record(2, 1, 2.5e9), record(2, 2, 1.2e7)
    assert links_sentence([within]) is None
    assert links_sentence([within, between, record(4, 2, 1e7)]) == (
        "All-reduces alone reach 2500 MB/s between 2 ranks on one host (at 1,048,576 bytes), and 12.0 MB/s between "
        "2 ranks on 2 hosts (at 1,048,576 bytes)."
    )


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "broadcast"])
def test_bytes_between_hosts(op: Op) -> None:
    entry = LedgerEntry("", op, "", "float32", 4 * 10_000)
    # With one rank on each, everything that is sent goes to another host.
    for host in range(4):
        assert gloo_crossing(entry, host, 4, 4) == gloo_sent(entry, host, 4)[0]
        assert gloo_crossing(entry, 0, 1, 4) == 0
    # By hand: rings of 4 ranks on 2 hosts cross twice; the tree from rank 0 sends 0-1, then 0-2 and 1-3.
    expected = {
        "all_reduce": [2 * 3 * entry.bytes // 4] * 2,
        "all_gather": [3 * entry.bytes] * 2,
        "broadcast": [2 * entry.bytes, 0],
    }
    assert [gloo_crossing(entry, host, 2, 4) for host in range(2)] == expected[op]


# ---------------------------------------------------------------- whole studies

WORDS = ["scale", "net", "--data", "digits", "--device", "cpu", "--base-batch", "16", "--world-sizes", "1",
         "--steps", "2", "--repeats", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    if not sweep.whole():
        pytest.skip("takes minutes: --sweep all runs studies over two hosts")
    name = f"h{os.getpid() % 10**8}"
    made = subprocess.run([SCRIPT, "bridge", name, "1000", "2"], capture_output=True, text=True)
    if made.returncode == 3:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    yield name
    subprocess.run([SCRIPT, "down", name], check=True)


def on(name: str, host: int, words: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command on one of the hosts, with cores of its own."""
    cores = available_cores()
    return subprocess.Popen(
        ["ip", "netns", "exec", f"{name}-{host}", "taskset", "-c", str(cores[host % len(cores)]), *words],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def torchrun(host: int) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={host}",
        "--master-addr=10.231.0.1", "--master-port=29544", "-m", "twoscale",
    ]  # fmt: skip


def test_two_nodes_of_torchrun_make_one_study(name: str, tmp_path: Path) -> None:
    words = [*WORDS, "--sections", "speedup,wire"]
    nodes = [on(name, host, [*torchrun(host), *words, "--out", str(tmp_path / str(host))]) for host in (0, 1)]
    outputs = [node.communicate(timeout=500) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert [folder.name for folder in tmp_path.iterdir()] == ["0"]
    found = load_study(tmp_path / "0" / "study.json")
    assert "2 ranks on 2 hosts train" in found.sentence("speedup")
    assert "predicted, to the byte" in found.sentence("wire")
    across = [ledger for ledger in found.results.of(WireAnswer).ledgers if ledger.hosts == 2]
    assert across
    assert all(ledger.crossing_bytes == ledger.sent_bytes for ledger in across)
    assert [one.machine.cores for one in found.results.hosts] == [1, 1]


def test_a_host_that_is_killed_is_a_recorded_failure(name: str, tmp_path: Path) -> None:
    words = [*WORDS, "--sections", "speedup", "--hosts", "2", "--address", "10.231.0.1:29545", "--out", str(tmp_path)]
    nodes = [on(name, host, [sys.executable, "-m", "twoscale", *words, "--host", str(host)]) for host in (0, 1)]
    # A Part has arrived once the follower has a child.
    children = Path(f"/proc/{nodes[1].pid}/task/{nodes[1].pid}/children")
    deadline = time.monotonic() + 300
    while not children.read_text().strip() and time.monotonic() < deadline:
        time.sleep(0.1)
    nodes[1].send_signal(signal.SIGKILL)
    out, err = nodes[0].communicate(timeout=500)
    nodes[1].communicate()
    assert nodes[0].returncode == 0, err
    assert f"failed: steps, 2 ranks on 2 hosts, launch 1: crash: host 1 ({socket.gethostname()}) is lost" in out
    assert (tmp_path / "cells" / "ranks-2on2-0.json").exists()
    assert (tmp_path / "cells" / "ranks-1-0.json").exists()


def test_a_message_is_bounded(pair: tuple[Connection, Connection]) -> None:
    leader, other = pair
    leader.send(b"x" * 11)
    with pytest.raises(ConnectionLost, match="a message of 11 bytes came; expected at most 10"):
        other.receive(limit=10)
