"""C that computes row by row: the same integers for every layer, in fewer bytes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import twoscale
from tests.codegen.compiling import DTYPES, SANITIZED, STRICT, build, need, run
from tests.codegen.test_c_on_cortex_m import TOOLS, count_of, make
from tests.integer_networks import COMPOSED, ActivationType, random_network
from twoscale import models
from twoscale._codegen.c import SizeReport, export_c
from twoscale._codegen.c.portable.lowering import lower
from twoscale._codegen.c.small_ram.lowering import RowProgram
from twoscale._codegen.c.small_ram.lowering import lower as lower_rows
from twoscale._codegen.c.small_ram.segments import Window, plan_segments
from twoscale._files import read_record
from twoscale._ir.integer_network import IntegerNetwork

ROWWISE = {"add", "average_pool", "clamp", "conv", "depthwise", "max_pool", "pad", "residual", "slice", "table"}


def some_network(seed: int, dtype: ActivationType = "uint8", *, all_operators: bool = False) -> IntegerNetwork:
    """Return a network that begins with many layers that can compute row by row."""
    options: dict[str, Any] = {} if all_operators else {"operators": ROWWISE}
    return random_network(
        np.random.default_rng(seed), length=12, image_shape=(3, 13, 6), dtype=dtype, name="rows", **options
    )


def self_test(network: IntegerNetwork, folder: Path, *flags: str) -> str:
    """Return the output of the self-test, with the checksum of every layer."""
    export_c(network, folder, target="small-ram", name="rows")
    return run(build("gcc", folder, ["rows_test.c", "rows.c"], "-DROWS_TRACE", *flags)).stdout


PASSED = "rows: 4 images, all layers and outputs as expected\n"


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_every_layer_of_random_networks(seed: int, dtype: ActivationType, tmp_path: Path) -> None:
    need("gcc")
    network = some_network(seed, dtype, all_operators=seed % 2 == 1)
    assert self_test(network, tmp_path, *STRICT, "-Wno-overlength-strings") == PASSED


def test_operators_that_are_composed_of_several_layers(tmp_path: Path) -> None:
    need("gcc")
    network = random_network(np.random.default_rng(3), operators=COMPOSED, length=12, dtype="uint8", name="rows")
    assert self_test(network, tmp_path, *STRICT, "-Wno-overlength-strings") == PASSED


@pytest.mark.parametrize("seed", [0, 1])
def test_no_byte_outside_of_what_it_was_given(seed: int, tmp_path: Path) -> None:
    need("gcc")
    assert self_test(some_network(seed, "mixed"), tmp_path, *SANITIZED) == PASSED


def test_it_is_row_by_row_and_takes_fewer_bytes() -> None:
    """Over many networks: never more bytes than with whole tensors, mostly fewer, and all kinds of layers by rows."""
    fewer, kinds = 0, set()
    for seed in range(30):
        network = some_network(seed)
        program, whole = lower_rows(network), lower(network)
        assert program.plan.size <= whole.plan.size
        fewer += program.plan.size < whole.plan.size
        for segment in program.segments:
            kinds |= {network.layers[i].op for i in segment.order}
            if segment.order:  # each row is computed once
                layers = network.layers[segment.first : segment.last + 1]
                assert len(segment.order) == sum(layer.output.shape[1] for layer in layers)
    assert fewer == 30
    assert kinds == {"Add", "AveragePool2d", "Clamp", "Conv2d", "MaxPool2d", "Pad", "Slice", "Table"}


def test_places_of_tensors_do_not_meet_but_where_one_is_written_over_another() -> None:
    for seed in range(10):
        program = lower_rows(some_network(seed, all_operators=seed % 2 == 1))
        if not any(segment.order for segment in program.segments):
            continue  # no gain, so the plan is that of whole tensors
        segment_of = {i: k for k, s in enumerate(program.segments) for i in range(s.first, s.last + 1)}
        over = {frozenset(s.over[:2]) for s in program.segments if s.over is not None}
        spans = spans_of(program, segment_of)
        for a, (a_begin, a_end, a_first, a_last) in spans.items():
            for b, (b_begin, b_end, b_first, b_last) in spans.items():
                at_once = a_first <= b_last and b_first <= a_last
                if a != b and at_once and frozenset((a, b)) not in over:
                    assert a_end <= b_begin or b_end <= a_begin, (seed, a, b)


def spans_of(program: RowProgram, segment_of: dict[int, int]) -> dict[str, tuple[int, int, int, int]]:
    """Return bytes and segments of every tensor in the arena. Tensors that share all bytes count as one."""
    root: dict[str, str] = {}
    found: dict[str, tuple[int, int, int, int]] = {}
    for step in program.steps:
        name, now = step.layer.name, segment_of[step.index]
        root[name] = name if step.view_of is None else root[step.view_of]
        for used in (*step.layer.inputs, name):
            if program.places[used].where == "arena":
                begin = program.places[used].offset
                size = program.bytes_kept(root[used])
                first = found.get(root[used], (0, 0, now, 0))[2]
                found[root[used]] = (begin, begin + size, first, now)
    return found


def test_resnet20_in_twenty_kib_and_its_plan_is_tight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that begins later than planned destroys rows that are still needed, and the self-test detects it."""
    need("gcc")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    resnet20 = twoscale.quantize(models.create("resnet20").eval(), [images])
    inputs = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    export_c(resnet20, tmp_path, target="small-ram", name="resnet20", inputs=inputs)
    sizes = read_record(tmp_path / "resnet20_sizes.json", SizeReport)
    assert sizes.arena_bytes == 19_456
    assert lower(resnet20).arena_bytes == 32_768
    assert re.search(r"#define RESNET20_ARENA_BYTES 19456\n", (tmp_path / "resnet20.h").read_text())
    done = run(build("gcc", tmp_path, ["resnet20_test.c", "resnet20.c"], "-std=c99", "-O1", "-DRESNET20_TRACE"))
    assert done.stdout == "resnet20: 1 images, all layers and outputs as expected\n"

    def careless(*arguments: Any) -> Any:
        segments = plan_segments(*arguments)
        late = [(s.over[0], s.over[1], s.over[2] + 1024) if s.over and s.over[2] < 0 else s.over for s in segments]
        assert late != [s.over for s in segments]
        return [dataclasses.replace(s, over=over) for s, over in zip(segments, late, strict=True)]

    monkeypatch.setattr("twoscale._codegen.c.small_ram.lowering.plan_segments", careless)
    export_c(resnet20, tmp_path, target="small-ram", name="resnet20", inputs=inputs)
    done = run(build("gcc", tmp_path, ["resnet20_test.c", "resnet20.c"], "-std=c99", "-O1", "-DRESNET20_TRACE"))
    assert "is the first to differ" in done.stdout


def test_on_a_microcontroller(tmp_path: Path) -> None:
    need(*TOOLS)
    network = some_network(0, "int8")
    assert any(segment.order for segment in lower_rows(network).segments)
    export_c(network, tmp_path, target="small-ram", name="rows")
    assert count_of(make("run", tmp_path / "rows", "cortex-m3"), "rows") > 0


def test_a_ring_of_one_row_less_is_caught(tmp_path: Path) -> None:
    """All rows that the plan keeps are needed: with fewer in the C, a layer differs."""
    need("gcc")
    network = some_network(8)
    kept = lower_rows(network).kept
    assert max(kept.values()) > 2
    export_c(network, tmp_path, target="small-ram", name="rows")
    text = (tmp_path / "rows.c").read_text()
    found = re.findall(r"const kept_rows from = \{(arena \+ \d+), (\d+), (\d+)\};", text)
    place, rows, size = next(f for f in found if int(f[1]) == max(kept.values()))
    less = str(int(rows) - 1)
    text = text.replace(f"{{{place}, {rows}, {size}}}", f"{{{place}, {less}, {size}}}")
    text = text.replace(f"to = {place} + row % {rows} * {size}", f"to = {place} + row % {less} * {size}")
    (tmp_path / "rows.c").write_text(text)
    done = run(build("gcc", tmp_path, ["rows_test.c", "rows.c"], "-std=c99", "-O1", "-DROWS_TRACE"))
    assert done.returncode == 1
    assert "is the first to differ" in done.stdout


def test_windows() -> None:
    window = Window(stride=2, above=1, extent=3)
    assert [window.needed(row, 8) for row in range(4)] == [2, 4, 6, 8]
    assert [window.first(row) for row in range(4)] == [0, 1, 3, 5]
    assert Window(1, 1, 3).needed(7, 8) == 8
    assert Window(1, 4).needed(2, 8) == 0  # rows of padding need no input
