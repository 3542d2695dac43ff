"""The notebook that goes from an nn.Module to a `.tflite` file in LiteRT is executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import sweep
from tests.notebooks import printed_by


@pytest.mark.skipif(not sweep.whole(), reason="takes half a minute: --sweep all runs it")
def test_litert_computes_the_same_integers_in_any_folder(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    printed = printed_by("tflite.ipynb", tmp_path, "range(24)", "range(1)")
    assert "0 of 3600 outputs differ" in printed
