"""The plain sentences are true of their numbers: a real record, changed into what that machine did not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twoscale.scaling._measure.arms import _disagreement
from twoscale.scaling._measure.records import CapacityRecord, CapacityTrial
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.tasks import CurvePoint
from twoscale.scaling._questions.accuracy import (
    AccuracyAnswer,
    RateTried,
    accuracy_table,
    curve_plot,
    edges_sentence,
    loss_plot,
    rates_table,
)
from twoscale.scaling._questions.answers import read_results, sentences
from twoscale.scaling._questions.batch import BatchAnswer, batch_table
from twoscale.scaling._questions.communication import (
    ArmsAt,
    CommunicationAnswer,
    arms_table,
    epochs_table,
    loop_sentence,
    rates_sentence,
    wire_table,
)
from twoscale.scaling._questions.forecast import ForecastAnswer, _forecasts, measured_steps
from twoscale.scaling._questions.registry import ANSWERED, VERDICT, question
from twoscale.scaling._questions.replicas import ReplicasAnswer
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.sampler import SamplerAnswer
from twoscale.scaling._questions.speedup import GridRow, SpeedupAnswer, grid_sentence, grid_table
from twoscale.scaling._questions.verdict import VerdictAnswer
from twoscale.scaling._questions.wire import WireAnswer

RECORD = Path(__file__).with_name("recorded-study.json")


@pytest.fixture(scope="module")
def study() -> StudyResults:
    return read_results(RECORD)


def _said(section: str, study: StudyResults, *changed: object) -> str:
    """Return the sentence of a section where some answers are others."""
    return sentences(study.changed(*changed))[section]


def _exposed(study: StudyResults, *milliseconds: float, alone: float = 2.0, seen: tuple[float, ...] = ()) -> str:
    """Return the sentence about arms at two ranks with these exposed times, one per round."""
    arms = []
    for at in study.of(CommunicationAnswer).arms:
        if at.record.world_size == 2:
            exposed, isolated = summarize([one / 1e3 for one in milliseconds]), summarize([alone / 1e3] * 6)
            overlap = 1 - exposed.median / isolated.median
            inside = summarize([one / 1e3 for one in seen]) if seen else at.record.exposed_in_situ
            record = replace(at.record, exposed=exposed, isolated=isolated, overlap=overlap, exposed_in_situ=inside)
            at = replace(at, record=record)
        arms.append(at)
    return _said("communication", study, CommunicationAnswer(tuple(arms)))


def test_communication_hidden_or_not(study: StudyResults) -> None:
    assert _exposed(study, *[0.5] * 6).endswith(
        "waits 0.50 ms for communication that takes 2.00 ms alone: computing hides 75 % of it."
    )
    assert _exposed(study, *[3.0] * 6).endswith(
        "alone: nothing of it is hidden behind computing, and inside a step it costs more than alone."
    )
    noise = (-0.4, -0.3, -0.2, 0.1, 0.2, 0.3)
    # The clock inside the step saw 0.54 ms, which contradicts "does not measurably wait".
    text = _exposed(study, *noise)
    assert (
        "a clock inside the step sees it wait 0.54 ms of 8.38 ms for communication, which takes 2.00 ms alone; " in text
    )
    assert "the difference of the arms, −0.40 ms to 0.30 ms, is too uncertain to confirm that." in text
    none = (-0.1, -0.1, 0.0, 0.0, 0.1, 0.1)
    text = _exposed(study, *noise, seen=none)
    assert text.endswith("does not measurably wait for communication, which takes 2.00 ms alone.")


def test_communication_that_takes_as_long_inside_as_alone_is_not_hidden(study: StudyResults) -> None:
    assert _exposed(study, *[2.0] * 6).endswith("alone: nothing of it is hidden behind computing.")


def test_what_ddp_adds_to_one_rank(study: StudyResults) -> None:
    def said(*milliseconds: float) -> str:
        arms = []
        for at in study.of(CommunicationAnswer).arms:
            if at.record.world_size == 1:
                tax, bare = summarize([one / 1e3 for one in milliseconds]), summarize([8.0e-3] * 6)
                arms.append(replace(at, record=replace(at.record, wrapper_tax=tax, bare=bare)))
        return _said("communication", study, CommunicationAnswer(tuple(arms)))

    assert said(*[0.3] * 6) == "One rank sends nothing; DDP itself adds 0.30 ms to a step of 8.00 ms."
    unsure = said(-0.2, -0.1, 0.1, 0.2, 0.3, 0.4)
    assert unsure.endswith("DDP itself adds nothing that could be told apart from zero to a step of 8.00 ms.")


def test_two_clocks_that_disagree() -> None:
    inside = summarize([1.0e-3, 1.1e-3] * 3)
    assert _disagreement(summarize([1.05e-3] * 6), inside) is None
    slowed = _disagreement(summarize([3e-3] * 6), inside) or ""
    assert slowed.startswith("exposed communication is 3.00 ms by differencing (3.00 to 3.00) but 1.05 ms ")
    assert slowed.endswith(": communication slows the computing beside it")
    spent = _disagreement(summarize([0.5e-3] * 6), inside) or ""
    assert spent.endswith(": part of what the last bucket takes is spent whether or not it is sent")


def test_whether_two_clocks_agree(study: StudyResults) -> None:
    agree = "Differencing and the clock inside the step agree within their intervals."

    def findings(*arms: ArmsAt) -> list[str]:
        changed = study.changed(replace(study.of(CommunicationAnswer), arms=arms))
        return list(question("communication").content(changed).groups[0].findings)

    one, two = (replace(at, record=replace(at.record, disagreement=None)) for at in _arms(study)[:2])
    assert agree in findings(one, two)
    other = replace(two, record=replace(two.record, disagreement="exposed communication is another"))
    found = findings(one, other)
    assert agree not in found
    assert f"2 ranks, batch {two.batch_size}: exposed communication is another." in found
    # One rank communicates with no one: there is nothing to agree on.
    alone = [at for at in study.of(CommunicationAnswer).arms if at.record.world_size == 1]
    assert agree not in findings(*alone)


def test_the_fastest_batch_and_its_share_of_the_matrix_rate(study: StudyResults) -> None:
    answer = study.of(BatchAnswer)

    def said(**changed: Any) -> str:
        rows = tuple(replace(row, **changed) if row.batch_size == 512 else row for row in answer.batches)
        return _said("batch", study, replace(answer, batches=rows))

    assert " at 128, the fastest measured, at 15 % of the device's measured matrix rate; " in said()
    fast = summarize([0.05] * 3)
    assert " and 0.050 s at 512, the fastest measured, at 33 % of " in said(epoch=fast, of_peak=0.33)
    assert " and 0.050 s at 512, the fastest measured; " in said(epoch=fast, of_peak=None)
    (row,) = (row for row in answer.batches if row.batch_size == 512)
    only = _said("batch", study, replace(answer, batches=(replace(row, epoch=fast, of_peak=0.33),)))
    assert only.startswith("An epoch takes 0.050 s at batch 512, at 33 % of the device's measured matrix rate; ")


def test_an_overlap_whose_sign_is_unknown_is_not_said(study: StudyResults) -> None:
    text = _exposed(study, 0.5, 1.0, 1.2, 1.4, 2.0, 3.9)
    assert text.endswith("these rounds differ too much to say how much of it computing hides.")
    arms = study.of(CommunicationAnswer).arms
    assert {row[-1].text for row in arms_table(arms).rows} == {"–"}  # of the record: −99 and −86 %, of 0.3 ms


def test_the_batch_sentence_says_what_its_table_says(study: StudyResults) -> None:
    slow = summarize([0.1, 0.1, 1.0])  # one launch was disturbed
    answer = study.of(BatchAnswer)
    rows = tuple(replace(row, epoch=slow) if row.batch_size == 32 else row for row in answer.batches)
    changed = replace(answer, batches=rows)
    assert _said("batch", study, changed).startswith("An epoch takes 0.40 s at batch 32 and ")
    assert batch_table(study.changed(changed)).rows[0][1].text == "0.400"


def test_a_failed_launch_is_no_single_device(study: StudyResults) -> None:
    alone = tuple(row for row in study.of(SpeedupAnswer).speed if row.world_size == 1)
    assert "No speed-up can be given: more ranks gave no result; DDP at one rank keeps 96 %" in _said(
        "speedup", study, SpeedupAnswer(alone)
    )
    speed = study.of(SpeedupAnswer).speed
    many = tuple(replace(row, speedup=None, efficiency=None) for row in speed if row.world_size > 1)
    text = _said("speedup", study, SpeedupAnswer(many))
    assert "the bare module on one rank, the baseline, gave no result" in text
    one = replace(study, config=replace(study.config, world_sizes=(1,)))
    assert "one rank was asked for" in _said("speedup", one, SpeedupAnswer(alone))


def _accuracies(study: StudyResults, **values: tuple[float | None, ...]) -> str:
    """Return the sentence where ways at equal epochs reached other accuracies, one per seed."""
    small = values.get("small", (0.9, 0.91, 0.92))
    rows = []
    for row in study.of(AccuracyAnswer).accuracy:
        if row.equal == "epochs" and row.way in values:
            found = values[row.way]
            known = [value for value in found if value is not None]
            paired = [a - b for a, b in zip(found, small, strict=True) if a is not None and b is not None]
            row = replace(
                row,
                accuracies=found,
                accuracy=summarize(known) if known else None,
                against_small=summarize(paired) if paired and row.way != "small" else None,
            )
        rows.append(row)
    return _said("accuracy", study, AccuracyAnswer(tuple(rows)))


def test_accuracies_that_seeds_explain_are_no_loss(study: StudyResults) -> None:
    text = _accuracies(study, small=(0.9, 0.91, 0.92), plain=(0.91, 0.9, 0.91))
    assert (
        "with nothing changed reaches 90.7 %, the small one 91.0 %, a difference that 3 seeds cannot tell from chance"
        in text
    )
    assert "gains 3.0 points" in _accuracies(study, small=(0.9, 0.91, 0.92), plain=(0.93, 0.94, 0.95))


def test_a_remedy_is_better_only_where_seeds_show_it(study: StudyResults) -> None:
    small, plain = (0.95, 0.95, 0.95), (0.5, 0.51, 0.52)
    others: dict[str, tuple[float | None, ...]] = dict.fromkeys(("linear", "tuned", "lars", "lamb"), (0.4, 0.4, 0.4))
    better = _accuracies(study, small=small, plain=plain, adamw=(0.9, 0.91, 0.92), **others)
    assert "AdamW, batch 64, warm-up, reaches 91.0 %, better than with nothing changed by 40.0 to 40.0 points" in better
    chance = _accuracies(study, small=small, plain=plain, adamw=(0.4, 0.9, 0.6), **others)
    assert "which is not shown to be better than nothing changed (3 seeds: " in chance
    assert _accuracies(study, small=small[:1], plain=plain[:1], adamw=(0.9,), **dict.fromkeys(others, (0.4,))).endswith(
        "AdamW, batch 64, warm-up, reaches 90.0 %, with one seed, which shows nothing of chance; at equal steps, "
        "nothing changed, it reaches 96.4 %."
    )
    # An interval of more than 100 points says nothing.
    wide = _accuracies(study, small=small, plain=(0.1, 0.9, 0.1), adamw=(0.9, 0.1, 0.95), **others)
    assert "which is not shown to be better than nothing changed (3 seeds);" in wide


def test_runs_that_diverged_are_said_and_never_the_best(study: StudyResults) -> None:
    small = (0.9, 0.91, 0.92)
    text = _accuracies(study, small=small, plain=(None, None, 0.5), lamb=(None, 0.99, 0.99))
    assert "the large batch diverges with nothing changed, with 2 of 3 seeds; the best of the remedies, AdamW" in text
    assert "The small batch itself diverged with 3 of 3 seeds" in _accuracies(study, small=(None, None, None))


def test_a_ledger_that_differs(study: StudyResults) -> None:
    ledger = replace(study.of(WireAnswer).ledgers[0], differences=("backward 3: one", "backward 3: two"))
    assert _said("wire", study, WireAnswer((ledger,))).endswith("2 collectives were not observed as predicted.")
    unseen = replace(study.of(WireAnswer).ledgers[0], observed=None)
    assert "nothing was observed" in _said("wire", study, WireAnswer((unseen,)))


def test_a_sampler_whose_order_set_epoch_does_not_change(study: StudyResults) -> None:
    answer = study.of(SamplerAnswer)
    same = tuple(replace(row, same_place=(1.0, 1.0, 1.0)) for row in answer.orders)
    assert _said("sampler", study).endswith("only then is the order drawn anew.")
    assert _said("sampler", study, replace(answer, orders=same)).endswith("it makes no difference.")


def test_replicas_that_part_or_meet_against_the_belief(study: StudyResults) -> None:
    records = study.of(ReplicasAnswer).replicas

    def said(**changed: Any) -> str:
        others = tuple(
            replace(record, cases=tuple(replace(case, **changed) for case in record.cases)) for record in records
        )
        return _said("replicas", study, ReplicasAnswer(others))

    assert "never of those that did not; BatchNorm's statistics drift apart" in _said("replicas", study)
    assert said(parameters_equal=False).startswith("Replicas that began alike did not stay alike")
    assert "never of those that did not" not in said(parameters_equal=True)
    assert "drift apart" not in said(buffers_equal=True)


def test_the_speed_up_is_that_of_its_rows(study: StudyResults) -> None:
    rows = tuple(
        replace(row, speedup=summarize([1.9] * 3), efficiency=summarize([0.95] * 3)) if row.scaling == "weak" else row
        for row in study.of(SpeedupAnswer).speed
    )
    text = _said("speedup", study, SpeedupAnswer(rows))
    assert (
        "2 ranks train 1.90 times as fast in weak scaling, with the batch per rank kept (efficiency 95 %, 95 to 95)"
        in text
    )


def test_no_error_of_a_forecast_is_larger_than_said(study: StudyResults) -> None:
    answer = study.of(ForecastAnswer)
    one = replace(answer.held_out[0], error=-0.0641)
    assert _said("forecast", study, replace(answer, held_out=(one,))).startswith(
        "The step of 1 held-out cell was forecast from the others to within 7 %"
    )
    waits = replace(one, exposed=0.0084, measured_exposed=0.0363)
    text = _said("forecast", study, replace(answer, held_out=(waits,)))
    assert "within 7 %, what they wait for communication to within 27.9 ms; " in text


def test_a_forecast_that_nothing_could_check(study: StudyResults) -> None:
    answer = replace(study.of(ForecastAnswer), held_out=(), forecasts=(), refused=("4 ranks: one", "8 ranks: two"))
    text = _said("forecast", study, answer)
    assert text == "No cell could be held out to check a forecast on; 2 forecasts were refused."


def test_what_more_ranks_would_wait(study: StudyResults) -> None:
    answer = study.of(ForecastAnswer)
    ahead = replace(answer.forecasts[0], exposed=0.003, step=0.012)
    text = _said("forecast", study, replace(answer, forecasts=(ahead,)))
    assert text.endswith(
        "; in weak scaling, 4 ranks that compute as fast as these would wait for communication 25 % of a step."
    )
    refused = _said("forecast", study, replace(answer, forecasts=(), refused=("4 ranks: why",)))
    assert "would wait" not in refused
    assert refused.endswith("; 1 forecast was refused.")


def test_what_stopped_the_search_for_the_largest_batch(study: StudyResults) -> None:
    answer = study.of(BatchAnswer)
    assert answer.capacity is not None

    def said(capacity: CapacityRecord) -> str:
        return _said("batch", study, replace(answer, capacity=capacity))

    trials = [CapacityTrial(64, "ok", 1.0, 1), CapacityTrial(128, "time-out", 1.0, None, "no result")]
    capacity = replace(answer.capacity, largest=64, reached_limit=False, trials=tuple(trials))
    assert said(capacity).endswith("a batch of 64 runs, and one of 128 ended in a time-out.")
    # Every image fits, or there was no time to go on.
    assert said(answer.capacity).endswith("; all 1,437 training images fit in one batch.")
    hurried = replace(capacity, trials=tuple(trials[:1]), ended=False)
    assert said(hurried).endswith("; a batch of 64 fits, and there was no time to try larger ones.")
    full = replace(capacity, trials=(trials[0], replace(trials[1], status="out-of-memory")))
    assert said(full).endswith("the largest batch that fits is 64.")


def test_why_there_is_no_verdict(study: StudyResults) -> None:
    without = study.changed(VerdictAnswer(None))
    config = study.config
    for sections, sizes, words in (
        (config.sections, config.world_sizes, "not all of them gave a result"),
        (("speedup",), config.world_sizes, "it needs the arms"),
        (config.sections, (1,), "one rank has nothing"),
    ):
        asked = replace(without, config=replace(config, sections=sections, world_sizes=sizes))
        assert words in (VERDICT.sentence(asked) or "")


def test_everything_failed(study: StudyResults) -> None:
    empty = study.changed(*(question.record() for question in ANSWERED))
    assert all(sentence.startswith("Nothing was measured") for sentence in sentences(empty).values())


def _grid(*efficiencies: tuple[float, ...]) -> tuple[GridRow, ...]:
    """Return rows of one and two ranks at batches 32, 64, ..., with these efficiencies at two, one per launch."""
    rows = []
    for place, values in enumerate(efficiencies):
        rows.append(GridRow(32 << place, 1, summarize([1.0] * 3), None, None))
        speedups = summarize([2 * value for value in values])
        rows.append(GridRow(32 << place, 2, summarize([0.6] * 3), speedups, summarize(values)))
    return tuple(rows)


def test_whether_a_larger_batch_scales_better() -> None:
    low, high, wide = (0.5, 0.51, 0.52), (0.9, 0.91, 0.92), (0.3, 0.7, 0.9)
    ends = "At 2 ranks, in weak scaling, the efficiency is 51 % at batch 32 and 91 % at batch 64: a larger batch per "
    assert (grid_sentence(_grid(low, high)) or "").startswith(f"{ends}rank scales better")
    assert (grid_sentence(_grid(high, low)) or "").endswith(
        "51 % at batch 64: a larger batch per rank scales worse here."
    )
    chance = grid_sentence(_grid(wide, high)) or ""
    assert chance.endswith("the launches do not show that the batch changes how well ranks scale.")
    assert "cannot show whether that is more than chance" in (grid_sentence(_grid((0.5,), (0.9,))) or "")
    assert grid_sentence(_grid(low)) is None
    rows = [[cell.text for cell in row] for row in grid_table(_grid(low, high)).rows]
    assert rows[1] == ["32", "2", "0.600", "1.02", "51"]
    assert rows[2][:2] == ["64", "1"]


def test_an_efficiency_whose_interval_says_nothing_has_none(study: StudyResults) -> None:
    wide = summarize([0.3, 0.7, 0.9])
    rows = tuple(
        replace(row, speedup=summarize([0.6, 1.4, 1.8]), efficiency=wide) if row.scaling == "weak" else row
        for row in study.of(SpeedupAnswer).speed
    )
    text = _said("speedup", study, SpeedupAnswer(rows))
    assert "(efficiency 63 %, single launches 30 to 90, too far apart for an interval)" in text


def _arms(study: StudyResults) -> list[ArmsAt]:
    return [at for at in study.of(CommunicationAnswer).arms if at.record.world_size == 2]


def test_the_rate_of_a_link_does_not_grow_with_the_batch(study: StudyResults) -> None:
    arms = _arms(study)
    text = rates_sentence(arms) or ""
    # 247,080 bytes in 0.289 and 0.280 ms, which at two ranks are also the bytes that each sends.
    assert text.startswith("At 2 ranks the all-reduces alone run at ")
    assert text.endswith("the batch does not change its rate.")
    slow = arms[1].record
    alone = tuple(replace(one, seconds=summarize([10 * one.seconds.median] * 6)) for one in slow.collectives_alone)
    disturbed = [arms[0], replace(arms[1], record=replace(slow, collectives_alone=alone))]
    assert (rates_sentence(disturbed) or "").endswith("something disturbed these measurements.")
    assert rates_sentence(arms[:1]) is None
    row = [cell.text for cell in wire_table(arms).rows[0]]
    assert row[1:4] == ["247,080", "1.00", "247,080"]
    assert wire_table(arms).rows[0][2].note == "2 × 1 / 2"
    four = replace(arms[0], record=replace(arms[0].record, world_size=4))
    row = [cell.text for cell in wire_table([four]).rows[0]]
    assert row[1:4] == ["247,080", "1.50", "370,620"]


def test_computing_and_communication_of_an_epoch_are_those_of_its_steps(study: StudyResults) -> None:
    arms = study.of(CommunicationAnswer).arms
    rows = {row[0].text: [cell.text for cell in row] for row in epochs_table(arms, 1437).rows}
    assert rows["1 rank, batch 64"][4] == "23"  # ceil(1437 / 64)
    assert rows["2 ranks, batch 64"][4] == "12"
    two = next(at.record for at in arms if (at.record.world_size, at.batch_size) == (2, 64))
    assert two.isolated is not None
    expected = [12 * part.median for part in (two.bare, two.exposed, two.isolated)]
    assert [float(cell) for cell in rows["2 ranks, batch 64"][5:]] == pytest.approx(expected, abs=6e-5)
    assert rows["1 rank, batch 64"][2:4] == ["–", "–"]


def test_both_times_of_a_step_are_named_side_by_side(study: StudyResults) -> None:
    at = _arms(study)[0]

    def said(loop: float, data: float, slow: float | None) -> str | None:
        record = replace(
            at.record,
            ddp=summarize([8.7e-3] * 6),
            free_running=summarize([loop / 1e3] * 6),
            data_wait=summarize([data / 1e3] * 6),
            slow_steps=None if slow is None else summarize([slow / 1e3] * 6),
        )
        return loop_sentence(replace(at, record=record))

    text = "At 2 ranks, batch 64, the same step takes 11.4 ms in a training loop and 8.70 ms where all ranks begin it "
    assert said(11.4, 0.7, 1.0) == text + (
        "together. The difference: 0.70 ms the wait for data, 1.00 ms slow steps (a loop's time is the mean, the other "
        "the median) and 1.00 ms not explained."
    )
    assert said(11.4, 2.7, 0.0) == text + "together. The difference: 2.70 ms the wait for data."
    assert said(11.4, 0.0, None) == text + "together. The difference: 2.70 ms not explained."
    assert said(8.6, 0.7, 1.0) is None


def _row(study: StudyResults, way: str, against: tuple[float, ...], curve: tuple[CurvePoint, ...] = ()) -> StudyResults:
    rows = tuple(
        replace(row, against_plain=summarize(against), curve=curve, loss=0.5)
        if (row.way, row.equal) == (way, "epochs")
        else row
        for row in study.of(AccuracyAnswer).accuracy
    )
    return study.changed(AccuracyAnswer(rows))


def test_each_remedy_is_judged_by_its_seeds(study: StudyResults) -> None:
    def judged(*against: float) -> str:
        changed = _row(study, "lars", against)
        return next(
            row[-1].text for row in accuracy_table(changed, "epochs").rows if row[0].text == "LARS, batch 64, warm-up"
        )

    assert judged(0.4, 0.41, 0.42) == "better"
    assert judged(-0.4, -0.41, -0.42) == "worse"
    assert judged(0.4, -0.3, 0.2) == "not shown"
    assert judged(0.4) == "one seed"


def test_loss_and_accuracy_by_epoch_are_drawn(study: StudyResults) -> None:
    assert loss_plot(study) is None  # of a record of an earlier version
    changed = _row(study, "small", (0.0,), (CurvePoint(1, 2.25, 0.25), CurvePoint(2, 1.125, 0.75)))
    loss, accuracy = loss_plot(changed), curve_plot(changed)
    assert loss is not None
    assert accuracy is not None
    assert loss.label.endswith(": batch 16 ends at 1.12")
    assert accuracy.label.endswith(": batch 16 ends at 75.00")


def test_a_best_rate_at_the_edge_of_what_was_tried_is_named() -> None:
    def tried(*accuracies: float | None) -> list[RateTried]:
        return [RateTried("lars", "LARS", "epochs", 2.0**i, value) for i, value in enumerate(accuracies)]

    assert edges_sentence(tried(0.1, 0.9, 0.5)) is None
    assert edges_sentence(tried(0.1, 0.5, 0.9)) == (
        "Best rates at the edge of what was tried. LARS, equal epochs: 4 is the largest tried, a larger one may "
        "be better."
    )
    assert "1 is the smallest tried" in (edges_sentence(tried(0.9, None, None)) or "")
    assert edges_sentence(tried(None, None)) is None
    (row,) = rates_table(tried(0.1, None, 0.9)).rows
    assert [cell.text for cell in row] == [
        "LARS",
        "equal epochs",
        "4",
        "1: 10.0, 2: diverged, 4: 90.0",
    ]


def test_a_forecast_is_judged_by_what_held_out_steps_wait(study: StudyResults) -> None:
    """8.4 ms of waiting were forecast and 36.3 measured, in steps whose own error would be trusted."""
    config = replace(study.config, base_batch=64)

    found = study.of(CommunicationAnswer)
    steps = measured_steps(config, found.arms, found.bandwidth)
    assert _forecasts(config, steps).forecasts
    uneven = [
        replace(one, compute=0.1, step=0.1 + waits / 1e3, exposed=waits / 1e3)
        for one, waits in zip(steps, (0.0, 0.0, 36.3, 8.4), strict=True)
    ]
    answer = _forecasts(config, uneven)
    assert all(abs(one.error or 0.0) < 0.3 for one in answer.held_out)
    assert answer.forecasts == ()
    assert any(
        "waited for communication up to 332% more or less than forecast, beyond 30%" in line for line in answer.refused
    )
