"""Mutated files through every loader: a few cases of ``make fuzz``, and faults planted in it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import fuzz, mutations
from twoscale.errors import NetworkFileError, TwoscaleError


def test_a_few_mutated_files() -> None:
    found = fuzz.run(80, seed=7)
    assert found["bad"] == []
    assert sum(sum(outcomes.values()) for outcomes in found["outcomes"].values()) == 80


def test_whole_files_load(tmp_path: Path) -> None:
    for kind in fuzz.kinds(tmp_path).values():
        for index, content in enumerate(kind.seeds):
            path = tmp_path / f"whole{index}{kind.suffix}"
            path.write_bytes(content)
            if kind.suffix != ".tar.gz":  # made up, so its digest is not the published one
                assert kind.load(path) in ("loaded", "equal"), path


def test_mutations_reach_behind_the_checksums(tmp_path: Path) -> None:
    """Of the files that are put together again, some load with another content, and some are refused for it."""
    everything = fuzz.kinds(tmp_path)
    for name, mutate in (
        ("own ONNX", mutations.mutate_network),
        ("safetensors", mutations.mutate_weights),
        ("torch.save", mutations.mutate_torch_zip),
        ("batch", mutations.mutate_member),
    ):
        kind = everything[name]
        outcomes = set()
        for seed in range(40):
            content = mutate(kind.seeds[0], random.Random(seed))
            path = tmp_path / f"case{kind.suffix}"
            path.write_bytes(content)
            try:
                outcomes.add(kind.load(path) if content != kind.seeds[0] else "same")
            except TwoscaleError as error:
                outcomes.add("altered" if "altered after it was saved" in str(error) else "refused")
        assert {"refused"} < outcomes - {"same", "altered"}, name


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
        monkeypatch.setattr(fuzz, "SECONDS", 1)
        assert child.read(load, tmp_path)[0] == outcome  # type: ignore[arg-type]
        monkeypatch.setattr(fuzz, "SECONDS", 60)
        assert child.read(refuse, tmp_path)[0] == "refused"  # another process took its place
    finally:
        child.stop()
