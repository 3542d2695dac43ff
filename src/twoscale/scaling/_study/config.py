"""What a scaling study is to measure: names, numbers and the defaults of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twoscale._environment import core_count
from twoscale.errors import ConfigurationError, UnknownNameError

__all__ = ["SECTIONS", "StudyConfig"]

SECTIONS = ("batch", "speedup", "communication", "accuracy", "sampler", "wire", "replicas", "forecast")
"""The study's questions, in order."""


_RANKS_A_CORE = 16
"""More would measure how a machine runs out of memory."""
_LARGEST_SEED = 2**32 - 1


def _accelerators() -> int:
    """Return how many GPUs PyTorch finds; it is asked only where there is a driver."""
    if not any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return 0
    import torch

    return torch.cuda.device_count()


@dataclass(frozen=True)
class StudyConfig:
    """A scaling study; :meth:`for_this_machine` has the defaults.

    Raises:
        ConfigurationError: a number outside its range.
        UnknownNameError: a section that there is not.
    """

    model: str
    data: str
    device: Literal["cpu", "cuda"]
    batch_sizes: tuple[int, ...]
    """Images a step on one device, ascending."""
    base_batch: int
    """Images a device and step where numbers of ranks are compared."""
    world_sizes: tuple[int, ...]
    """Ranks, ascending; the first is 1, which all others are compared with."""
    epochs: int
    """Of the runs whose accuracy is compared."""
    accuracy_batches: tuple[int, int]
    """The small and the large batch of these runs."""
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    threads_per_rank: int
    """Of the processor, where numbers of ranks are compared; a single device otherwise has all cores."""
    cores: int
    """Of the processor, all together."""
    sections: tuple[str, ...] = SECTIONS
    repeats: int = 3
    """Launches of each timed cell."""
    seeds: int = 3
    """Runs of each way to train at a large batch."""
    tune: bool = True
    """Whether learning rates are chosen on a part of the training images before these runs."""
    separate: bool = False
    """Whether every batch size, and every training run, has a launch of its own; on GPUs a training run always has."""
    tolerance: float = 0.05
    """The largest batch is found to within this share."""
    timeout: float = 900.0
    """Seconds after which a launch is ended."""
    seed: int = 0
    """Decides initial weights, synthetic images, and the order of the cells."""

    def __post_init__(self) -> None:
        for name in self.sections:
            if name not in SECTIONS:
                raise UnknownNameError("section", name, SECTIONS)
        if not self.sections:
            raise ConfigurationError(f"no section; expected some of {', '.join(SECTIONS)}")
        for name in ("repeats", "seeds", "epochs", "base_batch", "threads_per_rank"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("batch_sizes", "world_sizes", "accuracy_batches"):
            value = getattr(self, name)
            if not value or min(value) < 1 or list(value) != sorted(set(value)):
                shown = ", ".join(map(str, value)) or "empty"
                raise ConfigurationError(f"{name} is {shown}; expected ascending numbers of at least 1")
        if len(self.accuracy_batches) != 2:
            raise ConfigurationError(f"accuracy_batches has {len(self.accuracy_batches)} numbers; expected 2")
        if self.world_sizes[0] != 1:
            raise ConfigurationError(f"world_sizes begins with {self.world_sizes[0]}; expected 1, to compare with")
        if self.world_sizes[-1] > _RANKS_A_CORE * self.cores:
            raise ConfigurationError(
                f"{self.world_sizes[-1]} ranks on {self.cores} core(s); expected at most {_RANKS_A_CORE} a core"
            )
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ConfigurationError(f"seed is {self.seed}; expected 0 to {_LARGEST_SEED}")
        if not self.tolerance >= 0:
            raise ConfigurationError(f"tolerance is {self.tolerance}; expected at least 0")
        if not self.timeout > 0:
            raise ConfigurationError(f"timeout is {self.timeout}; expected a positive number of seconds")

    @classmethod
    def for_this_machine(cls, device: Literal["cpu", "cuda"] | None = None, **given: Any) -> StudyConfig:
        """Return the study that this machine can do, where nothing else is given.

        On GPUs the lab's: ResNet-18, CIFAR-10, batches of 32 to 8,192, 1, 2 and 4 ranks as far as there are GPUs. On a
        processor one that two cores finish in a few minutes: the small CNN, digits, 1 and 2 ranks.

        Args:
            device: Default: cuda where there is a GPU.
            given: other fields; None is as if not given.

        Raises:
            ConfigurationError: a GPU is asked for where there is none, more ranks than GPUs, or a number outside its
                range.
            UnknownNameError: a section that there is not.
        """
        gpus = 0 if device == "cpu" else _accelerators()
        if device == "cuda" and not gpus:
            raise ConfigurationError("device is cuda, but PyTorch finds no GPU; use --device cpu")
        values: dict[str, Any]
        if gpus:
            values = {
                "model": "resnet18", "data": "cifar10", "device": "cuda",
                "batch_sizes": tuple(32 << i for i in range(9)),
                "base_batch": 128, "world_sizes": tuple(n for n in (1, 2, 4) if n <= gpus), "epochs": 8,
                "accuracy_batches": (128, 1024), "precision": "bf16", "channels_last": True,
            }  # fmt: skip
        else:
            values = {
                "model": "net", "data": "digits", "device": "cpu", "batch_sizes": (32, 128, 512), "base_batch": 64,
                "world_sizes": (1, 2), "epochs": 3, "accuracy_batches": (16, 64), "precision": "fp32",
                "channels_last": False,
            }  # fmt: skip
        values |= {name: value for name, value in given.items() if value is not None}
        if min(values["world_sizes"], default=0) > 1:
            values["world_sizes"] = (1, *values["world_sizes"])
        if "sections" in values:
            order = [name for name in SECTIONS if name in values["sections"]]
            values["sections"] = (*order, *(name for name in values["sections"] if name not in SECTIONS))
        cores = core_count()
        most = max(values["world_sizes"], default=1)
        if gpus and most > gpus:
            raise ConfigurationError(f"{most} ranks on {gpus} GPU(s): NCCL needs a GPU a rank; choose fewer")
        return cls(**{"threads_per_rank": max(1, cores // max(1, most)), "cores": cores, **values})
