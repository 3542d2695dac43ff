"""docs/scaling.md shows what its records hold; the notebook reads one of them."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat

from benchmarks.scaling_study import DOCUMENT, RECORD, RESNET, generated, renewed
from twoscale.records import read_record
from twoscale.scaling.config import SECTIONS
from twoscale.scaling.results import StudyResults

NOTEBOOK = Path(__file__).parents[2] / "examples" / "scaling.ipynb"


def test_the_documents_tables_are_the_records() -> None:
    study, resnet = (read_record(file, StudyResults) for file in (RECORD, RESNET))
    parts = generated(study, resnet)
    text = DOCUMENT.read_text()
    assert renewed(text, parts) == text
    assert all(f"<!-- {name} -->" in text for name in parts)
    assert renewed(text.replace(f"> {study.sentences['batch']}", "> planted"), parts) == text


def test_the_records_are_whole() -> None:
    study, resnet = (read_record(file, StudyResults) for file in (RECORD, RESNET))
    assert study.config.sections == SECTIONS
    assert study.complete
    assert not study.failures
    assert study.config.repeats >= 3
    assert study.config.seeds >= 3
    ledger = resnet.ledgers[0]
    assert (ledger.ok, ledger.parameters, ledger.total("backward 3")) == (True, 11_173_962, 44_695_848)


def test_the_notebook_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "backward 3: all_reduce of 247,080 bytes" in printed
    assert "refused: no collective was timed over '10 Gbit/s Ethernet'" in printed
