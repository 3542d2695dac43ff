"""A training step of the user's own: module, loss, optimizer and loader."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests import sweep
from tests.scaling import own_steps
from twoscale._cli import main
from twoscale.errors import ConfigurationError, UnknownNameError
from twoscale.scaling._measure.own_step import OwnStep, batch_length, endless, find_step
from twoscale.scaling._measure.records import EpochTime, LedgerRecord, decode
from twoscale.scaling._questions.registry import SECTIONS, needs_of
from twoscale.scaling._questions.verdict import VerdictAnswer
from twoscale.scaling._run import run_study, study_config
from twoscale.scaling._study.plan import later_cells

FILE = Path(own_steps.__file__)
BATCH_SECONDS = own_steps.SLEEP * own_steps.BATCH


def test_a_function_that_returns_a_step() -> None:
    found = find_step(f"{FILE}:make", None)
    assert isinstance(found, OwnStep)
    batch = next(iter(found.loader))
    expected = own_steps._loss(found.module, batch)
    assert torch.equal(found(batch), expected)
    assert batch_length(batch) == own_steps.BATCH
    assert find_step(f"{FILE}:network", None) is None
    with pytest.raises(UnknownNameError, match=r"unknown model in .*'mak': did you mean 'make'"):
        find_step(f"{FILE}:mak", None)
    slow = find_step(f"{FILE}:make", "seconds=0.5")
    assert isinstance(slow, OwnStep)
    assert slow.loader.dataset.seconds == 0.5  # type: ignore[attr-defined]


def test_batches_come_epoch_after_epoch() -> None:
    class Sampler:
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    class Loader(list[torch.Tensor]):
        sampler = Sampler()

    source = endless(Loader([torch.zeros(2), torch.ones(2)]), torch.device("cpu"))
    assert [float(next(source)[0]) for _ in range(5)] == [0, 1, 0, 1, 0]
    assert Sampler.epochs == [0, 1, 2]
    with pytest.raises(ConfigurationError, match="gives no batch"):
        next(endless([], torch.device("cpu")))
    with pytest.raises(ConfigurationError, match="has no tensor"):
        batch_length({"x": 3})


def test_a_study_of_a_step_asks_what_needs_a_step_only() -> None:
    config = study_config("cpu", model=f"{FILE}:make")
    assert (config.base_batch, config.rank_batches, config.data) == (5, (5,), "its loader")
    assert config.sections == ("speedup", "communication", "wire", "forecast")
    cells = later_cells(config, needs_of(config.sections), {})
    assert all(cell.arguments.workload.own_step for cell in cells)
    (ranks,) = (cell.arguments for cell in cells if cell.name == "ranks-2-0")
    assert ranks.runs == (("bare", 5), ("ddp", 5), ("silent", 5))
    (arms,) = (cell.arguments for cell in cells if cell.name == "arms-2-0")
    assert arms.batch_sizes == (5,)
    assert set(config.sections) <= set(study_config("cpu", model=f"{FILE}:make", sections=SECTIONS).sections)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["own_steps.py:wrong"], "returns (Sequential, function, Adam); expected (module, loss, optimizer, loader)"),
        (["own_steps.py:make", "--data", "digits"], "is a step with a loader of its own; leave --data out"),
        (["own_steps.py:make", "--base-batch", "8,16"], "is a step with a loader of its own; leave --base-batch out"),
        (
            ["own_steps.py:make", "--sections", "accuracy"],
            "accuracy cannot be asked about a step of your own; expected",
        ),
    ],
)
def test_what_a_study_of_a_step_refuses(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["scale", f"{FILE.parent}/{words[0]}", *words[1:], "--out", str(tmp_path / "study")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_the_ledger_of_a_step(measured: Callable[..., Any]) -> None:
    record = decode(measured("core")["own step"], LedgerRecord)
    # Two linear layers and a BatchNorm, whose running mean and variance and number of batches are buffers.
    assert (record.parameters, record.buffer_bytes) == (16 * 32 + 32 + 2 * 32 + 32 + 1, 2 * 32 * 4 + 8)
    assert record.ok
    assert record.total("backward 3") == 4 * record.parameters


def test_a_slow_loader_is_waited_for(measured: Callable[..., Any]) -> None:
    own = measured("alone", world_size=1)["own"]
    fast, slow = (decode(own[name], EpochTime) for name in ("make", "slow"))
    assert slow.data_wait.median >= BATCH_SECONDS
    assert fast.data_wait.median < slow.data_wait.median
    assert slow.step.median - slow.data_wait.median < slow.step.median / 2
    assert (slow.epoch_samples, slow.steps_per_epoch) == (40, 8)
    # Forward and backward of both layers; the first has no gradient of its input.
    assert fast.flops_per_step == 2 * own_steps.BATCH * (2 * 16 * 32 + 3 * 32)


@pytest.mark.skipif(not sweep.whole(), reason="measures a study; with --sweep all")
def test_a_slow_loader_is_the_verdict(tmp_path: Path) -> None:
    config = study_config("cpu", model=f"{FILE}:slow_shared", sections=("communication",), steps=5, repeats=1)
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(Path(__file__).parents[2])}):
        verdict = run_study(config, tmp_path).of(VerdictAnswer).verdict
    assert verdict is not None
    assert verdict.causes[0].name == "data"
