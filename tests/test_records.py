from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoscale import _environment
from twoscale._calibration import summaries
from twoscale._calibration.summaries import Histogram, TensorSummary
from twoscale._environment import Environment
from twoscale._files import read_record, record_to_json, write_record
from twoscale._lab import records as lab_records
from twoscale._lab.records import LabResults, StageResult
from twoscale._quantization import records as range_records
from twoscale._quantization.records import RangeRecord
from twoscale._verification import results as verify_results
from twoscale._verification.results import LayerCheck, VerifyResult
from twoscale.errors import TwoscaleError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
HISTOGRAMS = st.builds(Histogram, FINITE, FINITE, st.lists(st.integers(0, 2**62), max_size=4).map(tuple))
LAYERS = st.builds(LayerCheck, name=st.text(), op=st.text(), sqnr_db=st.none() | FINITE)
EACH_RECORD = [
    HISTOGRAMS,
    st.builds(TensorSummary, mean=FINITE, std=FINITE, min=FINITE, max=FINITE, histogram=HISTOGRAMS),
    st.builds(
        RangeRecord,
        scales=st.lists(FINITE, max_size=3).map(tuple),
        sqnr_db=st.none() | FINITE,
        histogram=st.none() | HISTOGRAMS,
    ),
    st.builds(StageResult, top1=FINITE, agreement=st.none() | FINITE, sqnr_db=st.none() | FINITE),
    st.builds(
        VerifyResult,
        top1=st.none() | FINITE,
        agreement=st.none() | FINITE,
        sqnr_db=st.none() | FINITE,
        layers=st.lists(LAYERS, max_size=2).map(tuple),
    ),
]


@given(st.one_of(EACH_RECORD))
def test_what_is_written_is_read(record: Any) -> None:
    import msgspec

    text = record_to_json(record)
    assert msgspec.json.decode(text, type=type(record)) == record
    json.loads(text)


def test_file(tmp_path: Path) -> None:
    record = Histogram(-1.5, 2.5, (1, 0, 3))
    write_record(tmp_path / "new" / "a.json", record)
    text = (tmp_path / "new" / "a.json").read_text()
    assert text == '{\n  "lo": -1.5,\n  "hi": 2.5,\n  "counts": [\n    1,\n    0,\n    3\n  ]\n}\n'
    assert read_record(tmp_path / "new" / "a.json", Histogram) == record


def test_what_json_has_not_becomes_null() -> None:
    assert json.loads(record_to_json({"a": math.nan, "b": math.inf, "c": 1.0})) == {"a": None, "b": None, "c": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {path}: No such file or directory"),
        (b"", "{path} does not hold a Histogram record: Input data was truncated"),
        (b'{"lo": 1.0, "hi"', "{path} does not hold a Histogram record: Input data was truncated"),
        (b'{"lo": 1.0, "hi": 2.0}', "{path} does not hold a Histogram record: Object missing required field `counts`"),
        (b'{"lo": "a", "hi": 2.0, "counts": []}', "{path} does not hold a Histogram record: Expected `float`, got"),
    ],
)
def test_file_that_is_no_record(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TwoscaleError, match=re.escape(message.format(path=path))):
        read_record(path, Histogram)


def test_derived_values() -> None:
    summary = TensorSummary("w", "weight", 3, 0.5, 0.25, -1.0, 2.0, 0, Histogram(-1, 2, (3,)))
    assert summary.range == 3.0
    assert summary.three_sigma == (-0.25, 1.25)


@pytest.mark.parametrize("mismatches", [0, 1])
def test_verified_is_ok_without_a_difference(mismatches: int) -> None:
    result = VerifyResult(
        "Net", "default", True, ("reference", "torch"), 10, mismatches, 1000, 0.5, 0.9, 30.0, layers=()
    )
    assert result.ok is (mismatches == 0)


RECORDS = [
    getattr(module, name)
    for module in (_environment, summaries, range_records, verify_results, lab_records)
    for name in module.__all__
    if dataclasses.is_dataclass(getattr(module, name))
]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_records_are_frozen_and_described(kind: Any) -> None:
    assert vars(kind)["__dataclass_params__"].frozen
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}("), "no docstring of its own"


def test_notebooks_show_tables() -> None:
    environment = Environment("2026-01-01T00:00:00+00:00", "a machine", 2, "3.11", {})
    results = LabResults("digits", 0, 1, 1, 1, {}, (), environment, {})
    assert "<table" in results._repr_html_()
    layer = LayerCheck("conv1", "Conv2d", 0, 10, 40.0)
    result = VerifyResult("Net", "default", True, ("reference",), 10, 0, 0, None, None, None, layers=(layer,))
    shown = result._repr_html_()
    assert "<table" in shown
    assert "conv1" in shown
    assert "&lt;" not in shown
