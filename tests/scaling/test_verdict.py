"""The verdict on made-up records: each cause planted, and named."""

from __future__ import annotations

import dataclasses

import pytest

from twoscale.scaling._measure.records import (
    ArmsRecord,
    Bucket,
    CollectiveTime,
    EpochTime,
    RankGroup,
    Summary,
    Workload,
)
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.causes import communication_parts
from twoscale.scaling._questions.communication import ArmsAt
from twoscale.scaling._questions.link_model import LinkModel
from twoscale.scaling._questions.rounds import Round
from twoscale.scaling._questions.verdict import Verdict, causes_table, decide, link_line
from twoscale.scaling._questions.what_if import what_ifs

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


def _rounds(
    alone: float,
    apart: float,
    ddp: float,
    waits: tuple[float, float] = (0.0, 0.0),
    fastest: float | None = None,
    loads: tuple[float, ...] = (1.0, 1.0, 1.0),
) -> list[Round]:
    """Three rounds that differ a little, times in milliseconds; ``fastest``: of the rank that is not late."""
    found = []
    for number, (f, load) in enumerate(zip((0.999, 1.0, 1.001), loads, strict=True), 1):
        slow = _time("bare", 2, f * (apart + waits[1]) * MS, waits[1] * MS)
        if fastest is not None:
            seconds = (f * (fastest + waits[1]) * MS, slow.step.median)
            slow = dataclasses.replace(slow, rank_seconds=seconds, rank_cores=((0,), (3,)))
        ddp_time = _time("ddp", 2, f * (ddp + waits[1]) * MS, waits[1] * MS)
        found.append(Round(_time("bare", 1, f * (alone + waits[0]) * MS, waits[0] * MS), slow, ddp_time, load, number))
    return found


def _summary(milliseconds: float) -> Summary:
    return summarize([milliseconds * MS] * 6)


def _arms(
    *,
    exposed: float = 0.0,
    inside: float | None = None,
    wrapper: float = 0.0,
    buffers: float | None = None,
    alone: tuple[float, ...] = (1.0, 1.0),
    ready: tuple[float, ...] = (4.0, 9.0),
    jitter: float = 0.0,
    size: int = 10**5,
) -> ArmsRecord:
    """Arms at two ranks; times in milliseconds; ``inside``: of the exposed time, what was seen inside the step."""
    nothing = _summary(0.0)
    collectives = tuple(CollectiveTime("all_reduce", size, _summary(value)) for value in alone)
    return ArmsRecord(
        world_size=2,
        threads_per_rank=1,
        backend="gloo",
        rounds=6,
        steps=5,
        ddp=_summary(10 + wrapper + exposed),
        silent=_summary(10 + wrapper),
        bare=_summary(10),
        buckets=tuple(Bucket(size, when * MS) for when, _ in zip(ready, alone, strict=False)),
        isolated=_summary(sum(alone)),
        free_running=_summary(10 + wrapper + exposed),
        compute=_summary(10),
        imbalance=nothing,
        skew=nothing,
        data_wait=nothing,
        wrapper_tax=_summary(wrapper),
        exposed=_summary(exposed),
        exposed_in_situ=_summary(exposed if inside is None else inside),
        buffers=None if buffers is None else _summary(buffers),
        overlap=None,
        collectives_alone=collectives,
        collectives_in_situ=(),
        in_situ_union=None,
        disagreement=None,
        steps_timed=100,
        silent_free=_summary(10 + wrapper),
        bare_free=_summary(10),
        jitter=_summary(jitter),
    )


MB = 10**6
PLANTED = [
    # Two buckets of 2 x 2 ms of latency each, both ready at the end of the backward pass.
    ("latency", "goes to latency. ", _rounds(10, 10, 18), _arms(exposed=8, ready=(9, 9)), FAR_LINK),
    # Buckets of 10 ms each at 100 MB/s: the first is not averaged when the second is ready.
    ("bandwidth", "goes to bandwidth. ", _rounds(10, 10, 24), _arms(exposed=14, size=MB, alone=(10, 10)), SLOW_LINK),
    # One bucket only: nothing can be sent before it, and its bytes are what takes the time.
    (
        "bandwidth",
        "goes to bandwidth. ",
        _rounds(10, 10, 20),
        _arms(exposed=10, size=MB, alone=(10,), ready=(9,)),
        SLOW_LINK,
    ),
    # The first of two buckets is averaged after 5 ms, the second is ready after 9.
    ("last bucket", "goes to the last bucket. ", _rounds(10, 10, 11), _arms(exposed=1), SLOW_LINK),
    ("buffers", "goes to buffers. ", _rounds(10, 10, 13), _arms(exposed=3, buffers=2.5), SLOW_LINK),
    ("data", "goes to data. ", _rounds(10, 10, 10, (1, 5)), _arms(), SLOW_LINK),
    ("cores", "goes to shared cores. ", _rounds(10, 15, 15), _arms(), SLOW_LINK),
    ("cores", "goes to shared cores. ", _rounds(10, 15, 15, fastest=14.5), _arms(), SLOW_LINK),
    ("wrapper", "goes to the wrapper. ", _rounds(10, 10, 12), _arms(wrapper=2), SLOW_LINK),
    # One core is shared with another process; what all-reduces take longer with it is no latency.
    (
        "straggler",
        "goes to a straggler, rank 1 on core 3. ",
        _rounds(10, 20, 22.5, fastest=10.5),
        _arms(exposed=2.5, inside=1.5, jitter=0.5, alone=(0.5, 0.6)),
        SLOW_LINK,
    ),
    ("jitter", "goes to jitter. ", _rounds(10, 10, 14), _arms(exposed=4, inside=0.5, jitter=3), SLOW_LINK),
    # Seen inside 13.5 ms, by differencing 36.3, and alone 13.
    (
        "contention",
        "goes to contention. ",
        _rounds(10, 11, 47.3),
        _arms(exposed=36.3, inside=13.5, size=1_300_000, alone=(13,), ready=(9,)),
        SLOW_LINK,
    ),
]


@pytest.mark.parametrize(("cause", "words", "rounds", "arms", "model"), PLANTED)
def test_each_cause_is_named(cause: str, words: str, rounds: list[Round], arms: ArmsRecord, model: LinkModel) -> None:
    verdict = decide(rounds, arms, model, 64)
    assert verdict.causes[0].name == cause
    assert words in verdict.sentence
    assert ":" not in verdict.sentence
    assert sum(one.share for one in verdict.causes) == pytest.approx(1)
    assert verdict.unexplained == pytest.approx(0, abs=0.05 * MS)
    assert [one.seconds for one in verdict.causes] == sorted((one.seconds for one in verdict.causes), reverse=True)


def test_parts_are_the_arithmetics() -> None:
    arms = _arms(exposed=7, inside=5, wrapper=1, buffers=1, jitter=0.5, alone=(1, 2), size=10**5)
    verdict = decide(_rounds(10, 12, 20, (0, 1), fastest=11.5), arms, SLOW_LINK, 64)
    parts = {one.name: one.seconds / MS for one in verdict.causes}
    # By the line two messages for each bucket, 1 µs each, and 1e5 bytes at 1e-8 s: 0.002 ms and 1 ms for the last one;
    # the first is sent beside the backward pass. 4 ms were seen inside beside the buffers.
    expected = {"cores": 1.5, "straggler": 0.5, "data": 1, "wrapper": 1, "buffers": 1, "latency": 0.002,
                "last bucket": 1, "bandwidth": 0, "jitter": 0.5, "contention": 4 - 1.002 + 1.5}  # fmt: skip
    assert parts == pytest.approx(expected, abs=1e-6)
    assert verdict.loss.mean == pytest.approx(11 * MS, rel=1e-6)
    assert verdict.efficiency == pytest.approx(10 / 21, rel=1e-3)
    assert verdict.straggler == "rank 1 on core 3"


def test_a_rank_that_is_late_only_now_and_then_is_no_straggler() -> None:
    rounds = _rounds(10, 20, 22, fastest=10)
    last = rounds[-1]
    other = dataclasses.replace(last.apart, rank_seconds=last.apart.rank_seconds[::-1])
    verdict = decide([*rounds[:-1], dataclasses.replace(last, apart=other)], _arms(exposed=2), SLOW_LINK, 64)
    assert (verdict.causes[0].name, verdict.straggler) == ("cores", "")


def test_a_rank_that_is_late_in_some_runs_of_a_round_is_no_straggler() -> None:
    """One round says little by itself; its runs say more."""
    one = _rounds(10, 20, 22, fastest=10)[0]

    def named(*ranks: int) -> str:
        apart = dataclasses.replace(one.apart, slowest_ranks=ranks)
        return decide([dataclasses.replace(one, apart=apart)], _arms(exposed=2), SLOW_LINK, 64).straggler

    assert named(1, 1, 1) == "rank 1 on core 3"
    assert named(1, 0, 1) == ""


def test_a_noisy_round_is_left_out_and_named_with_its_load() -> None:
    rounds = _rounds(10, 12, 16, loads=(1.2, 9.3, 4.0))
    far = dataclasses.replace(rounds[1], ddp=_time("ddp", 2, 137 * MS))
    verdict = decide([rounds[0], far, rounds[2]], _arms(exposed=4, size=MB, alone=(4,)), SLOW_LINK, 64, cores=2)
    assert verdict.left_out == ("round 2, which began at load 9.3",)
    assert verdict.loss.n == 2
    assert verdict.loss.max == pytest.approx(6 * MS, rel=0.01)
    # Where all are noisy there is nothing to compare with.
    every = decide(_rounds(10, 12, 16, loads=(9.0, 9.0, 9.0)), _arms(exposed=4), SLOW_LINK, 64, cores=2)
    assert (every.left_out, every.loss.n) == ((), 3)


def test_what_takes_longer_inside_a_step_than_alone_is_no_property_of_the_link() -> None:
    parts = communication_parts(_arms(ready=(9, 9)), FAR_LINK, 20 * MS)
    assert parts["latency"] == pytest.approx(8 * MS)
    assert parts["contention"] == pytest.approx(12 * MS, rel=1e-3)
    assert sum(parts.values()) == pytest.approx(20 * MS)


def test_what_is_sent_beside_the_backward_pass_is_not_waited_for() -> None:
    """ResNet-18 in three buckets: the last takes 3 ms by the line, all of them 9; 12 were seen inside."""
    arms = _arms(exposed=12, alone=(3, 3, 3), ready=(2, 5, 9), size=3 * 10**5)
    parts = communication_parts(arms, SLOW_LINK, 12 * MS)
    assert parts["last bucket"] + parts["latency"] == pytest.approx(3.002 * MS)
    assert parts["contention"] == pytest.approx((12 - 3.002) * MS)


def test_a_known_link_is_named_and_what_it_would_bring() -> None:
    link = dataclasses.replace(SLOW_LINK, latency=150e-6, fixed=8 / 95.6e6)
    assert link_line(link) == (
        "All-reduces alone take 150 µs per message, and their bytes pass at 95.6 Mbit/s, probably a link of "
        "100 Mbit/s (fitted line within 0 %)."
    )
    assert "probably" not in link_line(dataclasses.replace(link, fixed=8 / 700e6))
    arms = _arms(exposed=20.7, size=247_080, alone=(20.7,), ready=(9,))
    verdict = decide(_rounds(10, 10, 30.7), arms, dataclasses.replace(link, latency=0.0), 64)
    rows = {row.what: row for row in what_ifs([ArmsAt(64, arms)], RankGroup(2), 64, verdict.link)}
    sent = 247_080 * 8 / 95.6e6
    assert rows["a link ten times as fast"].step == pytest.approx(30.7 * MS - 0.9 * sent)
    assert rows["gradients sent as bf16"].step == pytest.approx(30.7 * MS - 0.5 * sent)
    assert rows["gradients sent as bf16"].gain == pytest.approx(30.7 * MS / (30.7 * MS - 0.5 * sent) - 1)
    assert rows["a tenth of the latency"].gain == 0
    assert verdict.causes[0].name == "bandwidth"
    assert isinstance(verdict, Verdict)


def test_scaling_that_holds_has_no_cause() -> None:
    verdict = decide(_rounds(10, 10.1, 10.3), _arms(exposed=0.2), SLOW_LINK, 64)
    assert verdict.sentence == "Weak scaling does not stop at 2 ranks: a step keeps 97% of its speed."


def test_a_step_that_more_ranks_make_faster_is_a_disturbed_one() -> None:
    verdict = decide(_rounds(17, 11, 10), _arms(), SLOW_LINK, 64)
    assert "At 2 ranks, in weak scaling, a step was faster than on one, 170% of its speed, which" in verdict.sentence


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
    verdict = decide(_rounds(10, 11, 13), _arms(exposed=7, alone=(3, 4), ready=(9, 9)), SLOW_LINK, 64)
    assert "adds up to 2.7 times what is lost, so that there is no cause to name" in verdict.sentence


def test_what_no_part_explains_is_said() -> None:
    verdict = decide(_rounds(10, 10, 18), _arms(exposed=1), SLOW_LINK, 64)
    assert "the largest part of what is lost, 88%, has no measured cause" in verdict.sentence


def test_without_a_fitted_link_nothing_is_latency() -> None:
    arms = _arms(exposed=4, alone=(1, 1))
    parts = {one.name: one.seconds for one in decide(_rounds(10, 10, 14), arms, None, 64).causes}
    assert parts["latency"] == 0
    assert parts["last bucket"] == pytest.approx(1 * MS)  # the first was averaged beside the backward pass
    assert parts["contention"] == pytest.approx(3 * MS)


def _with_silent(rounds: list[Round], *silent: float) -> list[Round]:
    """Give rounds the steps of DDP that sends nothing, milliseconds."""
    pairs = zip(rounds, silent, strict=True)
    return [dataclasses.replace(one, silent=_time("silent", 2, step * MS)) for one, step in pairs]


def test_steps_of_the_same_launches_leave_nothing_unexplained() -> None:
    """The arms of another launch saw other times; what DDP costs is that of the rounds."""
    rounds = _with_silent(_rounds(10, 11, 16), 13, 13, 13)
    arms = _arms(exposed=9, inside=2.5, wrapper=7, jitter=0.4, alone=(0.3,), ready=(9,))
    verdict = decide(rounds, arms, SLOW_LINK, 64)
    parts = {one.name: one.seconds / MS for one in verdict.causes}
    # 1 ms by cores, 2 by the wrapper, 3 waited: 1 for bytes by the line, 1.5 more seen inside, 0.4 of the rest jitter.
    assert parts["cores"] == pytest.approx(1, abs=0.01)
    assert parts["wrapper"] == pytest.approx(2, abs=0.01)
    assert parts["bandwidth"] + parts["latency"] == pytest.approx(1.002, abs=0.01)
    assert parts["jitter"] == pytest.approx(0.4, abs=0.01)
    assert parts["contention"] == pytest.approx(3 - 1.002 - 0.4, abs=0.02)
    assert verdict.unexplained == pytest.approx(0, abs=0.02 * MS)


def test_a_step_that_noise_made_longer_than_the_next_one_explains_nothing_twice() -> None:
    # Bare modules took 13 ms, and DDP that sends nothing 12, which includes them: 12.5 each.
    rounds = _with_silent(_rounds(11, 13, 14), 12, 12, 12)
    verdict = decide(rounds, _arms(exposed=2, inside=0.5, alone=(0.3,), ready=(9,)), SLOW_LINK, 64)
    parts = {str(one.name): one.seconds / MS for one in verdict.causes}
    assert parts["cores"] == pytest.approx(1.5, abs=0.02)
    assert parts["wrapper"] == 0
    assert sum(parts.values()) == pytest.approx(3, abs=0.02)
    assert verdict.unexplained == pytest.approx(0, abs=1e-9)
    # Two ranks that never talk were faster than one: the two count alike, and what is left of the loss is noise.
    rounds = _with_silent(_rounds(11, 10, 14), 12, 12, 12)
    verdict = decide(rounds, _arms(exposed=2, inside=0.5, alone=(0.3,), ready=(9,)), SLOW_LINK, 64)
    assert sum(one.seconds for one in verdict.causes) == pytest.approx(3.5 * MS, rel=0.01)
    assert verdict.unexplained == pytest.approx(-0.5 * MS, rel=0.05)


def _with_waits(rounds: list[Round], *waits: tuple[float, float, float]) -> list[Round]:
    """Give rounds what DDP waits: the first rank, the second, and the one that waits least, milliseconds.

    Without communication the second rank is the slowest, and each waits 0.1 ms.
    """
    found = []
    for one, (first, second, least) in zip(rounds, waits, strict=True):
        assert one.silent is not None
        step = one.silent.step.median
        silent = dataclasses.replace(
            one.silent, rank_seconds=(0.9 * step, step), rank_waits=(0.1 * MS, 0.1 * MS), least_wait=0.1 * MS
        )
        ddp = dataclasses.replace(one.ddp, rank_waits=(first * MS, second * MS), least_wait=least * MS)
        found.append(dataclasses.replace(one, silent=silent, ddp=ddp))
    return found


def test_a_clock_in_the_loops_divides_what_ddp_waits() -> None:
    # 1 ms by cores, 2 by the wrapper, 5 exposed. The second rank waits 2.6 - 0.1 ms: 1.1 - 0.1 for communication, of
    # which the line explains all, and 1.5 for the other rank. The remaining 2.5 ms are computing that takes longer.
    rounds = _with_waits(_with_silent(_rounds(10, 11, 18), 13, 13, 13), *[(4.1, 2.6, 1.1)] * 3)
    # What the arms saw, in another launch, does not count.
    arms = _arms(exposed=9, inside=4, jitter=3, alone=(1,), ready=(9,))
    verdict = decide(rounds, arms, SLOW_LINK, 64)
    parts = {str(one.name): one.seconds / MS for one in verdict.causes}
    expected = {"cores": 1, "wrapper": 2, "latency": 0.002, "bandwidth": 0.998, "jitter": 1.5, "contention": 2.5}
    assert {name: parts[name] for name in expected} == pytest.approx(expected, abs=0.02)
    assert verdict.unexplained == pytest.approx(0, abs=1e-9)


def test_computing_that_takes_longer_in_some_rounds_only_is_no_contention() -> None:
    # In the third round the clock saw more than DDP takes longer than DDP that sends nothing.
    waits = [(0.1, 0.1, 0.1), (0.1, 0.1, 0.1), (5.7, 5.7, 5.7)]
    rounds = _with_waits(_with_silent(_rounds(10, 10, 15), 10, 10, 10), *waits)
    some = decide(rounds, _arms(), SLOW_LINK, 64)
    parts = {one.name: one.seconds / MS for one in some.causes}
    # The mean of what was seen is beyond the line: contention in the collectives, but none in computing.
    assert parts["contention"] + parts["latency"] + parts["last bucket"] == pytest.approx(5.6 / 3, abs=0.01)
    assert some.unexplained == pytest.approx((5 - 5.6 / 3) * MS, abs=0.02 * MS)
    every = decide(_with_waits(_with_silent(_rounds(10, 10, 15), 10, 10, 10), *waits[:2], waits[0]), _arms(), None, 64)
    assert every.causes[0].name == "contention"
    assert every.unexplained == pytest.approx(0, abs=1e-9)


def test_a_rank_that_is_slow_for_a_while_is_jitter() -> None:
    """Now one rank is late and now another; the arms' five steps in a turn are too few to see it."""
    rounds = _with_waits(_with_silent(_rounds(10, 10.5, 14.5), 10.5, 10.5, 10.5), *[(3.4, 3.3, 0.4)] * 3)
    verdict = decide(rounds, _arms(exposed=0.5, jitter=0.0), SLOW_LINK, 64)
    assert verdict.causes[0].name == "jitter"
    assert verdict.causes[0].seconds == pytest.approx((3.3 - 0.4) * MS)
    assert "Now one rank is late and now another" in verdict.sentence


def test_what_only_some_rounds_show_beyond_the_clock_inside_is_no_contention() -> None:
    arms = _arms(exposed=2, inside=2, alone=(0.3,), ready=(9,), size=2 * 10**5)
    every = decide(_with_silent(_rounds(10, 10, 15), 10, 10, 10), arms, SLOW_LINK, 64)
    assert every.causes[0].name == "contention"
    # In the third round DDP waits no longer than the clock inside saw.
    some = decide(_with_silent(_rounds(10, 10, 15), 10, 10, 13.5), arms, SLOW_LINK, 64)
    parts = {one.name: one.seconds / MS for one in some.causes}
    assert parts["contention"] == pytest.approx(0, abs=1e-3)
    assert some.unexplained > MS


def test_a_round_with_a_step_that_is_far_from_the_others_is_left_out_and_named() -> None:
    rounds = _rounds(10, 12, 16, loads=(1.2, 2.3, 1.4))
    far = dataclasses.replace(rounds[1], ddp=_time("ddp", 2, 58 * MS))
    verdict = decide([rounds[0], far, rounds[2]], _arms(exposed=4, size=MB, alone=(4,)), SLOW_LINK, 64, cores=2)
    assert verdict.left_out == (
        "round 2, in which a step took 58.0 ms where the median of the rounds is 16.0 ms, and which began at load 2.3",
    )
    assert verdict.loss.n == 2
    # Of two rounds nobody knows which one was disturbed.
    assert decide([rounds[0], far], _arms(exposed=4), SLOW_LINK, 64, cores=2).left_out == ()


def test_a_verdict_from_noisy_rounds_alone_warns() -> None:
    arms = _arms(exposed=4, size=MB, alone=(4,), ready=(9,))
    text = decide(_rounds(10, 12, 16, loads=(9.0, 12.0, 9.5)), arms, SLOW_LINK, 64, cores=2).sentence
    assert "goes to bandwidth" in text
    assert text.endswith(
        " Every round began at a load of more than 4 (9.0 to 12.0), so other processes have part in all of this; "
        "measure again on a quieter machine."
    )
    quiet = decide(_rounds(10, 12, 16, loads=(1.0, 12.0, 9.5)), arms, SLOW_LINK, 64, cores=2)
    assert "Every round" not in quiet.sentence


ROUND_TRIP = LinkModel(
    "link", "ring", latency=10.3 * MS, fixed=1e-11, per_rate=0.0, rates=None, residual=0.0, samples=9
)
MBIT_100 = LinkModel(
    "link", "ring", latency=0.1 * MS, fixed=8 / 95.6e6, per_rate=0.0, rates=None, residual=0.0, samples=9
)


@pytest.mark.parametrize(
    ("lost", "name", "part", "rounds", "arms", "model"),
    [
        # A round trip of 10.3 ms: gloo's all-reduce of one bucket over two ranks has two of them, one after the other.
        (31.6, "latency", 20.6, _with_silent(_rounds(9, 10, 40.6), 10.4, 10.4, 10.4),
         _arms(exposed=30.2, inside=30.2, size=247_080, alone=(20.6,), ready=(9,)), ROUND_TRIP),
        # 247,080 bytes at 95.6 Mbit/s take 20.7 ms.
        (31.0, "bandwidth", 20.7, _with_silent(_rounds(9, 10, 40), 10.4, 10.4, 10.4),
         _arms(exposed=29.6, inside=21.0, size=247_080, alone=(20.9,), ready=(9,)), MBIT_100),
        # ResNet-18, batch 4: 13.5 ms exposed inside the step, 36.3 by differencing.
        (58.0, "contention", 36.3 - 13.5, _with_silent(_rounds(150, 165, 208), 171.7, 171.7, 171.7),
         _arms(exposed=36.3, inside=13.5, size=11_173_962, alone=(6, 6, 6, 6), ready=(40, 80, 120, 160)), SLOW_LINK),
    ],
)  # fmt: skip
def test_causes_that_were_planted_under_a_study(
    lost: float, name: str, part: float, rounds: list[Round], arms: ArmsRecord, model: LinkModel
) -> None:
    verdict = decide(rounds, arms, model, 64)
    assert verdict.loss.mean == pytest.approx(lost * MS, rel=0.01)
    assert verdict.causes[0].name == name
    assert verdict.causes[0].seconds == pytest.approx(part * MS, rel=0.02)
    assert abs(verdict.unexplained) < 0.1 * verdict.loss.mean
