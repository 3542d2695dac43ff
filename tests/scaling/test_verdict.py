"""The verdict on made-up records: each cause planted, and named."""

from __future__ import annotations

import dataclasses

import pytest

from twoscale.scaling._measure.records import (
    ArmsRecord,
    Bucket,
    CollectiveTime,
    EpochTime,
    Summary,
    Workload,
)
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.link_model import LinkModel
from twoscale.scaling._questions.verdict import Round, causes_table, decide, latency_share

MS = 1e-3
SLOW_LINK = LinkModel("link", "ring", latency=1e-6, fixed=1e-8, per_rate=0.0, rates=None, residual=0.0, samples=9)
"""100 MB/s, and next to no latency."""
FAR_LINK = dataclasses.replace(SLOW_LINK, latency=2 * MS, fixed=1e-12)


def _time(arm: str, world_size: int, step: float, wait: float = 0.0) -> EpochTime:
    return EpochTime(
        arm=arm,  # type: ignore[arg-type]
        workload=Workload(batch_size=64),
        world_size=world_size,
        threads_per_rank=1,
        steps=10,
        repeats=3,
        step=summarize([step]),
        data_wait=summarize([wait]),
        samples_per_second=64 * world_size / step,
        epoch_samples=1000,
        steps_per_epoch=10,
        epoch_seconds=10 * step,
        peak_memory_bytes=None,
        flops_per_step=None,
    )


def _rounds(alone: float, apart: float, ddp: float, waits: tuple[float, float] = (0.0, 0.0)) -> list[Round]:
    """Three rounds that differ a little, times in milliseconds."""
    return [
        Round(
            _time("bare", 1, f * (alone + waits[0]) * MS, waits[0] * MS),
            _time("bare", 2, f * (apart + waits[1]) * MS, waits[1] * MS),
            _time("ddp", 2, f * (ddp + waits[1]) * MS, waits[1] * MS),
        )
        for f in (0.999, 1.0, 1.001)
    ]


def _summary(milliseconds: float) -> Summary:
    return summarize([milliseconds * MS] * 6)


def _arms(
    *, exposed: float = 0.0, wrapper: float = 0.0, buffers: float | None = None, alone: tuple[float, ...] = (1.0, 1.0)
) -> ArmsRecord:
    """Arms at two ranks; buckets of 1 MB; times in milliseconds."""
    nothing = _summary(0.0)
    collectives = tuple(CollectiveTime("all_reduce", 10**6, _summary(value)) for value in alone)
    return ArmsRecord(
        world_size=2,
        threads_per_rank=1,
        backend="gloo",
        rounds=6,
        steps=5,
        ddp=_summary(10 + wrapper + exposed),
        silent=_summary(10 + wrapper),
        bare=_summary(10),
        buckets=tuple(Bucket(10**6, 5 * MS) for _ in alone),
        isolated=_summary(sum(alone)),
        free_running=_summary(10 + wrapper + exposed),
        compute=_summary(10),
        imbalance=nothing,
        skew=nothing,
        data_wait=nothing,
        wrapper_tax=_summary(wrapper),
        exposed=_summary(exposed),
        exposed_in_situ=_summary(exposed),
        buffers=None if buffers is None else _summary(buffers),
        overlap=None,
        collectives_alone=collectives,
        collectives_in_situ=(),
        in_situ_union=None,
        disagreement=None,
        steps_timed=100,
    )


@pytest.mark.parametrize(
    ("cause", "words", "rounds", "arms", "model"),
    [
        ("latency", "goes to latency. ", _rounds(10, 10, 14), _arms(exposed=4), FAR_LINK),
        # 8 ms of the two buckets' time cannot be hidden; the last is 1 ms of it.
        ("bandwidth", "goes to bandwidth. ", _rounds(10, 10, 18), _arms(exposed=8), SLOW_LINK),
        ("last bucket", "goes to the last bucket. ", _rounds(10, 10, 13), _arms(exposed=3, alone=(1, 3)), SLOW_LINK),
        ("buffers", "goes to buffers. ", _rounds(10, 10, 13), _arms(exposed=3, buffers=2.5), SLOW_LINK),
        ("data", "goes to data. ", _rounds(10, 10, 10, (1, 5)), _arms(), SLOW_LINK),
        ("cores", "goes to shared cores. ", _rounds(10, 15, 15), _arms(), SLOW_LINK),
        ("wrapper", "goes to the wrapper. ", _rounds(10, 10, 12), _arms(wrapper=2), SLOW_LINK),
    ],
)
def test_each_cause_is_named(cause: str, words: str, rounds: list[Round], arms: ArmsRecord, model: LinkModel) -> None:
    verdict = decide(rounds, arms, model, 64)
    assert verdict.causes[0].name == cause
    assert words in verdict.sentence
    assert ":" not in verdict.sentence
    assert sum(one.share for one in verdict.causes) == pytest.approx(1)
    assert verdict.unexplained == pytest.approx(0, abs=0.05 * MS)
    assert [one.seconds for one in verdict.causes] == sorted((one.seconds for one in verdict.causes), reverse=True)


def test_parts_are_the_arithmetics() -> None:
    verdict = decide(_rounds(10, 12, 18, (0, 1)), _arms(exposed=4, wrapper=1, buffers=1, alone=(1, 2)), SLOW_LINK, 64)
    parts = {one.name: one.seconds / MS for one in verdict.causes}
    share = latency_share(_arms(), SLOW_LINK)
    assert share == pytest.approx(2e-6 / (2e-6 + 1e-2))
    expected = {"cores": 2, "data": 1, "wrapper": 1, "buffers": 1, "latency": 3 * share, "last bucket": 2 * (1 - share),
                "bandwidth": 1 - share}  # fmt: skip
    assert parts == pytest.approx(expected, abs=1e-6)
    assert verdict.loss.mean == pytest.approx(9 * MS, rel=1e-6)
    assert verdict.efficiency == pytest.approx(10 / 19, rel=1e-3)


def test_scaling_that_holds_has_no_cause() -> None:
    verdict = decide(_rounds(10, 10.1, 10.3), _arms(exposed=0.2), SLOW_LINK, 64)
    assert verdict.sentence == "Scaling does not stop at 2 ranks: a step keeps 97% of its speed."


def test_a_step_that_more_ranks_make_faster_is_a_disturbed_one() -> None:
    verdict = decide(_rounds(17, 11, 10), _arms(), SLOW_LINK, 64)
    assert "At 2 ranks a step was faster than on one, 170% of its speed, which no scaling explains" in verdict.sentence


def test_rounds_that_contradict_each_other_have_no_cause() -> None:
    rounds = [*_rounds(10, 12, 16)[:2], *_rounds(10, 9, 9)[:1]]
    assert "but not in every round of launches" in decide(rounds, _arms(exposed=1), SLOW_LINK, 64).sentence


def test_a_share_is_of_what_is_lost_not_of_what_is_explained() -> None:
    # 10 ms are lost, 6 of them explained: 5 by the wrapper, 1 by cores.
    verdict = decide(_rounds(10, 11, 20), _arms(wrapper=5), SLOW_LINK, 64)
    assert "The largest part of what is lost, 50%, goes to the wrapper." in verdict.sentence
    assert {one.name: one.share for one in verdict.causes if one.share} == pytest.approx(
        {"wrapper": 0.5, "cores": 0.1}, rel=1e-3
    )
    assert [cell.text for cell in causes_table(verdict).rows[-1]] == ["not explained", "4.00", "40"]


def test_parts_that_add_up_to_far_more_than_is_lost_name_no_cause() -> None:
    verdict = decide(_rounds(10, 11, 13), _arms(exposed=7, alone=(3, 4)), SLOW_LINK, 64)
    assert "adds up to 2.7 times what is lost, so that there is no cause to name" in verdict.sentence


def test_what_no_part_explains_is_said() -> None:
    verdict = decide(_rounds(10, 10, 18), _arms(exposed=1), SLOW_LINK, 64)
    assert "the largest part of what is lost, 88%, has no measured cause" in verdict.sentence


def test_without_a_fitted_link_nothing_is_latency() -> None:
    parts = {one.name: one.seconds for one in decide(_rounds(10, 10, 14), _arms(exposed=4), None, 64).causes}
    assert parts["latency"] == 0
    assert parts["bandwidth"] == pytest.approx(3 * MS)
