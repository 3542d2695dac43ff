from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from twoscale import data
from twoscale._cli import main
from twoscale._display import explanation
from twoscale._display.explanation import Modules
from twoscale._files import read_record
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._lab.records import LabResults
from twoscale.errors import ExecutorError


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


def run_command(*words: object) -> Outcome:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code or 0
    assert isinstance(code, int)
    assert "Traceback" not in err.getvalue()
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "80")
    assert sys.stdout is not None
    return run_command


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run a command that must be refused: exit code 2, nothing printed, and one line on standard error, which is
    returned."""

    def check(*words: object) -> str:
        outcome = run(*words)
        lines = outcome.err.splitlines()
        assert outcome.code == 2, outcome
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith("twoscale: error: ")
        assert outcome.out == ""
        return lines[0].removeprefix("twoscale: error: ")

    return check


@dataclass(frozen=True)
class Trained:
    """A trained network and its integer network, made with the command line."""

    checkpoint: Path
    network: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    assert run_command("train", "net-with-bias", "--epochs", 2, "--out", folder).code == 0
    checkpoint, network = folder / "model.safetensors", folder / "net.onnx"
    assert run_command("quantize", checkpoint, "-o", network, "--calibration-images", 64).code == 0
    return Trained(checkpoint, network)


@pytest.fixture
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the data set digits to a few images."""
    make_digits_small(monkeypatch)


def make_digits_small(patch: pytest.MonkeyPatch) -> None:
    whole = data.load("digits")
    small = dataclasses.replace(whole, train=whole.train.head(120), test=whole.test.head(60))
    patch.setattr(data, "load", lambda name, **options: small)


def without_clang(patch: pytest.MonkeyPatch) -> None:
    """Let pages show one picture only: compiling a network for one takes seconds."""

    def missing(network: IntegerNetwork) -> Modules:
        raise ExecutorError("there is no clang")

    patch.setattr(explanation, "compiled_for_page", missing)


@dataclass(frozen=True)
class Lab:
    """A lab on a few images, made with the command line."""

    folder: Path
    outcome: Outcome
    results: LabResults


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        make_digits_small(patch)
        without_clang(patch)
        outcome = run_command("lab", "--out", folder, "--calibration-images", 50, "--json")
    assert outcome.code == 0, outcome.err
    return Lab(folder, outcome, read_record(folder / "results.json", LabResults))
