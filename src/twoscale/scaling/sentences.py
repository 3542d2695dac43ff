"""Each answer of a study in one plain sentence, made from its numbers."""

from __future__ import annotations

from collections.abc import Callable

from twoscale.report.numbers import count, fixed, joined, percent, signed
from twoscale.scaling.config import SECTIONS
from twoscale.scaling.records import LedgerRecord, Summary
from twoscale.scaling.results import ArmsAt, SpeedRow, StudyResults

__all__ = ["milliseconds", "seconds_text", "sentences"]


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


def _batch(results: StudyResults) -> str | None:
    rows = [row for row in results.batches if row.epoch is not None]
    if not rows:
        return None
    slow, fast = max(rows, key=lambda r: _median(r.epoch)), min(rows, key=lambda r: _median(r.epoch))
    text = (
        f"An epoch takes {seconds_text(_median(slow.epoch))} at batch {count(slow.batch_size)} and "
        f"{seconds_text(_median(fast.epoch))} at {count(fast.batch_size)}, the fastest measured"
    )
    if slow is fast:
        text = f"An epoch takes {seconds_text(_median(fast.epoch))} at batch {count(fast.batch_size)}"
    if fast.of_peak is not None:
        text += f", at {percent(fast.of_peak, 0)} % of the device's measured matrix rate"
    capacity = results.capacity
    if capacity is not None and capacity.largest is not None:
        largest = count(capacity.largest)
        text += (
            f"; all {largest} training images fit in one batch"
            if capacity.reached_limit
            else f"; the largest batch that fits is {largest}"
            if capacity.ended
            else f"; a batch of {largest} fits, and there was no time to try larger ones"
        )
    return text + "."


def _median(summary: Summary | None) -> float:
    assert summary is not None
    return summary.median


def _speedup(results: StudyResults) -> str | None:
    def last(scaling: str) -> SpeedRow | None:
        return max((r for r in results.speed if r.scaling == scaling), key=lambda r: r.world_size, default=None)

    weak, strong, alone = last("weak"), last("strong"), last("ddp-alone")
    parts = [
        f"{fixed(row.speedup.mean, 2)} times as fast {what} (efficiency {percent(row.efficiency.mean, 0)} %)"
        for row, what in ((weak, "with the batch of a rank kept"), (strong, "with the batch of all kept"))
        if row is not None and row.speedup is not None and row.efficiency is not None
    ]
    if parts and weak is not None:
        return f"Against the bare module on one, {weak.world_size} ranks train {joined(parts)}."
    if alone is not None and alone.efficiency is not None:
        return (
            f"There is one device, and no speed-up to measure; DDP around it keeps "
            f"{percent(alone.efficiency.mean, 0)} % of the bare module's speed."
        )
    return None


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
        return (
            f"One rank sends nothing; DDP itself adds {milliseconds(record.wrapper_tax.median)} to a step of "
            f"{milliseconds(record.bare.median)}."
        )
    overlap = "" if record.overlap is None else f"; overlap {percent(record.overlap, 0)} %"
    return (
        f"At {record.world_size} ranks a step of {milliseconds(record.ddp.median)} waits "
        f"{milliseconds(record.exposed.median)} for communication that takes {milliseconds(record.isolated.median)} "
        f"alone{overlap}."
    )


def _accuracy(results: StudyResults) -> str | None:
    rows = {(row.way, row.equal): row for row in results.accuracy}
    small, plain = rows.get(("small", "epochs")), rows.get(("plain", "epochs"))
    helped = [
        row
        for (way, equal), row in rows.items()
        if equal == "epochs" and way not in ("small", "plain") and row.accuracy is not None
    ]
    if small is None or plain is None or small.accuracy is None or plain.accuracy is None or not helped:
        return None
    best = max(helped, key=lambda row: _median(row.accuracy))
    longer = rows.get(("plain", "steps"))
    text = (
        f"At equal epochs the large batch loses {signed(-100 * (plain.accuracy.mean - small.accuracy.mean), 1)} points "
        f"with nothing changed ({percent(small.accuracy.mean, 1)} % to {percent(plain.accuracy.mean, 1)} %); the best "
        f"of the remedies, {best.title}, reaches {percent(best.accuracy.mean if best.accuracy else None, 1)} %"
    )
    if longer is not None and longer.accuracy is not None:
        text += f"; at equal steps nothing has to be changed for {percent(longer.accuracy.mean, 1)} %"
    return text.replace("loses +", "loses ").replace("loses −", "gains ") + "."


def _sampler(results: StudyResults) -> str | None:
    told = next((row for row in results.orders if row.set_epoch), None)
    untold = next((row for row in results.orders if not row.set_epoch), None)
    if told is None or untold is None:
        return None
    return (
        f"Without set_epoch {percent(untold.same_place[-1], 0)} % of the images have the same place in every epoch, "
        f"with it {percent(told.same_place[-1], 2)} %: only then is the order drawn anew."
    )


def _wire(results: StudyResults) -> str | None:
    if not results.ledgers:
        return None
    ledger = results.ledgers[0]
    state = "as predicted, to the byte" if all(one.ok for one in results.ledgers) else "not as predicted"
    return (
        f"Every step all-reduces {count(gradient_bytes(ledger))} bytes of gradients in {buckets(ledger)} "
        f"bucket{'s' * (buckets(ledger) != 1)}; every collective was observed {state}."
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
    if not errors:
        refused = len(results.refused)
        return f"No cell could be held out to check a forecast on; {refused} were refused." if refused else None
    text = f"Steps of {len(errors)} held-out cells were forecast from the others to within {percent(max(errors), 0)} %"
    ahead = results.forecasts[:1]
    if ahead:
        efficiency = ahead[0].compute / ahead[0].step
        text += (
            f"; {ahead[0].world_size} ranks, each with cores of its own, would wait for communication "
            f"{percent(1 - efficiency, 0)} % of a step"
        )
    if results.refused:
        text += f"; {len(results.refused)} forecasts were refused"
    return text + "."
