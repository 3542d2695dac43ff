"""Where a step goes and what it waits for: planted sleeps show up in their own rows, and layers have known numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.scaling.own_steps import BATCH, PAUSE
from tests.scaling.slow_decoder import SECONDS
from twoscale.scaling._measure.records import BreakdownRecord, LoadingRecord, Roofline, decode
from twoscale.scaling._measure.traces import chrome_trace
from twoscale.scaling._questions.breakdown import kinds_table, layers_table, parts_table, timeline_plot
from twoscale.scaling._questions.loading import loading_plot, loading_table

PARTS = ("data", "forward", "backward", "update")


@pytest.fixture(scope="module")
def alone(measured: Callable[..., Any]) -> dict[str, Any]:
    result: dict[str, Any] = measured("alone", world_size=1)
    return result


@pytest.fixture(scope="module")
def layers(alone: dict[str, Any]) -> BreakdownRecord:
    return decode(alone["layers"], BreakdownRecord)


@pytest.fixture(scope="module")
def shared(measured: Callable[..., Any]) -> BreakdownRecord:
    return decode(measured("core")["parts"], BreakdownRecord)


@pytest.mark.parametrize("where", PARTS)
def test_a_sleep_is_in_its_own_part(alone: dict[str, Any], where: str) -> None:
    nothing, planted = (decode(alone["parts"][part], BreakdownRecord) for part in ("nowhere", where))
    assert tuple(part.name for part in planted.parts) == PARTS
    assert planted.part(where) >= PAUSE
    for part in PARTS:
        grown = (planted.part(part) - nothing.part(part)) / PAUSE
        assert grown == pytest.approx(float(part == where), abs=0.4), part


def test_a_sleep_in_a_layer_is_the_layers(alone: dict[str, Any]) -> None:
    record = decode(alone["sleepy layer"], BreakdownRecord)
    slow = next(layer for layer in record.layers if layer.kind == "Pause")
    assert slow.name == "module.1"
    assert slow.forward >= PAUSE
    assert slow.backward >= PAUSE
    assert sum(layer.forward + layer.backward for layer in record.layers if layer is not slow) < 0.4 * PAUSE
    assert record.forward >= PAUSE
    assert record.backward >= PAUSE
    linear = record.layers[0]
    assert (linear.flops, linear.bytes) == (2 * BATCH * 16 * 8, 4 * (BATCH * 16 + 16 * 8 + 8 + BATCH * 8))


def test_layers_of_the_small_network(layers: BreakdownRecord) -> None:
    flops = {layer.name: layer.flops for layer in layers.layers if layer.flops}
    assert flops == {
        "conv1": 4 * 2 * 28 * 28 * 6 * 75,
        "conv2": 4 * 2 * 10 * 10 * 16 * 150,
        "fc1": 4 * 2 * 400 * 120,
        "fc2": 4 * 2 * 120 * 84,
        "fc3": 4 * 2 * 84 * 10,
    }
    for layer in layers.layers:
        assert layer.forward > 0, layer.name
        assert layer.backward > 0, layer.name
    assert sum(layer.forward for layer in layers.layers) <= layers.forward
    assert sum(layer.backward for layer in layers.layers) <= layers.backward
    assert layers.roofline is not None
    assert {"Conv2d", "Linear"} <= {row[0].text for row in kinds_table(layers).rows}
    assert len(layers_table(layers).rows) == len(layers.layers)
    assert layers.operators
    assert any("conv" in span.name for span in layers.profile)


def test_the_limit_of_a_layer() -> None:
    roof = Roofline(flops_per_second=1e9, bytes_per_second=1e8)
    assert roof.ridge == 10
    assert (roof.attainable(1), roof.attainable(10), roof.attainable(1000)) == (1e8, 1e9, 1e9)


def test_the_parts_of_every_rank_add_up(shared: BreakdownRecord) -> None:
    assert shared.world_size == 2
    for rank in range(2):
        mine = [span for span in shared.timeline if (span.rank, span.lane) == (rank, "step")]
        assert [span.name for span in mine] == ["data", "buffers", "forward", "backward", "wait", "update"]
        ends = [span.start + span.seconds for span in mine]
        assert ends[:-1] == pytest.approx([span.start for span in mine[1:]])
        (bucket,) = [span for span in shared.timeline if (span.rank, span.lane) == (rank, "communication")]
        assert bucket.name == "all-reduce 1, 247080 bytes"
        # All gradients are ready, and then the bucket is averaged.
        assert bucket.start >= mine[2].start
        assert bucket.start + bucket.seconds <= ends[-1]
    slowest = [sum(part.seconds.mean for part in shared.parts)]
    assert slowest == pytest.approx([shared.step.mean])
    assert parts_table([shared]).columns[1].label == "2 ranks"
    assert timeline_plot(shared).body.count("<rect") == len(shared.timeline) + 3


def test_a_trace_for_perfetto(shared: BreakdownRecord) -> None:
    events = json.loads(chrome_trace(shared.timeline))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(shared.timeline)
    assert {event["pid"] for event in spans} == {0, 1}
    names = {(event["pid"], event["args"]["name"]) for event in events if event["ph"] == "M"}
    assert {(0, "rank 0"), (1, "rank 1"), (0, "step"), (1, "communication")} <= names
    np.testing.assert_allclose([event["dur"] for event in spans], [1e6 * span.seconds for span in shared.timeline])


def test_a_slow_decoder_is_waited_for(alone: dict[str, Any]) -> None:
    record = decode(alone["loading"], LoadingRecord)
    none, two = record.of("folder")
    (arrays,) = record.of("arrays")
    assert (none.workers, two.workers, record.pictures) == (0, 2, 256)
    assert record.decode.min >= SECONDS
    assert none.wait.min >= 8 * SECONDS
    assert none.step.min >= none.wait.min
    # Two processes sleep at once.
    assert two.wait.median < 0.8 * none.wait.median
    assert record.best is two
    assert record.needed == pytest.approx(8 * record.decode.median / record.compute)
    assert arrays.wait.median < two.wait.median
    assert [row[0].text for row in loading_table(record).rows] == ["folder", "folder", "arrays in memory"]
    assert "0 workers" in loading_plot(record).label
