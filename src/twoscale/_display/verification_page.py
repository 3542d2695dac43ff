"""The page of a verification: its record, and the integers of each layer."""

from __future__ import annotations

import math

from twoscale._display.verification import layers_table
from twoscale._page.document import Group, Section, render_page
from twoscale._page.numbers import count, fixed, joined, percent
from twoscale._page.tables import Table, table, text_column
from twoscale._verification.record import VerificationRecord

__all__ = ["verification_page"]


def verification_page(record: VerificationRecord, source: str) -> str:
    """Return a self-contained page: no requests, light and dark.

    Args:
        record: of the verification.
        source: name of the record's file beside the page.
    """
    return render_page(
        f"Verification of {record.file}",
        f"{record.network}: {joined(record.executors)}, over {count(record.samples)} images of {record.data}",
        [_summary(record), _network(record), _layers(record)],
        record.environment,
        source,
    )


def _summary(record: VerificationRecord) -> Section:
    differing = f"{count(record.mismatches)} of {count(record.compared)} integers differ"
    same = f"All {count(record.compared)} integers are equal"
    lead = f"{differing if record.mismatches else same} between {joined(record.executors)}."
    findings = []
    if record.top1 is not None:
        path = "from picture files to classes" if record.preprocessing is not None else "on the test images"
        findings.append(f"{percent(record.top1)} % of {count(record.samples)} images are classified right, {path}.")
    if record.agreement is not None:
        logits = "" if record.sqnr_db is None else f", and the logits have an SQNR of {fixed(record.sqnr_db, 1)} dB"
        findings.append(f"{percent(record.agreement)} % of the images get the float network's class{logits}.")
    if record.same_weights is not None:
        has = "has" if record.same_weights else "does not have"
        findings.append(f"That float network {has} the weights that the integer network was made from.")
    if record.on_grid:
        findings.append("The network is on the grid: every executor provably computes the same integers.")
    elif record.exact:
        findings.append(
            "The network has TensorFlow Lite's arithmetic: executors that have it compute the same integers."
        )
    else:
        findings.append("The network is off the grid: executors may differ.")
    rows = [(name, count(number)) for name, number in record.mismatches_by_executor.items()]
    executors = _facts(f"Integers that differ from {record.executors[0]}", "Executor", rows)
    return Section("summary", "Result", (), [Group(tables=[executors])], lead, findings)


def _network(record: VerificationRecord) -> Section:
    network = [
        ("File", record.file),
        ("Fingerprint", record.fingerprint),
        ("Scheme", record.scheme),
        ("SHA-256 of the float weights", record.weights_sha256 or "not recorded"),
    ]
    images = [
        ("Data", record.data),
        ("Images", count(record.samples)),
        ("SHA-256 of the images and labels", record.data_sha256),
        ("From files to pixels", record.preprocessing or "none: a data set of pixels"),
        *_normalization(record),
    ]
    environment = record.environment
    machine = [
        ("Date", environment.date),
        ("Processor", environment.machine),
        ("Cores", count(environment.cores)),
        ("Python", environment.python),
        *environment.versions.items(),
    ]
    return Section(
        "what",
        "What was measured",
        (
            "The fingerprint is over everything that determines the integers. Exported C and compiled libraries "
            "contain it, and twoscale verify FILE --record compares a file with this record.",
        ),
        [
            Group(
                tables=[
                    _facts("Network", "", network),
                    _facts("Images", "", images),
                    _facts("Machine and versions", "", machine),
                ]
            )
        ],
    )


def _layers(record: VerificationRecord) -> Section:
    return Section(
        "layers",
        "Layers",
        ("Bounds are proved from the weights: no image can make a larger accumulator.",),
        [Group(tables=[layers_table(record.layers, f"{record.network}: integers of each layer")])],
    )


def _facts(caption: str, head: str, rows: list[tuple[str, str]]) -> Table:
    return table(caption, [text_column(head), text_column("")], rows)


def _normalization(record: VerificationRecord) -> list[tuple[str, str]]:
    if not any(record.mean) and all(math.isclose(255 * value, 1) for value in record.std):
        return [("Normalization", "inside the network, which takes pixels 0..255")]
    return [("Mean of pixels / 255", _numbers(record.mean)), ("Standard deviation", _numbers(record.std))]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
