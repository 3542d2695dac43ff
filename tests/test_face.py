"""Public functions that no other test calls by their public names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import twoscale
from tests.quantization.small_models import images, residual_model
from twoscale._runtimes.wasm import find_clang
from twoscale.errors import CalibrationError

PIXELS = images(41, 60)


@pytest.fixture(scope="module")
def network() -> twoscale.IntegerNetwork:
    return twoscale.quantize(residual_model(4), [PIXELS])


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_compiled_network_gives_the_same_logits(network: twoscale.IntegerNetwork) -> None:
    classify = twoscale.compile(network, threads=1)
    assert np.array_equal(classify(PIXELS), network(PIXELS))
    assert type(network.compile(threads=1)) is type(classify)


def test_export_writes_c(network: twoscale.IntegerNetwork, tmp_path: Path) -> None:
    written = twoscale.export(network, tmp_path / "c", target="portable", name="face")
    assert (tmp_path / "c" / "face.c").is_file()
    assert written.prefix == "face"


def test_export_wasm_names_what_is_missing(
    network: twoscale.IntegerNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/codegen/test_wasm.py runs what it writes."""
    find_clang.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(twoscale.TwoscaleError, match="WebAssembly needs clang"):
        twoscale.export_wasm(network, tmp_path / "site")
    find_clang.cache_clear()
    assert not (tmp_path / "site").exists()


def test_inspect_describes_every_tensor() -> None:
    model = residual_model(4)
    found = twoscale.inspect(model, [torch.from_numpy(PIXELS[:40]), PIXELS[40:]])
    seen = found.activations[0]
    assert (found.images, seen.name, seen.kind, seen.count) == (60, "input", "input", PIXELS.size)
    assert (seen.min, seen.max) == (PIXELS.min(), PIXELS.max())
    assert seen.mean == pytest.approx(PIXELS.mean(dtype=np.float64))
    assert {s.name for s in found.weights if s.kind == "weight"} == {"stem", "a", "b", "c", "shortcut", "d", "fc"}
    head = dict(model.named_modules())["fc"].weight.detach().numpy()
    [fc] = [s for s in found.weights if (s.name, s.kind) == ("fc", "weight")]
    assert (fc.count, fc.min, fc.max) == (head.size, head.min(), head.max())


def test_inspect_needs_images() -> None:
    with pytest.raises(CalibrationError, match="inspect got no images; pass at least one batch"):
        twoscale.inspect(residual_model(4), [])


def test_results_show_themselves_in_notebooks(network: twoscale.IntegerNetwork) -> None:
    found = twoscale.inspect(residual_model(4), [PIXELS])
    html = found._repr_html_()
    assert html.count("<table") == 2
    assert all(f">{s.name}<" in html for s in (*found.weights, *found.activations))
    assert found.activations[1]._repr_svg_().startswith("<svg")
    assert "<table" in network._repr_html_()
    assert "<table" in twoscale.verify(network, [PIXELS])._repr_html_()
