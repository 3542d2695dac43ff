"""How much of long sweeps runs."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests import sweep

CASES = """
import pytest

@pytest.mark.sweep
@pytest.mark.parametrize("a", range(3))
@pytest.mark.parametrize("b", "wxyz")
def test_product(a, b): ...

@pytest.mark.sweep(3)
@pytest.mark.parametrize("n", range(9))
def test_many(n): ...

@pytest.mark.parametrize("n", range(4))
def test_all(n): ...
"""


def collected(folder: Path, *words: str) -> list[str]:
    """Return the names of the cases that a run of the tests above takes."""
    (folder / "test_cases.py").write_text(CASES)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--collect-only", "-q", "--rootdir", str(folder)]
    done = subprocess.run(
        [*command, "-o", "markers=sweep: x", "-p", "no:cacheprovider", *(words or [str(folder)])],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]


def test_a_sample_has_every_value(tmp_path: Path) -> None:
    found = collected(tmp_path)
    product = [name for name in found if name.startswith("test_product")]
    assert len(product) == 4
    assert {name[-4] for name in product} == set("wxyz")
    assert {name[-2] for name in product} == set("012")
    assert [name for name in found if name.startswith("test_many")] == ["test_many[0]", "test_many[4]", "test_many[8]"]
    assert len([name for name in found if name.startswith("test_all")]) == 4


def test_a_whole_sweep_has_every_case(tmp_path: Path) -> None:
    assert len(collected(tmp_path, "--sweep", "all", str(tmp_path))) == 12 + 9 + 4


def test_a_case_that_is_named_runs(tmp_path: Path) -> None:
    assert collected(tmp_path, f"{tmp_path / 'test_cases.py'}::test_many[3]") == ["test_many[3]"]


def test_some_are_spread_and_all_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sweep.VARIABLE, "sample")
    assert sweep.some(range(100), 4) == [0, 33, 66, 99]
    assert sweep.some("abc", 5) == ["a", "b", "c"]
    assert sweep.some("abc", 1) == ["a"]
    assert (sweep.count(1000, 30), sweep.count(10, 30)) == (30, 10)
    monkeypatch.setenv(sweep.VARIABLE, "all")
    assert sweep.some(range(100), 4) == list(range(100))
    assert sweep.count(1000, 30) == 1000


def test_covering_holds_every_value() -> None:
    cases = [frozenset({("a", a), ("b", b), ("c", c)}) for a, b, c in itertools.product(range(2), range(7), range(3))]
    kept = sweep.covering(cases)
    assert set().union(*(cases[number] for number in kept)) == set().union(*cases)
    assert len(kept) == 7
