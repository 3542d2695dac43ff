"""What decides the times of a cell beside its options: the machine, and PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from twoscale._environment import current_environment

__all__ = ["Machine"]


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
        gpus: tuple[str, ...] = ()
        if device == "cuda":
            import torch

            gpus = tuple(dict.fromkeys(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
        return cls(environment.machine, environment.cores, gpus, environment.versions.get("torch", ""))

    def differences(self, now: Machine) -> str:
        """Return in words what is different now; empty where nothing is."""
        pairs = ((field.name, getattr(self, field.name), getattr(now, field.name)) for field in fields(self))
        return "; ".join(
            f"{name} {_words(before)}, now {_words(after)}" for name, before, after in pairs if before != after
        )


def _words(value: object) -> str:
    return (" and ".join(value) or "none") if isinstance(value, tuple) else str(value)
