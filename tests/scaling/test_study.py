"""A study from its plan to its page: one real one, small, and then its cells again without measuring."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.forked import forked_ranks
from twoscale._cli import main
from twoscale.errors import ConfigurationError, TwoscaleError, UnknownNameError
from twoscale.scaling._measure.rank import _in_a_line
from twoscale.scaling._measure.records import CapacityRecord, CapacityTrial, Outcome, Workload
from twoscale.scaling._measure.tasks import TrainedRun, TrainingRun
from twoscale.scaling._questions.accuracy import AccuracyAnswer
from twoscale.scaling._questions.answers import answered, read_results
from twoscale.scaling._questions.batch import BatchAnswer
from twoscale.scaling._questions.communication import CommunicationAnswer
from twoscale.scaling._questions.forecast import ForecastAnswer
from twoscale.scaling._questions.registry import DEFAULT_SECTIONS, needs_of
from twoscale.scaling._questions.report import render_study
from twoscale.scaling._questions.speedup import SpeedupAnswer
from twoscale.scaling._questions.verdict import VerdictAnswer
from twoscale.scaling._questions.wire import WireAnswer
from twoscale.scaling._run import CELLS, REPORT, STUDY, run_study, study_config
from twoscale.scaling._study import plan, progress
from twoscale.scaling._study import run as study
from twoscale.scaling._study.cells import KINDS, CellRecord, Measured, StudyCell, read_cell
from twoscale.scaling._study.config import StudyConfig
from twoscale.scaling._study.machine import Machine
from twoscale.scaling._study.plan import ways

WORDS = [
    "scale", "--device", "cpu", "--batch-sizes", "32,1437", "--base-batch", "16,32", "--steps", "2", "--repeats", "1",
    "--seeds", "1", "--epochs", "1", "--accuracy-batches", "64,128", "--untuned",
]  # fmt: skip


def _config(**given: Any) -> StudyConfig:
    options: dict[str, Any] = {
        "batch_sizes": (32, 1437), "base_batch": 16, "grid_batches": (32,), "steps": 2, "repeats": 1, "seeds": 1,
        "epochs": 1, "accuracy_batches": (64, 128), "tune": False,
    }  # fmt: skip
    return study_config("cpu", **{**options, **given})


def first_cells(config: StudyConfig) -> tuple[StudyCell[Any], ...]:
    return plan.first_cells(config, needs_of(config.sections))


def later_cells(config: StudyConfig, first: plan.Outcomes) -> tuple[StudyCell[Any], ...]:
    return plan.later_cells(config, needs_of(config.sections), first)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def _load() -> tuple[float, float, float]:
    """Stand for the machine's load: it decides which rounds the verdict leaves out, and differs between two studies."""
    return 0.5, 0.5, 0.5


@pytest.fixture(scope="session")
def done(once: Callable[[str, Callable[[], Any]], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study that the command line did."""

    def measure() -> str:
        folder = tmp_path_factory.mktemp("study")
        with forked_ranks(), pytest.MonkeyPatch.context() as patch:
            # Threads that wait for each other give way to other test processes.
            patch.setenv("GOMP_SPINCOUNT", "0")
            patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
            patch.setattr(study, "load_average", _load)
            for name in ("batches", "arms"):
                brief = dataclasses.replace(KINDS[name], target=f"tests.scaling.workers:brief_{name}")
                patch.setitem(KINDS, name, brief)
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
            main([*WORDS, "--out", str(folder)])
        return str(folder)

    return Path(once("study", measure))


@pytest.fixture
def again(done: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let cells that are measured give what the small study's gave; a list of their names, in order."""
    measured: list[str] = []

    def give(self: Any, cell: StudyCell[Any]) -> Outcome[Any]:
        measured.append(cell.name)
        return read_cell(done / CELLS / f"{cell.name}.json").outcome

    monkeypatch.setattr(study._Runner, "_measure", give)
    monkeypatch.setattr(study, "load_average", _load)
    return measured


# ---------------------------------------------------------------- the real one


def test_every_section_of_a_real_study(done: Path) -> None:
    results = read_results(done / STUDY)
    assert results.complete
    assert results.failures == ()
    assert list(results.sentences) == list(DEFAULT_SECTIONS)
    assert not any("Nothing was measured" in sentence for sentence in results.sentences.values())
    assert [row.batch_size for row in results.of(BatchAnswer).batches] == [16, 32, 1437]
    assert all(row.of_peak and row.of_peak > 0 for row in results.of(BatchAnswer).batches)
    capacity = results.of(BatchAnswer).capacity
    assert capacity is not None
    assert (capacity.largest, capacity.reached_limit) == (1437, True)
    rows = [(row.scaling, row.world_size, row.batch_size) for row in results.of(SpeedupAnswer).speed]
    assert rows == [("bare", 1, 16), ("ddp-alone", 1, 16), ("apart", 2, 16), ("weak", 2, 16), ("strong", 2, 8)]
    assert results.of(SpeedupAnswer).speed[0].speedup is None
    arms = results.of(CommunicationAnswer).arms
    assert {(at.record.world_size, at.batch_size) for at in arms} == {(1, 16), (1, 32), (2, 16), (2, 32)}
    grid = results.of(SpeedupAnswer).grid
    assert [(row.batch_size, row.world_size) for row in grid] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    assert [row.speedup is None for row in grid] == [True, False, True, False]
    assert results.of(VerdictAnswer).verdict is not None
    assert all(ledger.ok for ledger in results.of(WireAnswer).ledgers)
    assert [ledger.model for ledger in results.of(WireAnswer).ledgers] == ["net", "resnet20"]
    assert len(results.of(ForecastAnswer).held_out) == 2
    # Nothing is refused that nobody asked for.
    refusals = (" held-out cells were off by up to ", " held-out cells waited for communication up to ")
    assert all(any(words in line for words in refusals) for line in results.of(ForecastAnswer).refused)


def test_equal_epochs_and_equal_steps(done: Path) -> None:
    results = read_results(done / STUDY)
    small = next(row for row in results.of(AccuracyAnswer).accuracy if row.way == "small")
    assert small.steps == 23  # 1,437 images in batches of 64
    for row in results.of(AccuracyAnswer).accuracy:
        if row.way != "small":
            assert (row.batch_size, row.epochs) == (128, 1 if row.equal == "epochs" else 2)
            assert row.steps == (12 if row.equal == "epochs" else 24)
    ways_seen = {row.way for row in results.of(AccuracyAnswer).accuracy}
    assert ways_seen == {way.name for way in ways(results.config)}
    for row in results.of(AccuracyAnswer).accuracy:
        assert [point.epoch for point in row.curve] == list(range(1, row.epochs + 1))
        assert row.curve[-1].accuracy == pytest.approx(row.accuracy.mean if row.accuracy else None)
        assert row.loss == pytest.approx(row.curve[-1].loss)


def test_ratios_are_of_the_same_round(done: Path) -> None:
    results = read_results(done / STUDY)
    cells = {file.stem: read_cell(file).result for file in (done / CELLS).glob("ranks-*.json")}
    bare, ddp = cells["ranks-1-0"][0], cells["ranks-2-0"][1]
    assert (bare.arm, ddp.arm, ddp.world_size) == ("bare", "ddp", 2)
    weak = next(row for row in results.of(SpeedupAnswer).speed if row.scaling == "weak")
    assert weak.speedup is not None
    assert weak.efficiency is not None
    assert weak.speedup.mean == pytest.approx(2 * bare.step.median / ddp.step.median)
    assert weak.efficiency.mean == pytest.approx(weak.speedup.mean / 2)


def test_the_page_says_what_the_record_says(done: Path) -> None:
    results = read_results(done / STUDY)
    page = (done / REPORT).read_text()
    assert page == render_study(results)
    for sentence in results.sentences.values():
        assert sentence.split(";")[0][:40].replace("'", "&#39;") in page
    assert not re.search(r"(src|href)=\"https?:", page)
    assert page.count("<section") == len(DEFAULT_SECTIONS) + 2
    assert page.count("<figure>") >= 12


def test_gpus_of_different_kinds_are_said(done: Path) -> None:
    results = dataclasses.replace(read_results(done / STUDY), gpus=("A", "B", "A"))
    page = render_study(results)
    assert "Ranks: 1, 2; 2 × A, 1 × B; " in page
    assert "The GPUs are of different kinds (A, B, A): " in page
    assert "of different kinds" not in render_study(dataclasses.replace(results, gpus=("A", "A")))


# ---------------------------------------------------------------- plan and order


def test_cells_run_in_rounds_in_an_order_of_the_seed() -> None:
    config = _config(repeats=3)
    cells = later_cells(config, {})
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names))
    rounds = [[cell.kind + str(cell.world_size) for cell in cells if cell.repeat == r and cell.kind in
               ("batches", "ranks")] for r in range(3)]  # fmt: skip
    assert [sorted(one) for one in rounds] == [["batches1", "ranks1", "ranks2"]] * 3
    assert [cell.repeat for cell in cells if cell.kind != "accuracy"] == sorted(
        cell.repeat for cell in cells if cell.kind != "accuracy"
    )
    assert names == [cell.name for cell in later_cells(config, {})]
    others = {tuple(cell.name for cell in later_cells(_config(repeats=3, seed=s), {})) for s in range(6)}
    assert len(others) > 1


def test_a_section_alone_needs_only_its_cells() -> None:
    def kinds(*sections: str) -> set[str]:
        config = _config(sections=sections, tune=True)
        return {cell.kind for cell in (*first_cells(config), *later_cells(config, {}))}

    assert kinds("sampler") == kinds("wire") == kinds("replicas") == {"wire"}
    assert kinds("strategies") == {"strategies"}
    assert kinds("accuracy") == {"tune", "accuracy"}
    assert kinds("batch") == {"capacity", "batches"}
    assert kinds("speedup") == {"batches", "ranks"}
    assert kinds("communication") == kinds("forecast") == {"ranks", "arms"}


def test_ranks_are_compared_at_every_base_batch() -> None:
    config = _config(grid_batches=(4, 64), steps=3)
    assert config.rank_batches == (4, 16, 64)
    cells = {cell.name: cell.arguments for cell in later_cells(config, {})}
    assert cells["ranks-1-0"].runs == (
        ("bare", 16), ("ddp", 16), ("bare", 4), ("ddp", 4), ("bare", 64), ("ddp", 64),
    )  # fmt: skip
    assert cells["ranks-2-0"].runs == (
        ("bare", 16), ("ddp", 16), ("ddp", 8), ("silent", 16), ("ddp", 4), ("ddp", 64),
    )  # fmt: skip
    assert cells["arms-2-0"].batch_sizes == (4, 16, 32, 64)
    assert [cells[name].steps for name in ("ranks-2-0", "arms-2-0", "batches-1-0")] == [3, 3, 3]
    # More steps in a turn of the arms would only take longer.
    many = {cell.name: cell.arguments for cell in later_cells(_config(steps=50), {})}
    assert [many[name].steps for name in ("ranks-2-0", "arms-2-0")] == [50, 5]
    assert study_config("cpu").rank_batches == (32, 64, 128)


def test_batches_beyond_the_largest_are_not_tried_but_shown(again: list[str], tmp_path: Path) -> None:
    trial = CapacityTrial(128, "out-of-memory", 1.0, None)
    capacity = CapacityRecord(Workload(), 1, None, largest=100, reached_limit=False, trials=(trial,))
    cells = later_cells(_config(), {"capacity": Outcome("ok", 1.0, 1, 1, capacity)})
    batches = next(cell for cell in cells if cell.kind == "batches")
    assert batches.arguments.batch_sizes == (16, 32, 100)


def test_tuned_rates_are_the_best_and_the_scaled_follow_the_small() -> None:
    config = _config(tune=True)
    runs = first_cells(config)[1].arguments.runs
    assert {run.way for run in runs} == {"small", "tuned", "lars", "lamb", "adamw"}
    tried = {(run.way, run.equal): sorted(r.config.lr for r in runs if (r.way, r.equal) == (run.way, run.equal))
             for run in runs}  # fmt: skip
    # Among the candidates is every rate that the rows which only scale may get: any that is tried for the small batch,
    # and four times it. Runs of both lengths are searched.
    scaled = {growth * rate for rate in tried["small", "epochs"] for growth in (1, 4)}
    assert set(tried["tuned", "epochs"]) == set(tried["tuned", "steps"]) == scaled
    assert tried["small", "epochs"] == [0.005, 0.01, 0.02, 0.04, 0.08]
    assert ("small", "steps") not in tried

    def accuracy(run: TrainingRun) -> float:
        rates = tried[run.way, run.equal]
        return 0.9 if run.config.lr == rates[-1 if run.equal == "epochs" else 0] else 0.5

    found = [TrainedRun(run.way, run.config, run.equal, accuracy=accuracy(run)) for run in runs]
    found[0] = dataclasses.replace(found[0], accuracy=None)  # its loss became infinite
    cells = later_cells(config, {"tune": Outcome("ok", 1.0, 1, 1, tuple(found))})
    rates = {(run.way, run.equal): run.config.lr
             for cell in cells if cell.kind == "accuracy" for run in cell.arguments.runs}  # fmt: skip
    assert rates["small", "epochs"] == 0.08
    for equal in ("epochs", "steps"):
        assert rates["plain", equal] == rates["linear", equal] == 0.08
    assert (rates["lars", "epochs"], rates["lars", "steps"]) == (64.0, 4.0)
    assert (rates["tuned", "epochs"], rates["tuned", "steps"]) == (0.32, 0.005)


def test_a_study_with_little_time_measures_first_what_the_verdict_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def fail(self: Any, cell: StudyCell[Any]) -> Outcome[Any]:
        measured.append(cell.name)
        return Outcome("crash", 1.0, cell.world_size, 1, None, "planted")

    monkeypatch.setattr(study._Runner, "_measure", fail)
    run_study(_config(repeats=2, sections=("communication", "speedup", "batch")), tmp_path, minutes=10)
    assert sorted(measured[:4]) == ["arms-1-0", "arms-2-0", "ranks-1-0", "ranks-2-0"]
    assert measured[4] == "capacity-1-0"
    assert sorted(measured[5:]) == ["batches-1-0", "batches-1-1", "ranks-1-1", "ranks-2-1"]


def test_a_killed_study_leaves_nothing_but_its_folder(tmp_path: Path) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "twoscale", *WORDS, "--sections", "wire", "-o", str(out)]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    launches = out / CELLS / ".launches"
    while not list(launches.glob("*/job.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(launches.glob("*/job.json"))
    process.kill()
    process.wait()
    assert not list(temporary.glob("twoscale-*"))
    assert list(launches.iterdir())
    # The next run removes it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study._Runner, "_measure", lambda self, cell: Outcome("crash", 1.0, 2, 1, None, "planted"))
        run_study(_config(sections=("wire",)), out, resume=True)
    assert not launches.exists()


# ---------------------------------------------------------------- going on, failing, running out of time


def test_a_killed_study_goes_on_where_it_was(
    done: Path, again: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = study._Runner._measure

    def interrupt(self: Any, cell: StudyCell[Any]) -> Outcome[Any]:
        if len(again) == 3:
            raise KeyboardInterrupt
        return give(self, cell)

    with monkeypatch.context() as patch:
        patch.setattr(study._Runner, "_measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_study(_config(), tmp_path)
    first = list(again)
    assert sorted(file.stem for file in (tmp_path / CELLS).iterdir()) == sorted(first)
    assert not (tmp_path / STUDY).exists()
    with pytest.raises(ConfigurationError, match="holds a study already; continue it with --resume"):
        run_study(_config(), tmp_path)
    results = run_study(_config(), tmp_path, resume=True)
    assert again[3:] == [name for name in again if name not in first]
    assert len(again) == len(list((done / CELLS).iterdir()))
    whole = read_results(done / STUDY)
    same = dataclasses.replace(results, environment=whole.environment, loads=whole.loads)
    assert same == whole


def test_a_terminal_sees_a_table_of_what_is_done(
    again: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    give = study._Runner._measure

    def fail(self: Any, cell: StudyCell[Any]) -> Outcome[Any]:
        return Outcome("time-out", 1.0, 2, 1, None, "planted") if cell.kind == "wire" else give(self, cell)

    monkeypatch.setattr(study._Runner, "_measure", fail)
    run_study(_config(sections=("wire", "communication")), tmp_path, progress=progress.study_progress())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "0 of 5 cells, about – left" in shown
    assert re.search(r"[1-4] of 5 cells, about \d+:\d\d left; now ", shown)
    assert "wire, replicas, sampler, 2 ranks: time-out: planted" in shown
    assert re.search(r"wire, replicas, sampler +1 *$", shown, re.MULTILINE)  # failed


def test_a_long_cell_reports_what_it_does_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("twoscale.scaling._study.progress.time.monotonic", lambda: now[0])
    lines = progress._Lines()
    cell = first_cells(_config(sections=("batch",)))[0]
    lines.plan([cell])
    for seconds, what in ((1, "batch 16"), (30, "batch 32"), (31, "batch 64"), (60, "batch 128")):
        now[0] = 100.0 + seconds
        lines.within(cell, what)
    assert capsys.readouterr().err.splitlines() == ["1/1 largest batch: batch 32", "1/1 largest batch: batch 128"]


def test_one_study_at_a_time_in_a_folder(again: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give = study._Runner._measure
    refused: list[str] = []

    def another(self: Any, cell: StudyCell[Any]) -> Outcome[Any]:
        with pytest.raises(TwoscaleError) as error:
            run_study(_config(sections=("wire",)), tmp_path, resume=True)
        refused.append(str(error.value))
        return give(self, cell)

    monkeypatch.setattr(study._Runner, "_measure", another)
    run_study(_config(sections=("wire",)), tmp_path)
    assert refused == [
        f"another process is measuring in {tmp_path / CELLS} at this moment; wait for its end, or choose another folder"
    ]
    run_study(_config(sections=("wire",)), tmp_path, resume=True)


def test_a_folder_that_cannot_be_is_said_before_anything_is_measured(again: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TwoscaleError, match=r"cannot write .*file/cells: Not a directory; choose another folder"):
        run_study(_config(), tmp_path / "file")
    assert again == []


def test_a_damaged_cell_is_named_and_how_to_go_on(again: list[str], tmp_path: Path) -> None:
    run_study(_config(sections=("wire",)), tmp_path)
    file = tmp_path / CELLS / "wire-2-0.json"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(TwoscaleError, match=r"wire-2-0.json does not hold .*; remove the file to have that cell"):
        run_study(_config(sections=("wire",)), tmp_path, resume=True)
    file.unlink()
    again.clear()
    run_study(_config(sections=("wire",)), tmp_path, resume=True)
    assert again == ["wire-2-0"]


@pytest.mark.parametrize(
    "damaged",
    [
        lambda text: text.replace(b"wire", b"w\xe5re", 1),  # a byte that is not UTF-8
        lambda text: text.replace(b'"kind": "wire"', b'"kind": "waves"'),
        lambda text: re.sub(rb'"result": \{.*\}(?=,\s*"message")', b'"result": 7', text, flags=re.DOTALL),
        lambda text: re.sub(rb'"result": \{.*\}(?=,\s*"message")', b'"result": null', text, flags=re.DOTALL),
        lambda text: text.replace(b'"batch_size": 4', b'"batch_size": -4'),
        lambda text: b'{"cell": ' * 100_000,
        lambda text: b"[]",
    ],
)
def test_a_cell_that_is_none_is_refused_in_a_line(
    damaged: Callable[[bytes], bytes], again: list[str], done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / CELLS).mkdir()
    text = (done / CELLS / "wire-2-0.json").read_bytes()
    changed = damaged(text)
    assert changed != text
    (tmp_path / CELLS / "wire-2-0.json").write_bytes(changed)
    with pytest.raises(SystemExit) as ended:
        main([*WORDS, "--sections", "wire", "--resume", "--out", str(tmp_path)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "wire-2-0.json does not hold a CellRecord record: " in said
    assert said.endswith("; remove the file to have that cell measured again\n")
    assert again == []


def test_what_there_was_no_time_for_is_measured_with_more_time(again: list[str], tmp_path: Path) -> None:
    # A search with less time is coarser; what it found is kept.
    options = {"sections": ("batch",)}
    run_study(_config(**options, tolerance=0.25), tmp_path, minutes=10)
    again.clear()
    run_study(_config(**options), tmp_path, resume=True)
    assert again == []


def test_the_verdict_is_at_the_most_ranks_that_gave_a_result(done: Path) -> None:
    results = read_results(done / STUDY)
    assert results.of(VerdictAnswer).verdict is not None
    records = [read_cell(file) for file in sorted((done / CELLS).iterdir())]
    # Four ranks were asked for and all their cells failed.
    config = dataclasses.replace(results.config, world_sizes=(1, 2, 4))
    measured = Measured(config, tuple(records), (), environment=results.environment)
    assert answered(measured).of(VerdictAnswer) == results.of(VerdictAnswer)


def test_one_rank_is_always_measured() -> None:
    assert _config(world_sizes=(2, 4)).world_sizes == (1, 2, 4)
    with pytest.raises(ConfigurationError, match="world_sizes begins with 2; expected 1, to compare with"):
        dataclasses.replace(_config(), world_sizes=(2,))


def test_the_time_of_training_runs_is_expected_from_the_search_for_rates(tmp_path: Path) -> None:
    config = _config(tune=True, epochs=2)
    (tune,) = (cell for cell in first_cells(config) if cell.kind == "tune")
    (runs,) = (cell for cell in later_cells(config, {}) if cell.kind == "accuracy")
    runner = study._Runner(config, tmp_path, 1437, None, progress.NoProgress(), Machine.here("cpu"))
    runner._keep(CellRecord(tune, Outcome("ok", 30.0, 1, 1, []), "", None), again=True)
    # 5 runs of the small batch, 22 of the large one for 2 epochs and 22 for 4; then 7 for 2 epochs, and 6 for 4.
    assert runner.expected(runs) == pytest.approx(30 * (7 * 2 + 6 * 4) / (5 * 2 + 22 * 2 + 22 * 4))


def test_the_time_left_after_resume_counts_what_is_done_already(tmp_path: Path) -> None:
    config = _config(repeats=2, sections=("speedup",))
    cells = later_cells(config, {})

    runner = study._Runner(config, tmp_path, 1437, None, progress.NoProgress(), Machine.here("cpu"))
    # Of two launches of each of three cells all but the first in order were measured, in 10 and 20 seconds.
    seconds = {"batches": 10.0, "ranks": 20.0}
    kept: list[CellRecord[Any, Any]] = [
        CellRecord(cell, Outcome("ok", seconds[cell.kind], 1, 1, []), "", None) for cell in cells[1:]
    ]
    runner.remember(kept)
    runner.plan(cells)
    assert runner.left() == seconds[cells[0].kind]
    for record in kept:  # found again one by one, they change nothing
        runner._keep(record, again=True)
        assert runner.left() == seconds[cells[0].kind]


def test_cells_of_other_options_are_not_taken(again: list[str], tmp_path: Path) -> None:
    run_study(_config(sections=("wire",)), tmp_path)
    with pytest.raises(TwoscaleError, match=r"wire-2-0.json was measured with other options; continue with those"):
        run_study(_config(sections=("wire",), seed=1), tmp_path, resume=True)


def test_a_study_does_not_go_on_elsewhere(again: list[str], tmp_path: Path) -> None:
    run_study(_config(sections=("wire",)), tmp_path)
    file = tmp_path / CELLS / "wire-2-0.json"
    written = json.loads(file.read_text())
    here = Machine.here("cpu")
    assert written["machine"] == {"processor": here.processor, "cores": here.cores, "gpus": [], "torch": here.torch}
    again.clear()

    def resumed_with(**planted: Any) -> None:
        file.write_text(json.dumps({**written, "machine": {**written["machine"], **planted}}))
        run_study(_config(sections=("wire", "communication")), tmp_path, resume=True)

    for planted, words in (
        ({"torch": "1.0"}, f"torch 1.0, now {here.torch}"),
        ({"cores": 99, "gpus": ["A", "B"]}, f"cores 99, now {here.cores}; gpus A and B, now none"),
        ({"processor": "Z80"}, f"processor Z80, now {here.processor}"),
    ):
        with pytest.raises(TwoscaleError) as refused:
            resumed_with(**planted)
        assert str(refused.value) == (
            f"{file} was measured elsewhere ({words}), and the times cannot be compared; continue there, or choose "
            "another --out"
        )
    assert again == []  # refused before anything else is measured
    del written["machine"]  # an earlier version's
    file.write_text(json.dumps(written))
    run_study(_config(sections=("wire",)), tmp_path, resume=True)
    assert again == []


def test_a_cell_that_fails_is_a_result(again: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give = study._Runner._measure

    def fail(self: Any, cell: StudyCell[Any]) -> Outcome[Any]:
        if cell.kind in ("arms", "capacity") and cell.world_size < 3:
            return Outcome("out-of-memory", 1.0, cell.world_size, 1, None, "planted", "")
        return give(self, cell)

    monkeypatch.setattr(study._Runner, "_measure", fail)
    # Without the capacity, the cell of batch sizes is another; it is not what this is about.
    results = run_study(_config(sections=("speedup", "communication", "wire", "forecast")), tmp_path)
    assert {(one.status, one.message) for one in results.failures} == {("out-of-memory", "planted")}
    assert len(results.failures) == 2
    assert results.of(VerdictAnswer).verdict is None
    assert results.sentences["communication"].startswith("Nothing was measured")
    assert results.sentences["wire"].endswith("as predicted, to the byte.")
    page = (tmp_path / REPORT).read_text()
    assert "Cells that failed" in page
    assert "planted" in page
    again.clear()
    run_study(_config(sections=("speedup", "communication", "wire", "forecast")), tmp_path, resume=True)
    assert again == []


def test_what_there_is_no_time_for_is_left_out_and_said(again: list[str], tmp_path: Path) -> None:
    results = run_study(_config(sections=("wire", "communication")), tmp_path, minutes=1e-9)
    assert again == []
    assert not results.complete
    assert len(results.left_out) == 5
    assert "No time was left for: wire, replicas, sampler, 2 ranks." in (tmp_path / REPORT).read_text()
    with pytest.raises(ConfigurationError, match="minutes is 0; expected a positive number"):
        run_study(_config(), tmp_path, minutes=0)


def test_errors_are_told_in_a_line() -> None:
    assert _in_a_line(MemoryError()) == "MemoryError"
    assert _in_a_line(ValueError("one\n two")) == "ValueError: one two"
    assert _in_a_line(ConfigurationError("steps is 0")) == "steps is 0"


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_interrupt_leaves_no_process_and_no_half_cell(number: signal.Signals, tmp_path: Path) -> None:
    # A process that was started in the background may have been told to ignore Ctrl-C.
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{restore}\nfrom twoscale._cli import main; main()"
    command = [sys.executable, "-c", code, "scale", "--device", "cpu",
               "--world-sizes", "2", "--sections", "wire", "--out", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def below(parent: int) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                after = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(after[1]) == parent:
                child = int(stat.parent.name)
                found += [child, *below(child)]
        return found

    deadline = time.monotonic() + 120
    started: list[int] = []
    while len(started) < 3 and time.monotonic() < deadline:  # the launcher and two ranks
        time.sleep(0.05)
        started = below(process.pid)
    assert len(started) >= 3
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert text.splitlines()[-1].startswith("twoscale: interrupted; finished cells are kept; continue with: ")
    deadline = time.monotonic() + 10
    while not all(map(_gone, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in started if not _gone(pid)] == []
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-sizes", "32;64"], "--batch-sizes is 32;64; expected whole numbers with commas between, such as 1,2"),
        (["--batch-sizes", "64,32"], "batch_sizes is 64, 32; expected ascending numbers of at least 1"),
        (["--world-sizes", "0,1"], "world_sizes is 0, 1; expected ascending numbers of at least 1"),
        (["--sections", "waves"], "unknown section 'waves': known names: accuracy, batch, "),
        (["--accuracy-batches", "16"], "accuracy_batches has 1 numbers; expected 2"),
        (["--world-sizes", "1,99999"], "99999 ranks on "),
        (["--seed", "99999999999999999999"], "seed is 99999999999999999999; expected 0 to 4294967295"),
        (["--repeats", "0"], "repeats is 0; expected at least 1"),
        (["--steps", "0"], "steps is 0; expected at least 1"),
        (["--base-batch", "32,32"], "base_batch is 32, 32; expected different numbers of at least 1"),
        (["--base-batch", "32,0"], "base_batch is 32, 0; expected different numbers of at least 1"),
        (["--minutes", "-1"], "minutes is -1; expected a positive number"),
        (["nett"], "unknown model 'nett': did you mean 'net'? "),
        (["--data", "digit"], "unknown data set 'digit': did you mean 'digits'? "),
        (["--device", "cuda"], "device is cuda, but PyTorch finds no GPU; use --device cpu"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        main(["scale", *words, "--out", str(tmp_path)])
    assert ended.value.code == 2
    found = capsys.readouterr().err
    assert found.startswith(f"twoscale: error: {message}")
    assert found.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_how_a_failed_cell_is_measured_again_is_said(
    again: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study._Runner, "_measure", lambda self, cell: Outcome("crash", 1.0, 2, 1, None, "planted"))
    main([*WORDS, "--sections", "6", "--out", str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert "failed: wire, replicas, sampler, 2 ranks: crash: planted" in said
    assert said.count("To measure a failed cell again, remove its file in ") == 1


def test_sections_by_number_and_json(again: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*WORDS, "--sections", "6,5", "--out", str(tmp_path), "--json"])
    answers = json.loads(capsys.readouterr().out)
    assert list(answers["sentences"]) == ["sampler", "wire"]
    assert answers["verdict"] is None


def test_an_unknown_section_in_python() -> None:
    with pytest.raises(UnknownNameError, match="unknown section 'batches': did you mean 'batch'"):
        _config(sections=("batches",))
