"""The notebook that goes from an nn.Module to C that runs is executed, compiler and all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import sweep
from tests.notebooks import printed_by


@pytest.mark.skipif(shutil.which("cc") is None or shutil.which("make") is None, reason="needs a C compiler and make")
@pytest.mark.skipif(not sweep.whole(), reason="takes half a minute: --sweep all runs it")
def test_notebook_runs_to_the_self_test_in_c_in_any_folder(tmp_path: Path) -> None:
    printed = printed_by("to_c.ipynb", tmp_path, "epochs=8", "epochs=1")
    assert "all layers and outputs as expected" in printed
