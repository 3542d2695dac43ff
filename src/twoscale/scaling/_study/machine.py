"""The machine and the PyTorch version of the cells: only times from the same ones can be compared."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from twoscale._environment import current_environment, gpu_names

__all__ = ["Machine", "StudyHost"]


@dataclass(frozen=True)
class Machine:
    """Where a cell was measured."""

    processor: str
    cores: int
    """That this process may use."""
    gpus: tuple[str, ...]
    """Kinds of GPUs that PyTorch sees; empty where a study is of a processor."""
    torch: str
    """PyTorch's version."""

    @classmethod
    def here(cls, device: Literal["cpu", "cuda"]) -> Machine:
        """Return this one, for a study on ``device``."""
        environment = current_environment()
        gpus = tuple(dict.fromkeys(gpu_names())) if device == "cuda" else ()
        return cls(environment.machine, environment.cores, gpus, environment.versions.get("torch", ""))

    def differences(self, other: Machine, word: str = "now") -> str:
        """Describe how another machine differs, with a word for the other; empty if it does not."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return "; ".join(
            f"{name} {_words(before)}, {word} {_words(after)}" for name, before, after in pairs if before != after
        )


@dataclass(frozen=True)
class StudyHost:
    """A host of a study on several."""

    name: str
    machine: Machine


def _words(value: object) -> str:
    return (" and ".join(value) or "none") if isinstance(value, tuple) else str(value)
