"""docs/arithmetic.md: the equations that the code cites are there, and so are the tests that it names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "arithmetic.md").read_text(encoding="utf-8")


def test_every_cited_equation_is_stated() -> None:
    stated = set(re.findall(r"^\*\*\((\d+[a-e]?)\)\*\*", TEXT, re.MULTILINE))
    assert stated == {*(str(number) for number in range(1, 25)), "3b", "6b", "7b", "7c", "7d", "7e"}
    cited: dict[str, Path] = {}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for words in re.findall(
            r"(?:[Ee]quations?|[Cc]laims?|[Cc]ondition) ((?:\(\d+[a-e]?\)(?:[–, ]|and|or)*)+)", path.read_text("utf-8")
        ):
            cited.update(dict.fromkeys(re.findall(r"\d+[a-e]?", words), path))
    assert len(cited) >= 13
    assert {number: path for number, path in cited.items() if number not in stated} == {}


def test_every_equation_that_it_refers_to_is_stated() -> None:
    stated = set(re.findall(r"^\*\*\((\d+[a-e]?)\)\*\*", TEXT, re.MULTILINE))
    assert set(re.findall(r"(?<![\w\])])\((\d{1,2}[a-e]?)\)", TEXT)) == stated


def test_the_tests_that_it_names_exist() -> None:
    named = re.findall(r"`(tests/\S+\.py)`", TEXT)
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_table_of_multipliers_is_right() -> None:
    rows = re.findall(
        r"^\| (\d+) \(.*?\| ([\d,]+), a ratio of ([\d.]+) \| ([\d,]+), a ratio of ([\d.]+) \|$", TEXT, re.MULTILINE
    )
    assert [row[0] for row in rows] == ["255", "128", "15"]
    for reach, *cells in rows:
        for limit, (multiplier, ratio) in zip((2**24, 3 * 2**22), (cells[:2], cells[2:]), strict=True):
            assert int(multiplier.replace(",", "")) == limit // int(reach)
            rest = limit / int(reach) / 2**14 - float(ratio)  # rounded down: it is a limit
            assert 0 <= rest < 10.0 ** -len(ratio.partition(".")[2])
