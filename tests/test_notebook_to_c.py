"""The notebook that goes from an nn.Module to C that runs is executed, compiler and all."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests import sweep

NOTEBOOK = Path(__file__).parents[1] / "examples" / "to_c.ipynb"


@pytest.mark.skipif(shutil.which("cc") is None or shutil.which("make") is None, reason="needs a C compiler and make")
@pytest.mark.skipif(not sweep.whole(), reason="takes half a minute: --sweep all runs it")
def test_notebook_runs_to_the_self_test_in_c_in_any_folder(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    (training,) = [cell for cell in notebook.cells if "epochs=8" in cell.source]
    training.source = training.source.replace("epochs=8", "epochs=1")  # how well it classifies is not tested
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
    assert "all layers and outputs as expected" in printed
