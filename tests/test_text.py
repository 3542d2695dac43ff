"""Text from outside: invisible characters become visible, and nothing else changes."""

from __future__ import annotations

import json
import unicodedata
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoscale._files import record_to_json
from twoscale._page.charts import Bracket, Reference, Series, dot_plot, histogram, line_plot
from twoscale._page.document import Group, Section, render_page, table_html
from twoscale._page.tables import table, text_column
from twoscale._text import json_ascii, printable
from twoscale.errors import TwoscaleError, UnknownNameError

ANY_TEXT = st.text(st.characters(codec=None))  # lone surrogates too
HOSTILE = "conv\x1b[31m\x07\u202e\n\x00\ufffe\ud800"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1 – Größe 網絡 ±3σ\u00a0%", "conv1 – Größe 網絡 ±3σ\u00a0%"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("bell\x07", "bell\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("two\nlines\tand\rmore", "two\\nlines\\tand\\rmore"),
        ("\x9b31m", "\\x9b31m"),
        ("\u2028\ufeff\ud800", "\\u2028\\ufeff\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_invisible_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANY_TEXT)
def test_every_text_becomes_visible(text: str) -> None:
    shown = printable(text)
    assert all(
        unicodedata.category(char)[0] != "C" and unicodedata.category(char) not in ("Zl", "Zp") for char in shown
    )
    assert printable(shown) == shown
    shown.encode()


@given(ANY_TEXT, st.integers(3, 20))
def test_long_text_keeps_its_ends(text: str, longest: int) -> None:
    kept = printable(text, longest)
    if len(text) <= longest:
        assert kept == printable(text)
    else:
        start, end = kept.split("…")[0], kept.split("…")[-1]
        assert printable(text).startswith(start)
        assert printable(text).endswith(end)


@given(st.dictionaries(st.text(), st.text()))
def test_json_means_the_same(content: dict[str, str]) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=1)
    assert json.loads(json_ascii(text)) == content
    assert json_ascii(text).replace("\n", "") == printable(json_ascii(text).replace("\n", ""))


def test_records_as_json_have_no_invisible_character() -> None:
    assert record_to_json({"name": "a\u202eb\U000e0041"}) == '{\n  "name": "a\\u202eb\\udb40\\udc41"\n}\n'


def test_errors_are_one_short_visible_line() -> None:
    message = str(TwoscaleError(f"layer {HOSTILE} of\n  a file"))
    assert message == "layer conv\\x1b[31m\\x07\\u202e \\x00\\ufffe\\ud800 of a file"
    assert len(str(UnknownNameError("layer", "x" * 100_000, ["conv1"]))) == 2000


def drawings(name: str) -> list[Any]:
    return [
        histogram(name, [1, 2], 0.0, 1.0, label=name, x_label=name, note=name, brackets=[Bracket(name, 0.0, 1.0)]),
        dot_plot(name, [name], [Series(name, (1.0,)), Series(name, (2.0,))], label=name, x_label=name,
                 references=[Reference(1.0, name)]),
        line_plot(name, [(name, [(0.0, 1.0), (1.0, 2.0)])], label=name, x_label=name, y_label=name),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_charts_are_well_formed_whatever_layers_are_called(kind: int) -> None:
    drawing = drawings(HOSTILE)[kind]
    for text in (drawing.inline(), drawing.standalone()):
        texts = "".join(ElementTree.fromstring(text).itertext())
        assert "\\x1b" in texts or "\\ud800" in texts
        text.encode()


def test_pages_and_tables_show_names_visibly() -> None:
    from twoscale._environment import current_environment

    one = table(HOSTILE, [text_column("Layer")], [[HOSTILE], ["x" * 100_000]])
    sections = [Section("summary", HOSTILE, [HOSTILE], [Group(HOSTILE, [HOSTILE], tables=[one])], HOSTILE, [HOSTILE])]
    page = render_page(HOSTILE, HOSTILE, sections, current_environment(), "results.json")
    for text in (page, table_html(one)):
        assert printable(text.replace("\n", "")) == text.replace("\n", "")
        assert "conv\\x1b[31m\\x07\\u202e\\n\\x00\\ufffe\\ud800" in text
        assert len(text) < 30_000
