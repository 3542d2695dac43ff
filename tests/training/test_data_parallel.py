"""Two processes against one: the same weights, the same accuracy, and the faults that this comparison finds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import sweep
from tests.training.made_up import CONFIG, Normed, Plain, dataset_of, plain_list, seeded
from twoscale import training
from twoscale._files import read_record
from twoscale.data import epoch_order
from twoscale.models import load_checkpoint
from twoscale.training import RunRecord, TrainConfig, TrainResult
from twoscale.training._ranks import Ranks, share_of

Weights = dict[str, list[float]]


def alone(config: TrainConfig, kind: type[nn.Module] = Plain, **options: Any) -> TrainResult:
    return training.train(config, dataset_of(90, 37), model=seeded(kind).double(), progress=False, **options)


def difference(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max(abs(x - y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.fixture(scope="session")
def shares(launched: Callable[..., Any]) -> Any:
    return launched("shares")


@pytest.mark.parametrize("name", CONFIG)
def test_shares_of_a_batch_train_as_the_whole_batch(shares: Any, name: str) -> None:
    one, two = alone(CONFIG[name]), shares[name]
    assert difference(plain_list(one.model), two["weights"]) < 1e-10
    assert [done for done, _ in one.record.losses] == [done for done, _ in two["losses"]]
    for (_, a), (_, b) in zip(one.record.losses, two["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-12)
    assert list(one.record.epoch_accuracy) == two["accuracy"]
    assert two["agree"]


@pytest.mark.parametrize("fault", ["summed", "other epochs", "local means"])
def test_the_comparison_finds(shares: Any, fault: str) -> None:
    """Losses summed instead of averaged, each process in another epoch, uneven shares that weigh the same."""
    assert difference(plain_list(alone(CONFIG["uneven"]).model), shares["planted"][fault]) > 1e-4


def test_batch_norm_sees_shares_unless_it_is_synchronized(shares: Any) -> None:
    one = plain_list(alone(CONFIG["even"], Normed).model)
    assert difference(one, shares["batch norm False"]["weights"]) > 1e-4
    assert difference(one, shares["batch norm True"]["weights"]) < 1e-10
    assert shares["batch norm True"]["kinds"] == ["Normed", "Conv2d", "Linear", "BatchNorm2d"]


def test_synchronized_batch_norm_of_processes_with_fewer_images(shares: Any) -> None:
    one = plain_list(alone(CONFIG["one left"], Normed).model)
    assert difference(one, shares["one left, synchronized"]) < 1e-10
    assert shares["parts, synchronized"]
    single, half = shares["bf16, synchronized"]
    assert half == pytest.approx(single, abs=0.01)
    assert half != single


def test_what_two_processes_say(shares: Any) -> None:
    how = "steps run eagerly in 2 processes, gradients averaged over gloo"
    assert shares["record"] == {"world_size": 2, "backend": "gloo", "notes": [how]}
    assert shares["captured"] == [how, "captured steps are for one process: it runs eagerly instead"]
    assert shares["batch of one"] == (
        "ConfigurationError: a batch of 1 cannot be shared by 2 processes; expected at least one image each"
    )


@pytest.mark.skipif(not sweep.whole(), reason="compiling takes half a minute: --sweep all runs it")
def test_compiled_steps_in_two_processes(shares: Any) -> None:
    [how] = shares["compiled"]["notes"]
    assert how == "steps run compiled in 2 processes, gradients averaged over gloo"
    assert difference(shares["compiled"]["weights"], shares["not compiled"]["weights"]) < 1e-10
    assert shares["compiled"]["agree"]
    assert shares["dynamo says"] == ""
    eagerly, why = shares["one cannot compile"]["notes"]
    assert eagerly == "steps run eagerly in 2 processes, gradients averaged over gloo"
    assert why == "torch.compile failed (no working C++ compiler): it runs eagerly instead"
    assert difference(shares["one cannot compile"]["weights"], shares["not compiled"]["weights"]) == 0
    prepared, all_of_them = shares["graphs"]
    assert prepared == all_of_them == 3  # parts of 5, 4 and 1: none is compiled while the clock runs


@pytest.mark.parametrize(("n", "batch", "size"), [(100, 10, 2), (101, 10, 3), (17, 4, 4), (7, 7, 3), (13, 6, 5)])
def test_shares_are_all_images_once(n: int, batch: int, size: int) -> None:
    orders = [torch.from_numpy(epoch_order(n, seed=1, epoch=epoch)) for epoch in range(2)]
    assert not torch.equal(*orders)
    for order in orders:
        mine = [share_of(order, batch, Ranks(rank, size)).tolist() for rank in range(size)]
        for number in range(-(-n // batch)):
            here = order[number * batch : (number + 1) * batch].tolist()
            local = [len(range(rank, batch, size)) for rank in range(size)]
            parts = [mine[r][number * local[r] : (number + 1) * local[r]] for r in range(size)]
            # Only a process without an image in the last batch has one of another's, which counts for nothing.
            real = [part[: len(range(r, len(here), size))] for r, part in enumerate(parts)]
            assert sorted(image for part in real for image in part) == sorted(here)
            assert all(parts)


def test_a_run_interrupted_in_one_process_resumes_to_the_same_weights(
    launched: Callable[..., Any], tmp_path: Path
) -> None:
    found = launched("resumes", {"folder": str(tmp_path)})
    assert found["interrupted"] == (
        "interrupted: saved after mini-batch 9 of 26; continue with the same command and --resume"
    )
    assert difference(found["whole"], found["resumed"]) == 0
    assert found["cannot write"].startswith("TwoscaleError: cannot write /proc/run: No such file")
    # One process continues what two began.
    one = alone(CONFIG["uneven"], out=tmp_path / "two", resume=True)
    assert difference(plain_list(alone(CONFIG["uneven"]).model), plain_list(one.model)) < 1e-10
    [note] = one.record.notes[1:]
    assert note.startswith("resumed in 1 processes after 2: batches are the same")


def command(out: Path, *words: str) -> list[str]:
    """Return the command that trains as OF_THE_COMMAND says."""
    return [
        sys.executable, "-m", "twoscale", "train", "net", "--device", "cpu", "--procs", "2", "--batch-size", "50",
        "--lr", "0.01", "--epochs", "4", "--checkpoint-every", "5", "--threads", "1", "--out", str(out), *words,
    ]  # fmt: skip


def ranks_of(out: Path) -> dict[int, int]:
    """Return the processes of a run on this machine, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            variables = dict(entry.partition("=")[::2] for entry in (folder / "environ").read_text().split("\0"))
        except OSError:
            continue
        if str(out) in words and "RANK" in variables:
            found[int(variables["RANK"])] = int(folder.name)
    return found


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def done(out: Path) -> int:
    path = out / "run.json"
    return read_record(path, RunRecord).mini_batches if path.exists() else 0


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start runs; what is left of them at the end is ended."""
    started = []

    def begin(out: Path, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(out, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not sweep.whole(), reason="starts five processes: --sweep all; others resume in one launch")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("interrupted", [False, True])
def test_ctrl_c_and_a_killed_process_end_in_the_same_weights(
    shares: Any, tmp_path: Path, start: Any, interrupted: bool
) -> None:
    out, words = tmp_path / "run", ["--max-restarts", "1"]
    if interrupted:  # Ctrl-C: a checkpoint, one line, no process left.
        process = start(out)
        wait_for(lambda: done(out) >= 5, process)
        ranks = ranks_of(out)
        assert sorted(ranks) == [0, 1]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 130, err
        [said] = [line for line in err.splitlines() if line.startswith("twoscale:")]
        assert said.startswith("twoscale: interrupted: saved after mini-batch ")
        assert said.endswith(" of 116; continue with the same command and --resume")
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
        words.append("--resume")
    # kill -9 of a rank: torchrun starts both again, and they go on from the last checkpoint.
    before = done(out)
    process = start(out, *words)
    wait_for(lambda: done(out) >= before + 10, process)
    killed = ranks_of(out)
    os.kill(killed[1], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    [died, again] = [line for line in err.splitlines() if "restart 1" in line]
    how = "was ended by SIGKILL, usually because memory ran out"
    assert died == f"twoscale: process 1 {how}; all are started again, restart 1 of 1"
    assert again.startswith("a process had died: restart 1 continues after mini-batch ")
    assert "Traceback" not in err
    assert not ranks_of(out)
    weights = plain_list(load_checkpoint(out / "model.safetensors")[0])
    assert difference(weights, shares["undisturbed"]["weights"]) == 0
    record = read_record(out / "run.json", RunRecord)
    assert [list(entry) for entry in record.losses] == shares["undisturbed"]["losses"]
    assert record.world_size == 2
    assert again in record.notes


@pytest.mark.skipif(not sweep.whole(), reason="starts two processes: --sweep all")
def test_wrong_input_is_one_line(tmp_path: Path, start: Any) -> None:
    process = start(tmp_path / "run", "--momentum", "2")
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (2, "")
    assert err == "twoscale: error: momentum is 2.0; expected at least 0 and less than 1\n"


@pytest.mark.skipif(not sweep.whole(), reason="trains in two processes: --sweep all")
def test_wrong_input_that_only_training_shows_starts_nothing_again(tmp_path: Path, start: Any) -> None:
    """Every process says the same, and so it would after another start."""
    process = start(tmp_path / "run", "--lr", "1e30", "--max-restarts", "2")
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (2, "")
    title, reason = err.splitlines()
    assert title.startswith("net on digits: ")
    assert reason.startswith("twoscale: error: ")
    assert "lower the learning rate" in reason
