"""Each answer of a study in one plain sentence, made from its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

from twoscale._page.numbers import count, fixed, joined, percent
from twoscale.scaling._measure.records import CapacityRecord, LedgerRecord, Summary
from twoscale.scaling._questions.results import AccuracyRow, ArmsAt, BatchRow, SpeedRow, StudyResults
from twoscale.scaling._study.config import SECTIONS

__all__ = ["milliseconds", "seconds_text", "sentences", "verdict_sentence"]


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with three digits."""
    value = 1000 * seconds
    return f"{fixed(value, 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2)} ms"


def seconds_text(seconds: float) -> str:
    """Return a time of an epoch, in seconds with three digits."""
    return f"{fixed(seconds, 0 if seconds >= 100 else 1 if seconds >= 10 else 2 if seconds >= 0.1 else 3)} s"


def sentences(results: StudyResults) -> dict[str, str]:
    """Return the answer to each section that was asked for; a section without numbers says so."""
    makers: tuple[Callable[[StudyResults], str | None], ...] = (
        _batch, _speedup, _communication, _accuracy, _sampler, _wire, _replicas, _forecast,
    )  # fmt: skip
    by_name = dict(zip(SECTIONS, makers, strict=True))
    return {
        name: by_name[name](results)
        or "Nothing was measured: see the cells that failed, or that there was no time for."
        for name in results.config.sections
    }


def verdict_sentence(results: StudyResults) -> str:
    """Return why scaling stops here, or why that cannot be said."""
    if results.verdict is not None:
        return results.verdict.sentence
    if results.config.world_sizes[-1] == 1:
        why = "one rank has nothing to scale to; measure more with --world-sizes 1,2"
    elif {"communication", "forecast"}.isdisjoint(results.config.sections):
        why = "it needs the arms, which the sections communication and forecast measure"
    else:
        why = "it needs the steps of one rank and the steps and arms of more, and not all of them gave a result"
    return f"There is no verdict: {why}."


def _batch(results: StudyResults) -> str | None:
    rows = [row for row in results.batches if row.epoch is not None]
    if not rows:
        return None
    slow, fast = max(rows, key=_epoch), min(rows, key=_epoch)
    text = (
        f"An epoch takes {seconds_text(_epoch(slow))} at batch {count(slow.batch_size)} and "
        f"{seconds_text(_epoch(fast))} at {count(fast.batch_size)}, the fastest measured"
    )
    if slow is fast:
        text = f"An epoch takes {seconds_text(_epoch(fast))} at batch {count(fast.batch_size)}"
    if fast.of_peak is not None:
        text += f", at {percent(fast.of_peak, 0)} % of the device's measured matrix rate"
    return text + _largest(results.capacity) + "."


def _largest(capacity: CapacityRecord | None) -> str:
    """Say how large a batch fits, and what the next larger one met where that was not the end of memory."""
    if capacity is None or capacity.largest is None:
        return ""
    largest = count(capacity.largest)
    if capacity.reached_limit:
        return f"; all {largest} training images fit in one batch"
    if not capacity.ended:
        return f"; a batch of {largest} fits, and there was no time to try larger ones"
    over = min(
        (t for t in capacity.trials if t.batch_size > capacity.largest), key=lambda t: t.batch_size, default=None
    )
    if over is not None and over.status != "out-of-memory":
        return f"; a batch of {largest} runs, and one of {count(over.batch_size)} ended in a {over.status}"
    return f"; the largest batch that fits is {largest}"


def _epoch(row: BatchRow) -> float:
    assert row.epoch is not None
    return row.epoch.mean


def _speedup(results: StudyResults) -> str | None:
    def last(scaling: str) -> SpeedRow | None:
        return max((r for r in results.speed if r.scaling == scaling), key=lambda r: r.world_size, default=None)

    weak, strong, alone = last("weak"), last("strong"), last("ddp-alone")
    parts = [
        f"{fixed(row.speedup.mean, 2)} times as fast {what} (efficiency {_range(row.efficiency)})"
        for row, what in ((weak, "with the batch of a rank kept"), (strong, "with the batch of all kept"))
        if row is not None and row.speedup is not None and row.efficiency is not None
    ]
    if parts and weak is not None:
        return f"Against the bare module on one, {weak.world_size} ranks train {joined(parts)}."
    if alone is not None and alone.efficiency is not None:
        why = "one rank was asked for" if results.config.world_sizes[-1] == 1 else "more ranks gave no result"
        return (
            f"There is no speed-up to tell: {why}; DDP at one rank keeps {percent(alone.efficiency.mean, 0)} % of the "
            "bare module's speed."
        )
    if results.speed:
        return "There is no speed-up to tell: the bare module on one rank, to compare with, gave no result."
    return None


def _range(share: Summary) -> str:
    """Return a mean share of launches in percent, with its interval."""
    interval = share.mean_interval
    between = ", 1 launch" if interval is None else f", {percent(interval.low, 0)} to {percent(interval.high, 0)}"
    return f"{percent(share.mean, 0)} %{between}"


def most_ranks(results: StudyResults) -> ArmsAt | None:
    """Return the arms at the most ranks, at the base batch."""
    found = [at for at in results.arms if at.batch_size == results.config.base_batch]
    return max(found, key=lambda at: at.record.world_size, default=None)


def _communication(results: StudyResults) -> str | None:
    at = most_ranks(results)
    if at is None:
        return None
    record = at.record
    if record.isolated is None:
        tax = record.wrapper_tax
        adds = (
            f"{milliseconds(tax.median)} to a step of {milliseconds(record.bare.median)}"
            if tax.median_interval.low > 0
            else f"nothing that could be told apart from zero to a step of {milliseconds(record.bare.median)}"
        )
        return f"One rank sends nothing; DDP itself adds {adds}."
    step, alone = milliseconds(record.ddp.median), milliseconds(record.isolated.median)
    if record.exposed.median_interval.low <= 0:
        return (
            f"At {record.world_size} ranks a step of {step} does not measurably wait for communication, which takes "
            f"{alone} alone."
        )
    text = (
        f"At {record.world_size} ranks a step of {step} waits {milliseconds(record.exposed.median)} for communication "
        f"that takes {alone} alone: "
    )
    if record.exposed.median > record.isolated.median:
        return text + "nothing of it is hidden behind computing, and inside a step it costs more than alone."
    return text + f"computing hides {percent(record.overlap, 0)} % of it."


def _accuracy(results: StudyResults) -> str | None:
    rows = {(row.way, row.equal): row for row in results.accuracy}
    small, plain = rows.get(("small", "epochs")), rows.get(("plain", "epochs"))
    if small is None or plain is None:
        return None
    if small.accuracy is None or _diverged(small):
        return f"The small batch itself diverged with {_diverged(small)} seeds: there is nothing to compare with."
    before, change = percent(small.accuracy.mean, 1), plain.against_small
    if plain.accuracy is None or _diverged(plain):
        text = f"At equal epochs the large batch diverges with nothing changed, with {_diverged(plain)} seeds"
    elif (
        change is None or change.mean_interval is None or not change.mean_interval.low <= 0 <= change.mean_interval.high
    ):
        lost = small.accuracy.mean - plain.accuracy.mean
        text = (
            f"At equal epochs the large batch {'gains' if lost < 0 else 'loses'} {fixed(abs(100 * lost), 1)} points "
            f"with nothing changed ({before} % to {percent(plain.accuracy.mean, 1)} %)"
        )
    else:
        text = (
            f"At equal epochs the large batch with nothing changed reaches {percent(plain.accuracy.mean, 1)} %, the "
            f"small one {before} %, no more apart than seeds are"
        )
    helped = [
        row for (way, equal), row in rows.items() if equal == "epochs" and way not in ("small", "plain") and _whole(row)
    ]
    if helped:
        best = max(helped, key=_mean)
        text += f"; the best of the remedies, {best.title}, reaches {percent(_mean(best), 1)} %"
    longer = rows.get(("plain", "steps"))
    if longer is not None and _whole(longer):
        text += f"; at equal steps, nothing changed, it reaches {percent(_mean(longer), 1)} %"
    return text + "."


def _diverged(row: AccuracyRow) -> str:
    """Return "2 of 3" where so many runs have no accuracy, else nothing."""
    lost = sum(value is None for value in row.accuracies)
    return f"{lost} of {len(row.accuracies)}" if lost else ""


def _whole(row: AccuracyRow) -> bool:
    """Return whether every run has an accuracy: a mean of those that did not diverge would flatter."""
    return row.accuracy is not None and not _diverged(row)


def _mean(row: AccuracyRow) -> float:
    assert row.accuracy is not None
    return row.accuracy.mean


def _sampler(results: StudyResults) -> str | None:
    told = next((row for row in results.orders if row.set_epoch), None)
    untold = next((row for row in results.orders if not row.set_epoch), None)
    if told is None or untold is None:
        return None
    least, most = min(untold.same_place[1:], default=1.0), max(told.same_place[1:], default=1.0)
    text = (
        f"Without set_epoch {percent(least, 0)} % of the images have the same place in every epoch, with it at most "
        f"{percent(most, 2)} %"
    )
    return f"{text}: only then is the order drawn anew." if most < least else f"{text}: it makes no difference."


def _wire(results: StudyResults) -> str | None:
    if not results.ledgers:
        return None
    ledger = results.ledgers[0]
    off = sum(len(one.differences) for one in results.ledgers)
    if all(one.ok for one in results.ledgers):
        state = "every collective was observed as predicted, to the byte"
    elif off:
        state = f"{off} collective{'s were' if off > 1 else ' was'} not observed as predicted"
    else:
        state = "nothing was observed to compare the prediction with"
    return (
        f"Every step all-reduces {count(gradient_bytes(ledger))} bytes of gradients in {buckets(ledger)} "
        f"bucket{'s' * (buckets(ledger) != 1)}; {state}."
    )


def _last_backward(ledger: LedgerRecord) -> str:
    return f"backward {ledger.mini_batches}"


def gradient_bytes(ledger: LedgerRecord) -> int:
    """Return the bytes of gradients of a later step."""
    return sum(e.bytes for e in ledger.predicted if e.phase == _last_backward(ledger) and e.what == "gradients")


def buckets(ledger: LedgerRecord) -> int:
    """Return in how many all-reduces they go."""
    return sum(e.phase == _last_backward(ledger) and e.what == "gradients" for e in ledger.predicted)


def _replicas(results: StudyResults) -> str | None:
    if not results.replicas:
        return None
    cases = [case for record in results.replicas for case in record.cases]
    started = [case for case in cases if case.same_seed or case.initial_broadcast]
    otherwise = [case for case in cases if not (case.same_seed or case.initial_broadcast)]
    if not all(case.parameters_equal for case in started):
        return "Replicas that began alike did not stay alike: updates are not the same on every rank."
    parts = ["Gradients alone keep the parameters of replicas equal that began equal"]
    if otherwise and not any(case.parameters_equal for case in otherwise):
        parts.append("never of those that did not")
    silent = [case for case in started if not case.buffers_broadcast and case.buffers_equal is not None]
    text = ", ".join(parts)
    if silent and not any(case.buffers_equal for case in silent):
        text += "; BatchNorm's statistics drift apart unless they are broadcast"
    return text + "."


def _forecast(results: StudyResults) -> str | None:
    errors = [abs(one.error) for one in results.held_out if one.error is not None]
    refused = len(results.refused)
    said = f"{refused} forecast{'s were' if refused != 1 else ' was'} refused" if refused else ""
    if not errors:
        return f"No cell could be held out to check a forecast on; {said}." if said else None
    steps = f"Steps of {len(errors)} held-out cells were" if len(errors) > 1 else "The step of 1 held-out cell was"
    # Rounded up: no error is larger than what is said.
    text = f"{steps} forecast from the others to within {math.ceil(100 * max(errors))} %"
    if ahead := results.forecasts[:1]:
        share = ahead[0].exposed / ahead[0].step
        text += (
            f"; {ahead[0].world_size} ranks that compute as fast as these would wait for communication "
            f"{percent(share, 0)} % of a step"
        )
    return text + (f"; {said}." if said else ".")
