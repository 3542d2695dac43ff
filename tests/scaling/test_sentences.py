"""The plain sentences are true of their numbers: a real record, changed into what that machine did not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twoscale.scaling._measure.records import CapacityRecord, CapacityTrial
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._questions.accuracy import AccuracyAnswer
from twoscale.scaling._questions.answers import read_results, sentences
from twoscale.scaling._questions.batch import BatchAnswer, batch_table
from twoscale.scaling._questions.communication import CommunicationAnswer, arms_table
from twoscale.scaling._questions.forecast import ForecastAnswer
from twoscale.scaling._questions.registry import ANSWERED, VERDICT
from twoscale.scaling._questions.replicas import ReplicasAnswer
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.sampler import SamplerAnswer
from twoscale.scaling._questions.speedup import SpeedupAnswer
from twoscale.scaling._questions.verdict import VerdictAnswer
from twoscale.scaling._questions.wire import WireAnswer

RECORD = Path(__file__).parents[2] / "docs" / "scaling-study.json"


@pytest.fixture(scope="module")
def study() -> StudyResults:
    return read_results(RECORD)


def _said(section: str, study: StudyResults, *changed: object) -> str:
    """Return the sentence of a section where some answers are others."""
    return sentences(study.changed(*changed))[section]


def _exposed(study: StudyResults, *milliseconds: float, alone: float = 2.0, seen: tuple[float, ...] = ()) -> str:
    """Return what is said of arms at two ranks with these exposed times, one a round."""
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
    assert "waits 0.54 ms for communication as a clock inside the step sees it, and 2.00 ms alone; " in text
    assert "the difference of the arms, −0.40 ms to 0.30 ms, is too uncertain to confirm that." in text
    none = (-0.1, -0.1, 0.0, 0.0, 0.1, 0.1)
    text = _exposed(study, *noise, seen=none)
    assert text.endswith("does not measurably wait for communication, which takes 2.00 ms alone.")


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
    assert "no speed-up to tell: more ranks gave no result; DDP at one rank keeps 96 %" in _said(
        "speedup", study, SpeedupAnswer(alone)
    )
    speed = study.of(SpeedupAnswer).speed
    many = tuple(replace(row, speedup=None, efficiency=None) for row in speed if row.world_size > 1)
    text = _said("speedup", study, SpeedupAnswer(many))
    assert "the bare module on one rank, to compare with, gave no result" in text
    one = replace(study, config=replace(study.config, world_sizes=(1,)))
    assert "one rank was asked for" in _said("speedup", one, SpeedupAnswer(alone))


def _accuracies(study: StudyResults, **values: tuple[float | None, ...]) -> str:
    """Return what is said where ways at equal epochs reached other accuracies, one a seed."""
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
    assert "with nothing changed reaches 90.7 %, the small one 91.0 %, no more apart than seeds are" in text
    assert "gains 3.0 points" in _accuracies(study, small=(0.9, 0.91, 0.92), plain=(0.93, 0.94, 0.95))


def test_a_remedy_is_better_only_where_seeds_show_it(study: StudyResults) -> None:
    small, plain = (0.95, 0.95, 0.95), (0.5, 0.51, 0.52)
    others: dict[str, tuple[float | None, ...]] = dict.fromkeys(("linear", "tuned", "lars", "lamb"), (0.4, 0.4, 0.4))
    better = _accuracies(study, small=small, plain=plain, adamw=(0.9, 0.91, 0.92), **others)
    assert "AdamW, batch 64, warm-up, reaches 91.0 %, better than with nothing changed by 40.0 to 40.0 points" in better
    chance = _accuracies(study, small=small, plain=plain, adamw=(0.4, 0.9, 0.6), **others)
    assert "which is not shown to be better than nothing changed (3 seeds: " in chance


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
    assert "2 ranks train 1.90 times as fast with the batch of a rank kept (efficiency 95 %, 95 to 95)" in text


def test_no_error_of_a_forecast_is_larger_than_said(study: StudyResults) -> None:
    answer = study.of(ForecastAnswer)
    one = replace(answer.held_out[0], error=-0.0641)
    assert _said("forecast", study, replace(answer, held_out=(one,))).startswith(
        "The step of 1 held-out cell was forecast from the others to within 7 %"
    )
    waits = replace(one, exposed=0.0084, measured_exposed=0.0363)
    text = _said("forecast", study, replace(answer, held_out=(waits,)))
    assert "within 7 %, what they wait for communication to within 27.9 ms; " in text


def test_what_stopped_the_search_for_the_largest_batch(study: StudyResults) -> None:
    answer = study.of(BatchAnswer)
    assert answer.capacity is not None

    def said(capacity: CapacityRecord) -> str:
        return _said("batch", study, replace(answer, capacity=capacity))

    trials = [CapacityTrial(64, "ok", 1.0, 1), CapacityTrial(128, "time-out", 1.0, None, "no result")]
    capacity = replace(answer.capacity, largest=64, reached_limit=False, trials=tuple(trials))
    assert said(capacity).endswith("a batch of 64 runs, and one of 128 ended in a time-out.")
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
