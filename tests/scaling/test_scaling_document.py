"""docs/scaling.md shows what its records hold; the notebook reads one of them."""

from __future__ import annotations

from benchmarks.scaling_study import (
    DOCUMENT,
    FURTHER,
    FURTHER_SECTIONS,
    NOTEBOOK,
    RECORD,
    RESNET,
    executed,
    generated,
    renewed,
)
from twoscale.scaling._questions.answers import read_results, sentences
from twoscale.scaling._questions.registry import DEFAULT_SECTIONS, SECTIONS
from twoscale.scaling._questions.report import render_study
from twoscale.scaling._questions.strategies import StrategiesAnswer
from twoscale.scaling._questions.verdict import VerdictAnswer
from twoscale.scaling._questions.wire import WireAnswer


def test_the_documents_tables_are_the_records() -> None:
    study, resnet, further = (read_results(file) for file in (RECORD, RESNET, FURTHER))
    parts = generated(study, resnet, further)
    text = DOCUMENT.read_text()
    assert renewed(text, parts) == text
    assert all(f"<!-- {name} -->" in text for name in parts)
    assert renewed(text.replace(f"> {study.sentences['batch']}", "> planted"), parts) == text


def test_the_records_are_whole() -> None:
    study, resnet = (read_results(file) for file in (RECORD, RESNET))
    assert study.config.sections == DEFAULT_SECTIONS
    assert study.complete
    assert not study.failures
    assert study.config.repeats >= 3
    assert study.config.seeds >= 3
    assert sentences(study) == study.sentences
    further = read_results(FURTHER)
    assert {"strategies", "loading", "step", "variants"} <= set(further.config.sections) <= set(FURTHER_SECTIONS)
    assert (*DEFAULT_SECTIONS, *FURTHER_SECTIONS) == SECTIONS
    assert not set(FURTHER_SECTIONS) & set(DEFAULT_SECTIONS)
    assert further.complete
    assert not further.failures
    assert render_study(further).count("<section") == len(further.config.sections) + 2
    assert all(not one.differences for one in further.of(StrategiesAnswer).strategies)
    ledger = resnet.of(WireAnswer).ledgers[0]
    assert (ledger.ok, ledger.parameters, ledger.total("backward 3")) == (True, 11_173_962, 44_695_848)


def study_sentence() -> str:
    verdict = read_results(RECORD).of(VerdictAnswer).verdict
    assert verdict is not None
    return verdict.sentence


def test_the_notebook_runs() -> None:
    notebook = executed(NOTEBOOK)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert study_sentence() in printed
    assert "backward 3: all_reduce of 247,080 bytes" in printed
    assert "refused: no collective was timed over '10 Gbit/s Ethernet'" in printed
