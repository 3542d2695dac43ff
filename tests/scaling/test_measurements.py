"""Every measurement once, small: what must hold whatever the machine's speed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from twoscale import models
from twoscale._files import read_record, write_record
from twoscale.errors import ConfigurationError, UnknownNameError
from twoscale.scaling._measure.bandwidth import SIZES, bus_factor, measure_bandwidth
from twoscale.scaling._measure.clocks import Loop
from twoscale.scaling._measure.peak import measure_peak, step_flops
from twoscale.scaling._measure.records import (
    ArmsRecord,
    BandwidthRecord,
    EpochTime,
    LedgerRecord,
    Op,
    PeakRecord,
    ReplicasRecord,
    Workload,
    decode,
)
from twoscale.scaling._measure.replicas import hash_replicas, hash_tensors, sampler_orders
from twoscale.scaling._measure.workload import batch_stream, create_model
from twoscale.scaling._questions.link_model import Link, measured_step


@pytest.fixture(scope="module")
def found(measured: Callable[..., Any]) -> dict[str, Any]:
    result: dict[str, Any] = measured("core")
    return result


@pytest.fixture(scope="module")
def alone(measured: Callable[..., Any]) -> dict[str, Any]:
    result: dict[str, Any] = measured("alone", world_size=1)
    return result


# ---------------------------------------------------------------- epochs


@pytest.mark.parametrize("arm", ["bare", "ddp"])
def test_epoch_time_is_the_steps_time_times_the_steps(found: dict[str, Any], arm: str) -> None:
    record = decode(found[arm], EpochTime)
    assert (record.arm, record.world_size, record.threads_per_rank) == (arm, 2, 1)
    assert (record.step.n, record.repeats, record.steps) == (2, 2, 4)
    assert record.epoch_samples == 1437
    assert record.steps_per_epoch == math.ceil(1437 / 8)
    assert record.epoch_seconds == record.steps_per_epoch * record.step.median
    assert record.samples_per_second == pytest.approx(8 / record.step.median)
    assert 0 < record.data_wait.median < record.step.median
    assert record.peak_memory_bytes is not None
    assert record.peak_memory_bytes > 50e6  # PyTorch alone takes more


def test_flops_of_a_step_are_counted_by_hand(found: dict[str, Any]) -> None:
    """Forward, then gradients by weights and by inputs; the first layer's input needs none."""
    conv1 = 2 * 6 * 28 * 28 * 3 * 25
    rest = 2 * (16 * 10 * 10 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10)
    by_hand = 4 * (2 * conv1 + 3 * rest)
    assert decode(found["bare"], EpochTime).flops_per_step == by_hand
    model = models.create("net")
    assert step_flops(model, (torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64))) == by_hand
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bf16_and_channels_last_run(found: dict[str, Any]) -> None:
    assert decode(found["bf16"], EpochTime).flops_per_step is None


def test_a_loop_without_steps() -> None:
    with pytest.raises(ConfigurationError, match="0 steps, 5 warm-up: expected at least 1 and 0"):
        Loop(Workload(), "ddp", steps=0)


# ---------------------------------------------------------------- arms


def test_arms_of_a_model_with_buffers(found: dict[str, Any]) -> None:
    record = decode(found["arms"], ArmsRecord)
    sizes = [1_049_000, 29_888]
    assert [bucket.bytes for bucket in record.buckets] == sizes
    assert record.buckets[0].ready < record.buckets[1].ready
    alone = [(c.op, c.bytes) for c in record.collectives_alone]
    assert alone == [("broadcast", 5504), ("broadcast", 152), *(("all_reduce", size) for size in sizes)]
    assert [c.bytes for c in record.collectives_in_situ] == sizes
    assert record.buffers is not None
    assert record.ddp.n == record.rounds == 2
    assert record.steps_timed == 2 * 2 * 9
    assert record.isolated is not None
    assert record.isolated.median == pytest.approx(sum(c.seconds.median for c in record.collectives_alone), rel=0.5)


def test_one_rank_talks_to_no_one(alone: dict[str, Any]) -> None:
    record = decode(alone["arms"], ArmsRecord)
    assert record.world_size == 1
    assert (record.isolated, record.exposed_in_situ, record.in_situ_union, record.overlap) == (None,) * 4
    assert (record.collectives_alone, record.collectives_in_situ, record.disagreement) == ((), (), None)
    assert record.skew.median == record.imbalance.median == 0
    for row in decode(alone["bandwidth"], BandwidthRecord).rows:
        assert (row.busbw, row.busbw_p95) == (None, None)
        assert row.algbw > 0
    ledger = decode(alone["ledger"], LedgerRecord)
    assert ledger.ok
    assert ledger.sent_bytes == (0,)


def test_a_cell_for_the_forecast(found: dict[str, Any]) -> None:
    record = decode(found["arms"], ArmsRecord)
    cell = measured_step(record, 2, Link("loopback"))
    assert (cell.world_size, cell.batch_size, cell.broadcasts) == (2, 2, (5504, 152))
    assert (cell.compute, cell.step) == (record.silent.median, record.ddp.median)
    assert len(cell.collectives) == 4


# ---------------------------------------------------------------- bandwidth


@pytest.mark.parametrize(
    ("op", "world_size", "factor"),
    [
        ("all_reduce", 2, 1.0),
        ("all_reduce", 4, 1.5),
        ("all_reduce", 8, 1.75),
        ("all_gather", 2, 0.5),
        ("all_gather", 8, 0.875),
        ("reduce_scatter", 4, 0.75),
        ("broadcast", 2, 1.0),
        ("broadcast", 8, 1.0),
        ("all_reduce", 1, None),
        ("broadcast", 1, None),
    ],
)
def test_bus_factors_are_those_of_nccl_tests(op: Op, world_size: int, factor: float | None) -> None:
    assert bus_factor(op, world_size) == factor


def test_bandwidth_is_size_by_time(found: dict[str, Any]) -> None:
    record = decode(found["bandwidth"], BandwidthRecord)
    ops: tuple[Op, ...] = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
    sizes = (1024, 65536, 1 << 20)
    assert [(row.op, row.bytes) for row in record.rows] == list(itertools.product(ops, sizes))
    assert record.left_out == ()
    for row in record.rows:
        factor = bus_factor(row.op, 2)
        assert factor is not None
        assert row.algbw == pytest.approx(row.bytes / row.seconds.median)
        assert row.busbw == pytest.approx(row.algbw * factor)
        assert row.busbw_p95 == pytest.approx(row.bytes / row.seconds.p95 * factor)
        assert row.seconds.n == 5


def test_a_spent_budget_leaves_sizes_out_and_says_which(found: dict[str, Any]) -> None:
    record = decode(found["budget"], BandwidthRecord)
    assert (record.rows, record.left_out) == ((), (1024, 2048))


def test_bandwidth_sizes_double_from_1_kib_to_256_mib() -> None:
    assert (SIZES[0], SIZES[-1], len(SIZES)) == (1024, 256 << 20, 19)
    with pytest.raises(ConfigurationError, match="repeats is 0; expected at least 1"):
        measure_bandwidth(torch.device("cpu"), repeats=0)
    with pytest.raises(ConfigurationError, match="no bus factor for 'all_to_all'; expected one of all_reduce"):
        bus_factor("all_to_all", 2)  # type: ignore[arg-type]


# ---------------------------------------------------------------- replicas


def test_gradients_alone_keep_parameters_but_not_buffers(found: dict[str, Any]) -> None:
    record = decode(found["replicas"], ReplicasRecord)
    assert len(record.cases) == 8
    for case in record.cases:
        # Parameters: equal if they start equal, however that came about.
        assert case.parameters_equal == (case.same_seed or case.initial_broadcast)
        # Buffers: every rank's own images move them in every step, broadcast or not; a broadcast makes them equal
        # for the length of a forward pass.
        assert case.buffers_equal is False
        assert case.buffers_equal_in_forward == case.buffers_broadcast
        assert len(case.steps) == 3
        start, end = case.steps[0], case.steps[-1]
        assert len(start.parameters) == len(start.buffers) == 2
        assert start.parameters != end.parameters
        assert start.buffers[0] == start.buffers[1]  # batch norm starts at 0 and 1 whatever the seed


def test_replicas_without_buffers_have_none_to_compare(found: dict[str, Any]) -> None:
    record = decode(found["replicas without buffers"], ReplicasRecord)
    for case in record.cases:
        assert (case.buffers_equal, case.buffers_equal_in_forward) == (None, None)
        assert case.steps[0].buffers == ("", "")
        assert case.parameters_equal == (case.same_seed or case.initial_broadcast)


def test_hashes_see_every_bit_and_the_order() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    assert hash_tensors([a, b]) == hash_tensors([a.clone(), b.clone()])
    assert hash_tensors([a, b]) != hash_tensors([b, a])
    assert hash_tensors([torch.tensor([0.0])]) != hash_tensors([torch.tensor([-0.0])])
    assert hash_tensors([]) == bytes(8)
    with pytest.raises(ConfigurationError, match="steps is 0; expected at least 1"):
        hash_replicas(Workload(), steps=0)


def test_the_sampler_without_set_epoch_repeats_its_order() -> None:
    without = sampler_orders(10, 2, set_epoch=False)
    assert not without.order_changes
    assert without.orders[0] == without.orders[1] == without.orders[2]
    told = sampler_orders(10, 2)
    assert told.order_changes
    assert told.orders[0] == without.orders[0]
    for record in (without, told):
        assert record.covers
        assert record.repeated == 0


def test_the_sampler_pads_to_equal_shards() -> None:
    record = sampler_orders(10, 4)
    assert [len(shard) for shard in record.orders[0]] == [3, 3, 3, 3]
    assert record.repeated == 2
    assert record.covers
    with pytest.raises(ConfigurationError, match="0 samples, 2 ranks, 3 epochs: expected at least 1 of each"):
        sampler_orders(0, 2)


# ---------------------------------------------------------------- peak


def test_peak_is_the_best_rows_rate(found: dict[str, Any]) -> None:
    record = decode(found["peak"], PeakRecord)
    assert (record.precision, record.threads, [row.size for row in record.rows]) == ("fp32", 1, [64, 128])
    for row in record.rows:
        assert row.flops_per_second == pytest.approx(2 * row.size**3 / row.seconds.median)
    assert record.flops_per_second == max(row.flops_per_second for row in record.rows)
    assert decode(found["half peak"], PeakRecord).precision == "bf16"


def test_peaks_that_cannot_be_measured() -> None:
    with pytest.raises(ConfigurationError, match="tf32 is for GPUs"):
        measure_peak(torch.device("cpu"), precision="tf32")
    with pytest.raises(ConfigurationError, match="repeats is 0"):
        measure_peak(torch.device("cpu"), repeats=0)


# ---------------------------------------------------------------- workloads and records


def test_ranks_share_an_epoch_without_overlap() -> None:
    workload = Workload(batch_size=64)
    seen = []
    for rank in range(2):
        source = batch_stream(workload, rank, 2)
        seen.append(torch.cat([images for images, _ in itertools.islice(source, 16)]))
    together = torch.cat(seen).flatten(1)
    assert len(together) == 2048
    assert len(torch.unique(together, dim=0)) == 2048
    again = next(batch_stream(workload, 1, 2))[0]
    assert torch.equal(again, seen[1][:64])


def test_batches_larger_than_a_share_go_on_into_the_next_epoch() -> None:
    images, labels = next(batch_stream(Workload(batch_size=2500, data="digits"), 0, 1))
    assert images.shape == (2500, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_workloads_that_make_no_sense() -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'digitz': did you mean 'digits'"):
        create_model(Workload(data="digitz"))
    with pytest.raises(UnknownNameError, match="unknown model 'resnet19'"):
        create_model(Workload(model="resnet19"))
    with pytest.raises(ConfigurationError, match="batch_size is 0; expected at least 1"):
        Workload(batch_size=0)
    with pytest.raises(ConfigurationError, match="lr is nan; expected a positive number"):
        Workload(lr=float("nan"))
    with pytest.raises(ConfigurationError, match=r"not a Workload: Expected `int`, got `str` - at `\$.batch_size`"):
        decode({"batch_size": "many"}, Workload)


def test_records_survive_their_files(found: dict[str, Any], tmp_path: Any) -> None:
    for name, kind in (("arms", ArmsRecord), ("replicas", ReplicasRecord), ("bandwidth", BandwidthRecord)):
        record = decode(found[name], kind)
        write_record(tmp_path / "record.json", record)
        assert read_record(tmp_path / "record.json", kind) == record
    assert np.isfinite(decode(found["ddp"], EpochTime).step.median)
