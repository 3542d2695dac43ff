"""Mutated files through every loader: a few cases of ``make fuzz``, and faults planted in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fuzz
from twoscale.errors import NetworkFileError


def test_a_few_mutated_files() -> None:
    found = fuzz.run(60, seed=7)
    assert found["bad"] == []
    assert sum(sum(outcomes.values()) for outcomes in found["outcomes"].values()) == 60


def test_whole_files_load(tmp_path: Path) -> None:
    for seeds, suffix, load, _ in fuzz.kinds(tmp_path).values():
        for index, content in enumerate(seeds):
            path = tmp_path / f"whole{index}{suffix}"
            path.write_bytes(content)
            if suffix != ".tar.gz":  # made up, so its digest is not the published one
                assert load(path) in ("loaded", "equal")


def refuse(path: Path) -> str:
    raise NetworkFileError(f"{path} is refused")


def fail(path: Path) -> str:
    raise ZeroDivisionError


def leave(path: Path) -> str:
    import os

    os._exit(3)


def allocate(path: Path) -> str:
    return str(len(bytearray(fuzz.MEMORY + 1)))


def turn(path: Path) -> str:
    while True:
        pass


@pytest.mark.parametrize(
    ("load", "outcome"),
    [
        (refuse, "refused"),
        (fail, "traceback"),
        (leave, "crash"),
        (allocate, "memory"),
        (turn, "hang"),
    ],
)
def test_planted_faults_are_seen(load: object, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = fuzz.Child()
    try:
        assert child.read(refuse, tmp_path)[0] == "refused"
        monkeypatch.setattr(fuzz, "SECONDS", 2)
        assert child.read(load, tmp_path)[0] == outcome  # type: ignore[arg-type]
        monkeypatch.setattr(fuzz, "SECONDS", 60)
        assert child.read(refuse, tmp_path)[0] == "refused"  # another process took its place
    finally:
        child.stop()
