"""The notebook that goes from an nn.Module to a `.tflite` file in LiteRT is executed."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

from tests import sweep

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tflite.ipynb"


@pytest.mark.skipif(not sweep.whole(), reason="takes half a minute: --sweep all runs it")
def test_litert_computes_the_same_integers_in_any_folder(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    (training,) = [cell for cell in notebook.cells if "range(24)" in cell.source]
    training.source = training.source.replace("range(24)", "range(1)")  # how well it classifies is not tested
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    printed = "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    )
    assert "0 of 3600 outputs differ" in printed
