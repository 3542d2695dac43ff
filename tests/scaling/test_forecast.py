"""Forecasts of steps that follow the model exactly, and of ones that deviate from it in a known way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from twoscale.errors import ForecastError
from twoscale.scaling._measure.records import Bucket, Op
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.answers import read_results
from twoscale.scaling._questions.communication import CommunicationAnswer
from twoscale.scaling._questions.link_model import (
    CollectiveSample,
    Link,
    LinkModel,
    MeasuredStep,
    collective_seconds,
    fit,
    given_model,
    measured_step,
)
from twoscale.scaling._questions.step_forecast import forecast, held_out, replay

RING = LinkModel("wire", "ring", latency=1e-4, fixed=2e-9, per_rate=0.0, rates=None, residual=0.0, samples=0)
SIZES = (1000, 40_000, 1_000_000, 25_000_000)
BUCKETS = (Bucket(1_000_000, 0.02), Bucket(25_000_000, 0.05), Bucket(9_000_000, 0.08))


def _cell(
    model: LinkModel, world_size: int, *, batch_size: int = 32, rate: float | None = None, compute: float = 0.1
) -> MeasuredStep:
    """A cell that behaves exactly as the model says."""
    ops: Sequence[Op] = ("all_reduce", "broadcast")
    samples = tuple(
        CollectiveSample(op, size, collective_seconds(model, op, size, world_size, rate))
        for op in ops
        for size in SIZES
    )
    buckets = tuple(replace(b, ready=b.ready * compute / 0.1) for b in BUCKETS)
    each = [(b, collective_seconds(model, "all_reduce", b.bytes, world_size, rate)) for b in buckets]
    step, _ = replay(compute, each, collective_seconds(model, "broadcast", 40_000, world_size, rate))
    alone = samples if world_size > 1 else ()
    return MeasuredStep(world_size, batch_size, Link(model.link, rate), compute, step, buckets, (40_000,), alone)


def test_collectives_by_hand() -> None:
    model = replace(RING, latency=0.5, fixed=0.25)
    # Ring: 2 (n-1) messages, 2 (n-1)/n of the bytes.
    assert collective_seconds(model, "all_reduce", 8, 4) == 6 * 0.5 + 1.5 * 8 * 0.25
    assert collective_seconds(model, "all_gather", 8, 4) == 3 * 0.5 + 0.75 * 8 * 0.25
    assert collective_seconds(model, "broadcast", 8, 5) == 3 * 0.5 + 8 * 0.25
    assert collective_seconds(model, "all_reduce", 8, 1) == 0
    tree = replace(model, algorithm="tree")
    assert collective_seconds(tree, "all_reduce", 8, 8) == 6 * 0.5 + 1.75 * 8 * 0.25
    rated = replace(model, per_rate=2.0)
    assert collective_seconds(rated, "all_reduce", 8, 2, rate=16.0) == 2 * 0.5 + 8 * (0.25 + 2 / 16)


def test_replay_by_hand() -> None:
    # Ready at 1 and 2, three seconds each: the second waits for the first, until 4, and ends at 7. What follows the
    # last gradient takes 5 - 2 = 3 seconds.
    step, times = replay(5.0, [(Bucket(1, 1.0), 3.0), (Bucket(2, 2.0), 3.0)])
    assert step == 10.0
    assert [(t.ready, t.start, t.end) for t in times] == [(1.0, 1.0, 4.0), (2.0, 4.0, 7.0)]
    # Nothing is exposed but the last bucket where there is time before it.
    assert replay(5.0, [(Bucket(1, 1.0), 0.5), (Bucket(2, 2.0), 0.25)])[0] == 5.25
    assert replay(5.0, [(Bucket(1, 1.0), 0.5)], before=2.0)[0] == 7.5
    assert replay(5.0, []) == (5.0, ())


@pytest.mark.parametrize("algorithm", ["ring", "tree"])
def test_fit_recovers_the_model_and_the_algorithm(algorithm: str) -> None:
    model = replace(RING, algorithm=algorithm)  # type: ignore[arg-type]
    found = fit([_cell(model, n) for n in (2, 4, 8)], "wire")
    assert found.algorithm == algorithm
    assert found.latency == pytest.approx(model.latency)
    assert found.fixed == pytest.approx(model.fixed)
    assert found.residual == pytest.approx(0, abs=1e-9)
    assert found.samples == 3 * 2 * len(SIZES)


def test_two_ranks_do_not_tell_ring_from_tree() -> None:
    assert fit([_cell(RING, 2)], "wire").algorithm == "ring"
    assert fit([_cell(RING, 2)], "wire", "tree").algorithm == "tree"


def test_fit_recovers_what_goes_with_the_rate() -> None:
    model = replace(RING, fixed=1e-10, per_rate=1.05, rates=(1e7, 1e9))
    found = fit([_cell(model, 2, rate=rate) for rate in (1e7, 1e8)], "wire")
    assert found.per_rate == pytest.approx(1.05)
    assert found.fixed == pytest.approx(1e-10, rel=1e-3)
    assert found.rates == (1e7, 1e8)


def test_no_unknown_is_negative() -> None:
    # Faster than latency allows at small sizes: least squares alone would make it negative.
    samples = tuple(CollectiveSample("all_reduce", size, size * 1e-8 * (0.7 if size < 5000 else 1)) for size in SIZES)
    found = fit([replace(_cell(RING, 2), collectives=samples)], "wire")
    assert found.latency == 0
    assert found.fixed > 0


def test_forecast_of_more_ranks() -> None:
    cells = [_cell(RING, 2), _cell(RING, 4)]
    expected = _cell(RING, 16)
    found = forecast(cells, 16, 32, Link("wire"))
    assert found.step == pytest.approx(expected.step)
    assert found.exposed == pytest.approx(expected.step - expected.compute)
    assert found.fitted_on == 2
    assert found.error is None
    assert found.communication == pytest.approx(
        sum(collective_seconds(RING, "all_reduce", b.bytes, 16) for b in BUCKETS)
        + collective_seconds(RING, "broadcast", 40_000, 16)
    )


def test_forecast_of_one_rank_sends_nothing() -> None:
    found = forecast([_cell(RING, 2)], 1, 32, Link("wire"))
    assert (found.model, found.communication, found.exposed) == (None, 0.0, 0.0)
    assert found.step == found.compute == 0.1


def test_forecast_between_two_batches() -> None:
    cells = [_cell(RING, 2, batch_size=32, compute=0.1), _cell(RING, 2, batch_size=64, compute=0.2)]
    found = forecast(cells, 2, 48, Link("wire"))
    assert found.compute == pytest.approx(0.15)
    assert found.step == pytest.approx(_cell(RING, 2, compute=0.15).step)


def _sharing(fixed: float, factor: float, *, batches: tuple[int, ...] = (32, 64, 128)) -> list[MeasuredStep]:
    """Cells of one and two ranks; the two share a machine, where a step is ``fixed`` + ``factor`` times that of one."""
    cells = []
    for batch in batches:
        alone = 0.001 + 0.001 * batch
        cells += [
            _cell(RING, 1, batch_size=batch, compute=alone),
            _cell(RING, 2, batch_size=batch, compute=fixed + factor * alone),
        ]
    return cells


def test_ranks_that_share_a_machine_slow_a_batch_that_was_not_measured_there() -> None:
    forecasts, refused = held_out(_sharing(0.002, 1.25))
    assert refused == ()
    assert [(f.world_size, f.batch_size) for f in forecasts] == [(2, 32), (2, 64), (2, 128)]
    assert [f.error for f in forecasts] == pytest.approx([0, 0, 0], abs=1e-9)
    assert [f.compute for f in forecasts] == pytest.approx([0.002 + 1.25 * (0.001 + 0.001 * b) for b in (32, 64, 128)])
    # Three ranks are nearest to two: they compute as two do, not as one.
    assert forecast(_sharing(0.002, 1.25), 3, 64, Link("wire")).compute == pytest.approx(0.002 + 1.25 * 0.065)


def test_one_other_batch_shows_a_factor_only() -> None:
    found = held_out(_sharing(0.0, 1.5, batches=(32, 64)))[0]
    assert [f.error for f in found] == pytest.approx([0, 0], abs=1e-9)


def test_sharing_never_takes_a_negative_time() -> None:
    # 10 and 30 ms became 5 and 45: a line through both would make 4 ms negative.
    cells = [
        _cell(RING, n, batch_size=batch, compute=seconds)
        for n, times in ((1, (0.004, 0.01, 0.03)), (2, (0.004, 0.005, 0.045)))
        for batch, seconds in zip((32, 64, 128), times, strict=True)
    ]
    first = held_out(cells)[0][0]
    assert (first.world_size, first.batch_size) == (2, 32)
    assert 0 < first.compute < 0.01


def test_of_two_clocks_that_agree_the_more_precise_counts() -> None:
    recorded = read_results(Path(__file__).with_name("recorded-study.json")).of(CommunicationAnswer).arms
    two = next(at.record for at in recorded if at.record.world_size == 2)

    def waits(exposed: tuple[float, ...], inside: tuple[float, ...]) -> float:
        by_difference, seen = (summarize(values) for values in (exposed, inside))
        return measured_step(replace(two, exposed=by_difference, exposed_in_situ=seen), 64, Link("wire")).waits

    assert waits((0.0, 1.0, 1.0, 1.0, 2.0, 4.0), (0.8, 0.8, 0.8, 0.8, 0.8, 0.9)) == 0.8
    # Communication slows the computing beside it: the clock inside does not see all of the wait.
    assert waits((36.0, 36.2, 36.3, 36.3, 36.4, 37.0), (13.0, 13.4, 13.5, 13.5, 13.6, 14.0)) == 36.3
    # A difference that repeats better than the clock inside is kept.
    assert waits((1.0,) * 6, (0.5, 0.5, 0.5, 0.5, 0.5, 4.0)) == 1.0


def test_held_out_cells_are_forecast_from_the_others() -> None:
    cells = [_cell(RING, n) for n in (1, 2, 4, 8)]
    slow = replace(cells[-1], step=cells[-1].step * 1.25)
    forecasts, refused = held_out([*cells[:-1], slow])
    assert [f.world_size for f in forecasts] == [2, 4, 8]
    assert refused == ()
    assert [f.error for f in forecasts] == pytest.approx([0, 0, -0.2], abs=1e-9)
    assert [f.measured for f in forecasts] == [cells[1].step, cells[2].step, slow.step]
    assert forecasts[0].fitted_on == 3


def test_held_out_cells_that_the_others_do_not_cover() -> None:
    forecasts, refused = held_out([_cell(RING, 2), _cell(replace(RING, link="other"), 2)])
    assert forecasts == ()
    assert [line.split(":")[0] for line in refused] == ["2 ranks, batch 32, wire", "2 ranks, batch 32, other"]


def test_another_link_is_refused() -> None:
    with pytest.raises(
        ForecastError,
        match=r"no collective was timed over 'ethernet'.*\(measured: wire\); measure at least 2 ranks over 'ethernet'",
    ):
        forecast([_cell(RING, 2)], 4, 32, Link("ethernet"))
    with pytest.raises(ForecastError, match=r"\(measured: none\)"):
        forecast([_cell(RING, 1)], 4, 32, Link("wire"))


def test_another_rate_is_refused_outside_the_measured_ones() -> None:
    model = replace(RING, per_rate=1.05)
    cells = [_cell(model, 2, rate=1e7), _cell(model, 2, rate=1e8)]
    assert forecast(cells, 2, 32, Link("wire", 5e7)).step == pytest.approx(_cell(model, 2, rate=5e7).step)
    with pytest.raises(ForecastError, match=r"'wire' at 200\.0 MB/s is another link than the one measured at 10\.0 to"):
        forecast(cells, 2, 32, Link("wire", 2e8))
    with pytest.raises(ForecastError, match=r"at 5\.0 MB/s"):
        forecast(cells, 2, 32, Link("wire", 5e6))
    with pytest.raises(ForecastError, match="the rate of 'wire' is known for the cells only"):
        forecast(cells, 2, 32, Link("wire"))
    with pytest.raises(ForecastError, match="the rate of 'wire' is known for the forecast only"):
        forecast([_cell(RING, 2)], 2, 32, Link("wire", 1e8))


def test_one_measured_rate_covers_only_itself() -> None:
    cell = _cell(RING, 2, rate=1e8)
    assert forecast([cell], 2, 32, Link("wire", 1e8)).step == pytest.approx(cell.step)
    with pytest.raises(ForecastError, match="is another link"):
        forecast([cell], 2, 32, Link("wire", 1.1e8))


def test_other_batches_are_refused() -> None:
    for batch_size in (16, 128):
        with pytest.raises(ForecastError, match=rf"no cell has a batch of {batch_size} .*\(measured: 32, 64\)"):
            forecast([_cell(RING, 2), _cell(RING, 2, batch_size=64)], 2, batch_size, Link("wire"))


def test_nothing_is_forecast_from_nothing() -> None:
    with pytest.raises(ForecastError, match="no cell was measured"):
        forecast([], 2, 32, Link("wire"))
    with pytest.raises(ForecastError, match="0 ranks, batch 32: expected at least 1 of each"):
        forecast([_cell(RING, 2)], 0, 32, Link("wire"))


def test_more_ranks_wait_no_less_than_fewer_did() -> None:
    cells = [_cell(RING, 1), _cell(RING, 2)]
    slow = replace(cells[1], step=cells[1].step + 0.05)  # contention, which the line does not know
    fast = forecast(cells, 4, 32, Link("wire"))
    found = forecast([cells[0], slow], 4, 32, Link("wire"))
    # The line's wait for four ranks, and what two ranks waited beyond the line.
    assert found.exposed == pytest.approx(fast.exposed + 0.05)
    assert found.step == pytest.approx(found.compute + found.exposed)
    assert found.exposed >= slow.step - slow.compute
    # Four ranks were measured to wait less than two: eight wait at least what two did.
    four = _cell(RING, 4)
    four = replace(four, step=four.compute)
    least = forecast([cells[0], slow, four], 8, 32, Link("wire"))
    assert least.exposed == pytest.approx(slow.step - slow.compute)


def test_a_given_link_needs_no_collective_timed_over_it() -> None:
    steps = [_cell(RING, 1), _cell(RING, 2)]
    model = given_model("the given link", latency=5e-5, bytes_per_second=1.25e9)
    found = forecast(steps, 4, 32, Link("the given link", 1.25e9), model=model)
    # By hand: 2 (n - 1) messages and 2 (n - 1)/n of the bytes for each bucket, two messages and all bytes broadcast.
    expected = sum(6 * 5e-5 + 1.5 * bucket.bytes / 1.25e9 for bucket in BUCKETS) + 2 * 5e-5 + 40_000 / 1.25e9
    assert found.communication == pytest.approx(expected)
    assert found.model == model
    assert found.compute == 0.1
