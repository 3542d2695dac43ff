from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import sweep
from twoscale import models
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.ledger import GLOO_MESSAGE, buffer_broadcasts, gloo_sent, predict, ready_order, reconcile
from twoscale.scaling._measure.records import DdpOptions, LedgerEntry, LedgerRecord, Outcome, decode


@pytest.fixture(scope="module")
def observed(measured: Callable[..., Any]) -> dict[str, Any]:
    result: dict[str, Any] = measured("ledgers")
    return result


def _rows(entries: tuple[LedgerEntry, ...]) -> list[tuple[str, str, str, int]]:
    return [(entry.phase, entry.op, entry.dtype, entry.bytes) for entry in entries]


def test_resnet18_to_the_byte(observed: dict[str, Any]) -> None:
    """Every number of this table is known from elsewhere: PyTorch's sources and the model's shapes."""
    record = decode(observed["resnet18"], LedgerRecord)
    assert (record.parameters, record.parameter_tensors) == (11_173_962, 62)
    assert (record.parameter_bytes, record.buffer_bytes) == (44_695_848, 38_560)
    buffers = [("float32", 38_400), ("int64", 160)]
    buckets = [9_461_800, 26_494_976, 8_739_072]
    assert sum(buckets) == record.parameter_bytes
    expected = [
        ("construction", "all_gather", "int64", 8),
        ("construction", "broadcast", "int64", 1968),
        ("construction", "broadcast", "float32", 44_695_848 + 38_400),
        ("construction", "broadcast", "int64", 160),
        *[("forward 1", "broadcast", *buffer) for buffer in buffers],
        ("backward 1", "all_reduce", "float32", 44_695_848),
        ("forward 2", "broadcast", "int32", 252),
        ("forward 2", "broadcast", "int32", 12),
        *[("forward 2", "broadcast", *buffer) for buffer in buffers],
        *[("backward 2", "all_reduce", "float32", size) for size in buckets],
        *[("forward 3", "broadcast", *buffer) for buffer in buffers],
        *[("backward 3", "all_reduce", "float32", size) for size in buckets],
    ]
    assert _rows(record.predicted) == expected
    assert record.observed is not None
    assert _rows(record.observed) == expected
    assert record.ok
    assert record.total("backward 3") == record.total("backward 3", "all_reduce") == 44_695_848
    # Two ranks: each sends all of every all-reduce, and rank 0 all broadcasts.
    assert record.sent_bytes is not None
    assert record.sent_bytes[1] == 3 * 44_695_848 + 8
    assert record.sent_bytes[0] - record.sent_bytes[1] == 1968 + 44_695_848 + 4 * 38_560 + 252 + 12


def test_every_set_up_is_as_predicted(observed: dict[str, Any]) -> None:
    set_ups, counted = (2 * 7 + 1, 500) if sweep.whole() else (2 * 2 + 1, 150)
    assert len(observed["lines"]) == 3 * set_ups
    assert observed["counted"] > counted
    assert {name: lines for name, lines in observed["lines"].items() if lines} == {}


def test_a_wrong_byte_is_found(observed: dict[str, Any]) -> None:
    assert observed["planted"] == [
        "backward 3: gradients predicted as all_reduce of 247080 bytes float32, "
        "observed all_reduce of 247076 bytes float32"
    ]


def test_differences_name_what_is_missing_and_what_is_too_much() -> None:
    entry = LedgerEntry("forward 1", "broadcast", "buffers", "int64", 160)
    assert reconcile([entry], []) == ("forward 1: buffers (broadcast of 160 bytes int64) predicted, nothing observed",)
    assert reconcile([], [entry]) == ("forward 1: broadcast of 160 bytes int64 observed, nothing predicted",)


def test_prediction_leaves_the_model_alone() -> None:
    model = models.create("resnet20")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, DdpOptions())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ready_order_is_from_the_last_layer_to_the_first() -> None:
    model = models.create("net")
    order = ready_order(model, torch.zeros(1, 3, 32, 32))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in order] == ["fc3.weight", "fc2.weight", "fc1.weight", "conv2.weight", "conv1.weight"]


def test_models_without_buffers_broadcast_none() -> None:
    assert buffer_broadcasts(models.create("net")) == ()
    assert not any("buffers" in entry.what for entry in predict(models.create("net"), DdpOptions()))


def test_predictions_that_make_no_sense() -> None:
    model = models.create("net")
    with pytest.raises(ConfigurationError, match="0 mini-batches, accumulation 1: expected at least 1"):
        predict(model, DdpOptions(), mini_batches=0)
    with pytest.raises(ConfigurationError, match="static_graph with accumulation"):
        predict(model, DdpOptions(static_graph=True), accumulation=2)
    with pytest.raises(ConfigurationError, match="bucket_cap_mb is 0; expected a positive number of MiB"):
        DdpOptions(bucket_cap_mb=0)
    with pytest.raises(ConfigurationError, match="no wire bytes are known for reduce_scatter on gloo"):
        gloo_sent(LedgerEntry("", "reduce_scatter", "", "float32", 8), 0, 2)


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("size", [4, 100, 247_080, 3_500_004])
def test_all_ranks_together_send_what_the_ring_needs(world_size: int, size: int) -> None:
    entry = LedgerEntry("", "all_reduce", "", "float32", size)
    sent = [gloo_sent(entry, rank, world_size)[0] for rank in range(world_size)]
    assert sum(sent) == 2 * (world_size - 1) * size
    broadcast = LedgerEntry("", "broadcast", "", "float32", size)
    assert sum(gloo_sent(broadcast, rank, world_size)[0] for rank in range(world_size)) == (world_size - 1) * size
    assert gloo_sent(entry, 0, 1) == (0, 0)


@pytest.mark.skipif(shutil.which("ss") is None, reason="'ss' (iproute2), which counts a socket's bytes, is missing")
@pytest.mark.parametrize("world_size", [3])
def test_gloo_sends_what_the_ledger_says(ranks: Callable[..., Outcome[Any]], world_size: int, tmp_path: Path) -> None:
    """Payload and message headers against the kernel's own count of each rank's sockets, to the byte."""
    outcome = ranks("on_sockets", {"folder": str(tmp_path)}, world_size=world_size)
    assert outcome.ok, f"{outcome.message}\n{outcome.log_tail}"
    assert len(outcome.value) == 9
    for op, size, everyone in outcome.value:
        for rank, (counted, payload, messages) in enumerate(everyone):
            assert counted == payload + messages * GLOO_MESSAGE, (op, size, rank)
