"""Execution of the example notebooks."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed_by(name: str, folder: Path, epochs: str, fewer: str) -> str:
    """Run a notebook in a folder with fewer epochs, since its accuracy is not tested; return what it printed."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)  # type: ignore[no-untyped-call]
    (training,) = [cell for cell in notebook.cells if epochs in cell.source]
    training.source = training.source.replace(epochs, fewer)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    )
