import json
import signal
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from tyro.extras import SubcommandApp

import twoscale
from tests import sweep
from twoscale import _cli as cli
from twoscale import data, training
from twoscale._cli.evaluate import eval_command
from twoscale._cli.train import train_command
from twoscale._files import read_record
from twoscale._launching import torchrun
from twoscale.data import Dataset
from twoscale.errors import CheckpointError, ConfigurationError, UnknownNameError
from twoscale.training import RunRecord, TrainConfig
from twoscale.training import _accuracy as accuracy
from twoscale.training import _loop as loop


@pytest.fixture
def command(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("twoscale.data.load", lambda name: dataset)
    app = SubcommandApp()
    app.command(name="train")(train_command)
    app.command(name="eval")(eval_command)

    def run(line: str) -> Any:
        return app.cli(prog="twoscale", args=line.split(), config=())

    return run


def test_train_then_eval(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert command(f"train net-with-bias --out {out} --epochs 1 --lr 0.01 --seed 3 --log-every 7") == 0
    printed = capsys.readouterr()
    record = read_record(out / "run.json", RunRecord)
    assert (record.config.model, record.config.seed, record.config.log_every) == ("net-with-bias", 3, 7)
    assert f"net-with-bias: {record.test_accuracy:.2%} of 37 test images right after 23 mini-batches" in printed.out
    assert f"Wrote {out}/model.safetensors and {out}/run.json" in printed.out
    command(f"eval {out}/model.safetensors --json")
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "file": f"{out}/model.safetensors",
        "network": "NetWithBias",
        "data": "digits",
        "samples": 37,
        "top1": record.test_accuracy,
        "executor": "torch",
    }
    command(f"eval {out}/model.safetensors --max-samples 5 --model net-with-bias")
    assert "of 5 test images of digits right" in capsys.readouterr().out


def test_json_of_a_run(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(f"train net -o {tmp_path}/run --epochs 1 --json")
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "run" / "run.json").read_text())


def test_options_without_effect_are_said(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (
        "--beta2 0.9 --trust-coefficient 0.01 --adapt-norm-and-bias True --decay-norm-and-bias True --milestones 0.5"
    )
    command(f"train net -o {tmp_path}/run --epochs 1 --fill reflect --momentum 0.8 {given}")
    assert [line for line in capsys.readouterr().err.splitlines() if "no effect" in line] == [
        "twoscale: --decay-norm-and-bias has no effect: weight_decay is 0",
        "twoscale: --adapt-norm-and-bias has no effect: it is for lars and lamb, not sgd",
        "twoscale: --trust-coefficient has no effect: it is for lars, not sgd",
        "twoscale: --beta2 has no effect: it is for adamw and lamb, not sgd",
        "twoscale: --milestones has no effect: it is for the schedule step, not constant",
        "twoscale: --fill has no effect: crop is 0",
    ]
    given = "--optimizer lamb --beta2 0.9 --schedule step --milestones 0.5 --crop 2 --fill reflect --weight-decay 0.1"
    command(f"train net -o {tmp_path}/used --epochs 1 --decay-norm-and-bias True --adapt-norm-and-bias True {given}")
    assert "no effect" not in capsys.readouterr().err


@pytest.mark.skipif(not sweep.whole(), reason="takes seconds: --sweep all runs it")
def test_training_with_integers(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = "--batch-size 64 --optimizer adamw --lr 0.001 --epochs 1"
    command(f"train net -o {tmp_path}/float {how}")
    command(
        f"train net -o {tmp_path}/few --from {tmp_path}/float/model.safetensors --quantize W4A4 {how} --step captured"
    )
    captured = capsys.readouterr()
    assert f"Wrote {tmp_path}/few/network.onnx and {tmp_path}/few/run.json" in captured.out
    found = json.loads((tmp_path / "few" / "run.json").read_text())
    assert found["config"]["start"] == f"{tmp_path}/float/model.safetensors"
    assert twoscale.load(tmp_path / "few" / "network.onnx").metadata["data"] == "digits"


def test_a_folder_with_a_run_is_not_replaced_unasked(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command(f"train net -o {out} --epochs 1")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ConfigurationError, match="holds a run already; continue it with --resume, replace it with"):
        command(f"train net -o {out} --epochs 1 --seed 1")
    assert (out / "model.safetensors").read_bytes() == before
    with pytest.raises(ConfigurationError, match="--resume and --overwrite exclude each other"):
        command(f"train net -o {out} --epochs 1 --seed 1 --overwrite --resume")
    command(f"train net -o {out} --epochs 1 --seed 1 --overwrite")
    assert (out / "model.safetensors").read_bytes() != before
    command(f"train net -o {out} --epochs 2 --seed 1 --resume")
    assert read_record(out / "run.json", RunRecord).mini_batches == 46


def test_only_a_run_of_its_own_is_taken_up_after_a_restart(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command(f"train net -o {out} --epochs 1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ConfigurationError, match="holds a run already"):
        command(f"train net -o {out} --epochs 1")
    command(f"train net -o {out} --epochs 1 --overwrite")  # which had ended before it could begin anew
    again = "a process had died: restart 1 continues "
    assert read_record(out / "run.json", RunRecord).notes[1:] == (f"{again}from the beginning",)
    command(f"train net -o {out} --epochs 1 --overwrite")
    assert read_record(out / "run.json", RunRecord).notes[-1] == f"{again}after mini-batch 23"


def test_a_process_that_fails_alone_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "two")
    monkeypatch.setattr("twoscale._cli.ending._LEAVE_TIME", 0.0)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "nett", "--out", "x", "--momentum", "2"])
    assert capsys.readouterr().err == (
        "twoscale: error: process 1: momentum is 2.0; expected at least 0 and less than 1\n"
    )
    with pytest.raises(ConfigurationError, match="WORLD_SIZE is 'two' in the environment; expected a whole number"):
        training.train(TrainConfig(), data.load("digits"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="is one of 2 processes, but MASTER_ADDR is not set"):
        training.train(TrainConfig(), data.load("digits"))


def test_a_launcher_that_is_killed_is_said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    kill = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(torchrun, "command", lambda *_, **__: kill)
    assert torchrun.run(2, 0, "twoscale", []) == 128 + signal.SIGKILL
    assert capfd.readouterr().err == "twoscale: torchrun was ended by SIGKILL, and its processes with it\n"


def test_nothing_holds_what_a_run_had_when_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group that ends with the interpreter aborts it, and the exit code is lost."""
    groups = []

    def verb(_: list[str]) -> int:
        group = threading.Event()
        groups.append(weakref.ref(group))
        raise ConfigurationError("wrong")

    def fail(message: str) -> None:
        assert (message, groups[0]()) == ("wrong", None)
        raise SystemExit(2)

    monkeypatch.setattr(cli, "_run", verb)
    monkeypatch.setattr(cli, "fail", fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main([])


def test_ctrl_c_is_exit_code_130(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = accuracy.correct

    def interrupted(*arguments: Any, **options: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return judge(*arguments, **options)

    monkeypatch.setattr(loop, "correct", interrupted)
    assert command(f"train net -o {tmp_path}/run --epochs 2") == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "twoscale: interrupted: saved after mini-batch 23 of 46; continue with the same command and --resume"
    )


def test_bad_input(command: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--max-restarts -1; expected at least 1 and 0"):
        command(f"train net -o {tmp_path}/run --max-restarts -1")
    with pytest.raises(ConfigurationError, match="a batch of 4 cannot be shared by 5 processes"):
        command(f"train net -o {tmp_path}/run --procs 5")
    with pytest.raises(ConfigurationError, match="crop is 32; expected less than 32, the images' size"):
        command(f"train net -o {tmp_path}/run --crop 32 --fill reflect")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UnknownNameError, match="unknown model 'nett': did you mean 'net'"):
        command(f"train nett -o {tmp_path}/run")
    with pytest.raises(ConfigurationError, match="--max-samples is 0; expected at least 1"):
        command("eval x.safetensors --max-samples 0")
    with pytest.raises(ConfigurationError, match=r"x.safetensors does not exist; expected weights"):
        command(f"eval {tmp_path}/x.safetensors")
    (tmp_path / "x.safetensors").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="is neither a safetensors nor a torch file"):
        command(f"eval {tmp_path}/x.safetensors")
    (tmp_path / "x.onnx").write_text("not a network")
    with pytest.raises(ConfigurationError, match="--model is for weights"):
        command(f"eval {tmp_path}/x.onnx --model net")
