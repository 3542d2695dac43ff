"""examples/ddp_minimal.py: two processes train as one does, it resumes, and the documentation's table is its ledger."""

from __future__ import annotations

import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from twoscale.scaling._measure.ledger import predict
from twoscale.scaling._measure.records import DdpOptions

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "ddp_minimal.py"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    found: dict[str, torch.Tensor] = state["model"]
    return found


def alone(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> dict[str, torch.Tensor]:
    """Run the example in this process, as `python examples/ddp_minimal.py` does."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--out", str(out), *words])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return weights(out)


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface has another name")
def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--out", str(tmp_path / "two"), "--epochs", "1", "--batch-size", "95"]  # 15 batches; 12 left for the last
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(EXAMPLE), *words],
            # What torchrun sets, without its own start, which takes as long as the training.
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            | {"GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (out, err), (silent, complaint) = [process.communicate(timeout=600) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], err + complaint
    assert re.fullmatch(r"epoch 1 of 1: test accuracy \d+\.\d\d%\n", out)
    assert silent == ""
    two, one = weights(tmp_path / "two"), alone(monkeypatch, tmp_path / "one", *words[2:])
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)


def test_it_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = alone(monkeypatch, tmp_path / "whole", "--epochs", "2", "--batch-size", "500")
    alone(monkeypatch, tmp_path / "parts", "--epochs", "1", "--batch-size", "500")
    resumed = alone(monkeypatch, tmp_path / "parts", "--epochs", "2", "--batch-size", "500", "--resume")
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def test_shares_are_those_of_the_whole_batch() -> None:
    batches = runpy.run_path(str(EXAMPLE))["epoch_batches"]
    for epoch in range(2):
        shares = [batches(11, 5, epoch, rank, 3) for rank in range(3)]
        assert [[whole for _, whole in share] for share in shares] == [[5, 5, 1]] * 3
        assert sorted(int(i) for share in shares for mine, _ in share for i in mine) == list(range(11))
        assert [len(share[-1][0]) for share in shares] == [1, 0, 0]  # two ranks have none of the last batch
    assert not torch.equal(batches(11, 5, 0, 0, 1)[0][0], batches(11, 5, 1, 0, 1)[0][0])


def test_the_documents_table_is_the_ledger() -> None:
    model = runpy.run_path(str(EXAMPLE))["create_model"]()
    rows = re.findall(
        r"^\| (construction|forward \d|backward \d) \| (\w+) \| (\w+) \| ([\d,]+) \|",
        (ROOT / "docs" / "training.md").read_text(),
        re.MULTILINE,
    )
    found = [(phase, op, dtype, int(size.replace(",", ""))) for phase, op, dtype, size in rows]
    assert found == [(entry.phase, entry.op, entry.dtype, entry.bytes) for entry in predict(model, DdpOptions())]


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 120
